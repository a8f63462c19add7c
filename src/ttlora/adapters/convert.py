"""A plain LoRA adapter as a TT-LoRA adapter, and how near it comes."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftType
from torch import Tensor

from ttlora.adapters.read import MODEL_PREFIX, Adapter, read_adapter
from ttlora.adapters.round import TrainAdapter, approximate, require_approximation, require_finite, write_ranks
from ttlora.adapters.write import Dtype, as_dtype, write_adapter
from ttlora.compat import look_up
from ttlora.errors import UserError, printable
from ttlora.tensor_train import TensorTrain
from ttlora.text_forms import parse_shape
from ttlora.tuners.tt_lora import TTLoraConfig, resolve_update
from ttlora.tuners.tt_lora.config import write_shapes
from ttlora.whole_files import require_free

# Fields of LoraConfig that a TT-LoRA adapter has too, under the same name.
KEPT = (
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
)
# Fields that are accounted for, or change neither the update nor what it is added to.
READ = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
    "init_lora_weights",
    "peft_type",
    "peft_version",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
)
# The other ways of PEFT to begin change the base weights.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def import_lora(
    lora: str | Path,
    output: str | Path,
    shape: str | list[int] | dict[str, list[int]] = "auto",
    r: int | None = None,
    tolerance: float | None = None,
    dtype: Dtype = "float32",
) -> TrainAdapter:
    """Write a plain LoRA adapter as a TT-LoRA adapter.

    Without `r` and `tolerance` the updates stay the same. A trained LoRA holds more than a small train can, so the
    exact train is no smaller than it. With `r` or `tolerance` the train is smaller, and has an error, which is told.

    Args:
        lora: A folder with a saved LoRA adapter of PEFT.
        output: Folder for the TT-LoRA adapter; empty or not there yet.
        shape: Dims of the trains, "auto", or dims by module name; also as text, as in `Recipe`.
        r: Largest TT-rank.
        tolerance: Largest relative error of each update, such as 0.1.
        dtype: Number format of the cores; errors are told with its rounding.

    Returns:
        What was written, with the error of each update.

    Raises:
        UserError: There is no such adapter, or it is a variant of LoRA that cannot be imported, or the output is in
            use.

    Examples:
        >>> import ttlora
        >>> imported = ttlora.import_lora("lora", "lora-as-trains")
        >>> imported.relative_error < 1e-6
        True
    """
    require_approximation(r, tolerance)
    path = require_free(output)
    dims = parse_shape(shape) if isinstance(shape, str) else shape
    imported = from_lora(read_adapter(lora), dims, r, tolerance or 0.0, as_dtype(dtype))
    how = f"A LoRA adapter as a tensor train, with a relative error of {imported.relative_error:.1e}."
    write_adapter(path, imported.config, imported.tensors, how)
    return imported


def from_lora(
    adapter: Adapter,
    shape: str | list[int] | dict[str, Any] = "auto",
    r: int | None = None,
    tolerance: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> TrainAdapter:
    """The TT-LoRA adapter whose updates are those of a plain LoRA adapter, ``s B A``, or near them.

    Without ``r`` and ``tolerance`` the trains are exact. Trained LoRA factors have no structure that a train could
    use, so an exact train is larger than they are; a smaller one has an error, which is told.

    Args:
        adapter: A checked folder of a LoRA adapter.
        shape: Dims of the trains, "auto", or dims by module.
        r: Bound on the TT-ranks.
        tolerance: Bound on the relative error of each module's update, as long as ``r`` does not bind.
        dtype: Number format of the cores.

    Raises:
        UserError: It is of another method or of a variant of LoRA that is no ``s B A``, or the shape does not fit.
    """
    lora = _require_plain(adapter)
    if strange := [key for key in adapter.others if ".ttlora_" in key]:
        raise UserError(
            f"{adapter.folder} holds '{printable(strange[0])}' beside its factors, which is no part of LoRA"
        )
    factors = {name: _factors(adapter, lora, name) for name in adapter.modules}
    try:
        config = TTLoraConfig(
            **{name: getattr(lora, name) for name in KEPT},
            dropout=lora.lora_dropout,
            **({"shape_pattern": shape} if isinstance(shape, dict) else {"shape": shape}),
        )
        sizes = {name: [B.shape[0], A.shape[1]] for name, (A, B) in factors.items()}
        dims = {name: resolve_update(config, name, *sizes[name]).shape for name in factors}
    except ValueError as error:
        raise UserError(str(error)) from None
    write_shapes(config, dims, sizes, dict.fromkeys(sizes, "linear"))
    exact = {name: TensorTrain.from_factors(A, B, dims[name].dims) for name, (A, B) in factors.items()}
    for name, train in exact.items():
        require_finite(name, train)
    rounded = {
        name: train if r is None and not tolerance else train.round(r, tolerance) for name, train in exact.items()
    }
    write_ranks(config, {name: train.shape for name, train in rounded.items()})
    tensors = {key: adapter.load(key) for key in adapter.others}
    modules = []
    for name, train in rounded.items():
        before = sum(info.parameters for info in adapter.modules[name].values())
        key = f"{MODEL_PREFIX}{name}.ttlora_cores"
        tensors[key], module = approximate(config, name, train, dtype, of=exact[name], parameters=before)
        modules.append(module)
    return TrainAdapter(config, tensors, modules)


def _require_plain(adapter: Adapter) -> Any:
    lora = adapter.config
    if lora.peft_type != PeftType.LORA:
        raise UserError(
            f"{adapter.folder} is an adapter of {lora.peft_type.value}, and ttlora import takes those of LORA"
        )
    if lora.init_lora_weights not in PLAIN_STARTS:
        raise UserError(
            f"{adapter.folder} has init_lora_weights={lora.init_lora_weights!r}, which changes the base weights too: "
            "save it as a plain LoRA adapter first (path_initial_model_for_weight_conversion of PEFT)"
        )
    for field in dataclasses.fields(lora):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(lora, field.name)
        if field.name not in (*KEPT, *READ) and value and value != default:
            raise UserError(
                f"{adapter.folder} has {field.name}={value!r}: its update is not that of plain LoRA, and cannot be "
                "imported"
            )
    return lora


def _factors(adapter: Adapter, lora: Any, name: str) -> tuple[Tensor, Tensor]:
    """``A`` and ``s B`` of a module, in float64."""
    tensors = _by_role(adapter.modules[name], name)
    wanted = {"A.weight", "B.weight"}
    if extra := tensors.keys() - wanted:
        raise UserError(f"'{name}' has lora_{min(extra)}, which is no part of plain LoRA on a linear layer")
    infos = [adapter.modules[name][tensors[role]] for role in sorted(wanted)]
    if any(len(info.shape) != 2 for info in infos):
        shown = " and ".join(str(list(info.shape)) for info in infos)
        raise UserError(
            f"the factors of '{name}' have the sizes {shown} and are not two matrices: only linear layers can be "
            "imported"
        )
    A, B = (adapter.load(tensors[role]).double() for role in sorted(wanted))
    if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
        raise UserError(f"the factors of '{name}' are not finite: the training diverged, or the file is damaged")
    r, pattern = len(A), lora.alpha_pattern or {}
    alpha = look_up(pattern, name, lora.lora_alpha)
    return A, B * (alpha / (math.sqrt(r) if lora.use_rslora else r))


def _by_role(tensors: Mapping[str, Any], name: str) -> dict[str, str]:
    """The keys of a module's tensors, by what follows ``<module>.lora_`` in them."""
    return {key.removeprefix(MODEL_PREFIX).removeprefix(f"{name}.lora_"): key for key in tensors}
