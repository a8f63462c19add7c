"""Whether the tensors of an adapter are those that its config describes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peft import PeftType

from ttlora.adapters.header import TensorInfo
from ttlora.compat import look_up
from ttlora.tuners.bottleneck.config import BOTTLENECK, resolve_trains
from ttlora.tuners.checks import is_size
from ttlora.tuners.loretta_rep.config import LORETTA_REP, resolve_factors
from ttlora.tuners.shared.config import SharedConfig
from ttlora.tuners.tt_lora import saved_update
from ttlora.tuners.tt_lora.config import TTLORA
from ttlora.values import is_number

# Tensors of a module by what follows its name in the file.
Parts = Mapping[str, TensorInfo]


def check_tensors(config: Any, modules: Mapping[str, Parts]) -> None:
    """Check that the tensors of each module are those of the config, for LoRA and the methods of this package.

    Args:
        config: A config whose fields have been checked.
        modules: Module name to its tensors.

    Raises:
        ValueError: They do not fit together; the message names the module.
    """
    if isinstance(config, SharedConfig):
        _check_shared(config, modules)
        return
    checks: dict[Any, Callable[[Any, str, Parts], None]] = {
        TTLORA: _check_tt_lora,
        LORETTA_REP: _check_loretta_rep,
        BOTTLENECK: _check_bottleneck,
        PeftType.LORA: _check_lora,
    }
    check = checks.get(config.peft_type)
    if check in (None, _check_lora) and config.peft_type != PeftType.LOKR:  # LoKr's rank may be any, and is bounded
        _check_ranks(config, modules)
    if check is None:
        return
    if check is _check_lora:
        _check_lora_config(config)
    for name, parts in modules.items():
        _require_floating(name, parts)
        check(config, name, parts)


def _check_ranks(config: Any, modules: Mapping[str, Parts]) -> None:
    """Refuse ranks above every side of every tensor, for which PEFT would take memory before it looks at the file."""
    largest = max(max(info.shape, default=1) for parts in modules.values() for info in parts.values())
    pattern = getattr(config, "rank_pattern", None) or {}
    for name, r in {"r": getattr(config, "r", None), **pattern}.items():
        if isinstance(r, int) and r > largest:
            raise ValueError(
                f"the rank of {name!r} is {r} in the config, and no tensor has a side of more than {largest}"
            )


def _check_tt_lora(config: Any, name: str, parts: Parts) -> None:
    wanted = ["ttlora_cores", "ttlora_start"] if config.init_weights == "dota" else ["ttlora_cores"]
    shape = saved_update(config, name).shape
    why = f"shape {list(shape.dims)} of ranks {list(shape.ranks)}"
    for cores in _require_parts(name, parts, wanted):
        _require_sizes(f"the cores of '{name}'", cores, (shape.parameters,), why)


def _check_shared(config: SharedConfig, modules: Mapping[str, Parts]) -> None:
    """Hold the entries of each group against the config, which says which module they are named by."""
    groups = config.saved_groups()
    if unknown := [name for name in modules if name not in groups]:
        raise ValueError(f"'{unknown[0]}' has entries, and in the config they are those of {', '.join(groups)}")
    for name, updates in groups.items():
        if name not in modules:
            raise ValueError(f"'{name}' has no entries, which serve {len(updates)} modules of the config")
        parts = modules[name]
        if len(parts) != 1:
            raise ValueError(f"'{name}' has {', '.join(parts)}, and one tensor is what this adapter has for it")
        _require_floating(name, parts)
        (info,) = parts.values()
        _require_sizes(f"the entries of '{name}'", info, (updates[name].parameters,), f"r={config.r}")


def _check_loretta_rep(config: Any, name: str, parts: Parts) -> None:
    (cores,) = _require_parts(name, parts, ["loretta_rep_cores"])
    sizes = look_up(config.weight_sizes, name, None)
    if sizes is None:
        raise ValueError(f"the config does not say the size of {name}: it is not that of a saved adapter")
    update = resolve_factors(config, name, *sizes)
    _require_sizes(f"the cores of '{name}'", cores, (update.parameters,), f"r={config.r}, tt_rank={config.tt_rank}")


def _check_bottleneck(config: Any, name: str, parts: Parts) -> None:
    kind = "weight" if config.tt_rank is None else "cores"
    wanted = [f"bottleneck_{side}.{part}" for side in ("down", "up") for part in (kind, "bias")]
    down, down_bias, up, up_bias = _require_parts(name, parts, wanted)
    outputs = up_bias.parameters
    trains = resolve_trains(config, name, outputs)
    sizes: list[tuple[int, ...]] = [(config.r, outputs), (outputs, config.r)]
    if trains is not None:
        sizes = [(train.shape.parameters,) for train in trains]
    for part, info, size in (
        (wanted[0], down, sizes[0]),
        (wanted[1], down_bias, (config.r,)),
        (wanted[2], up, sizes[1]),
        (wanted[3], up_bias, (outputs,)),
    ):
        _require_sizes(f"'{name}.{part}'", info, size, f"r={config.r}, tt_rank={config.tt_rank}")


def _check_lora_config(config: Any) -> None:
    for name, holds, wanted in (("r", is_size, "a positive integer"), ("lora_alpha", is_number, "a finite number")):
        pattern = "rank_pattern" if name == "r" else "alpha_pattern"
        values = {name: getattr(config, name)} | {
            f"{pattern} for {key!r}": value for key, value in (getattr(config, pattern) or {}).items()
        }
        for field, value in values.items():
            if not holds(value):
                raise ValueError(f"{field}={value!r} is not {wanted}")
    if not 0 <= config.lora_dropout < 1:
        raise ValueError(f"lora_dropout={config.lora_dropout} is not a probability from 0 up to, but not, 1")


def _check_lora(config: Any, name: str, parts: Parts) -> None:
    """Hold each pair of factors against each other and the rank; variants of LoRA have tensors of their own besides."""
    for a, b in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
        if a not in parts and b not in parts:
            continue
        A, B = _require_parts(name, {part: parts[part] for part in (a, b) if part in parts}, [a, b])
        if len(A.shape) < 2 or len(B.shape) < 2:
            raise ValueError(
                f"the factors of '{name}' have the sizes {list(A.shape)} and {list(B.shape)}: they are no matrices"
            )
        if config.use_bdlora:
            continue  # its blocks have ranks of their own
        pattern = config.rank_pattern or {}
        r = look_up(pattern, name, config.r)
        ranks = A.shape[0], B.shape[1]
        # the factors of all experts stand in one; a convolution in groups has a part of the ranks for each group
        fits = ranks[0] % r == 0 if config.target_parameters else ranks[0] == r
        if not fits or ranks[0] % ranks[1] or (ranks[0] != ranks[1] and len(B.shape) == 2):
            raise ValueError(
                f"the factors of '{name}' have the ranks {ranks[0]} and {ranks[1]}, and the config says {r}: the two "
                "files belong to different adapters"
            )


def _require_parts(name: str, parts: Parts, wanted: Iterable[str]) -> list[TensorInfo]:
    """The tensors of a module in the order wanted."""
    wanted = list(wanted)
    if missing := [part for part in wanted if part not in parts]:
        raise ValueError(f"'{name}' has no {missing[0]}")
    if extra := [part for part in parts if part not in wanted]:
        raise ValueError(f"'{name}' has {extra[0]}, which is no part of this adapter")
    return [parts[part] for part in wanted]


def _require_floating(name: str, parts: Parts) -> None:
    for part, info in parts.items():
        if not info.is_floating:
            raise ValueError(f"'{name}.{part}' has entries of {info.dtype}, which are no floating-point numbers")


def _require_sizes(what: str, info: TensorInfo, sizes: tuple[int, ...], why: str) -> None:
    if info.shape != sizes:
        raise ValueError(
            f"{what} have the sizes {list(info.shape)}, but {why} in the config has {list(sizes)}: the two files "
            "belong to different adapters"
        )
