"""A TT-LoRA adapter as a plain LoRA adapter, which everything that serves adapters reads.

The update of each module is a low-rank matrix ``ΔW = B A`` whose factors are contractions of the cores: nothing is
approximated, there is no SVD, and the base model need not be there. What those who read it ask for:

- vLLM (``PEFTHelper``): ``r``, ``lora_alpha`` and ``target_modules``, one scale ``lora_alpha / r`` for all modules, so
  no patterns; it refuses ``modules_to_save`` and DoRA. Modules are found by the names of the tensors, of which the last
  part has to be a layer it can adapt. ``r`` may be up to ``--max-lora-rank``: 16 by default, 512 at most.
- SGLang (``LoRAConfig``): the same keys, ``target_modules`` as a list, of which it takes the last parts, never as a
  regular expression.
- llama.cpp (``convert_lora_to_gguf.py``): ``lora_alpha`` of the config; the scale is ``lora_alpha`` over the number of
  rows of ``lora_A``. Any tensor but ``<module>.lora_A.weight`` and ``<module>.lora_B.weight`` is an error.

So all modules are padded with zeros to one ``r``, ``lora_alpha`` is ``r``, and the update's scale is in the factors.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

from ttlora.adapters.gguf import require_new_file, write_gguf
from ttlora.adapters.read import MODEL_PREFIX, Adapter, read_adapter, require_tt_lora
from ttlora.adapters.write import Dtype, as_dtype, write_adapter
from ttlora.errors import UserError
from ttlora.tensor_train import Update
from ttlora.tuners.shared.config import SharedConfig
from ttlora.tuners.shared.update import OwnUpdate
from ttlora.tuners.tt_lora import saved_kind, saved_update
from ttlora.tuners.tt_lora.config import saved_sizes
from ttlora.values import complaint
from ttlora.whole_files import require_free

Format = Literal["peft", "gguf"]

# Far above the rows of any vocabulary; a file of a few cores can claim any size, and factors take memory by it.
LARGEST_SIDE = 2**24


@dataclass(frozen=True)
class Lora:
    """A plain LoRA adapter.

    Attributes:
        config: Its config.
        tensors: ``A`` (r x in) and ``B`` (out x r) of each module, by their key in the file.
        ranks: The inner size of ``B A`` before it was padded to ``config.r``, by module.
    """

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]


def export(
    adapter: str | Path,
    output: str | Path,
    dtype: Dtype = "float32",
    format: Format = "peft",
    base: str | Path | None = None,
) -> Lora:
    """Write a TT-LoRA adapter as a plain LoRA adapter with exactly the same update.

    Args:
        adapter: A folder with a saved TT-LoRA adapter, or the output folder of `train`.
        output: Folder for the LoRA adapter, empty or not there yet; with ``gguf`` a file, not there yet.
        dtype: Number format of the factors; float32 is exact.
        format: ``peft`` for a folder, which needs no base model; ``gguf`` for a file of llama.cpp, written by its
            converter: ``convert_lora_to_gguf.py`` in the folder that the variable ``LLAMA_CPP`` names, or on the
            ``PATH``.
        base: With ``gguf``, the folder of the base model, of which ``config.json`` is read.

    Returns:
        What was written.

    Raises:
        UserError: There is no such adapter, or it holds what cannot go into a LoRA adapter, or the output is in use, or
            there is no converter, or the base model is not the adapter's.
        RunError: The converter failed, or the output cannot be written.

    Examples:
        >>> import ttlora
        >>> lora = ttlora.export("adapter", "adapter-as-lora")
        >>> lora.config.r == max(lora.ranks.values())
        True
    """
    if problem := complaint("`format`", format, Format):
        raise UserError(problem)
    if format == "peft":
        if base is not None:
            raise UserError("`base` goes with `format` gguf alone: a folder of PEFT needs no base model")
        path = require_free(output)
        lora = to_lora(read_adapter(adapter), as_dtype(dtype))
        write_adapter(path, lora.config, lora.tensors, "An adapter of TT-LoRA as plain LoRA, with the same update.")
        return lora
    if not base:
        raise UserError("`format` gguf needs `base`: name the folder with the base model's config.json")
    path = require_new_file(output)
    lora = to_lora(read_adapter(adapter), as_dtype(dtype))
    write_gguf(path, base, lora.config, lora.tensors)
    return lora


def to_lora(adapter: Adapter, dtype: torch.dtype = torch.float32) -> Lora:
    """The plain LoRA adapter with the same update.

    The factors are computed as the adapted layer computes them, in float32, and then cast.

    Args:
        adapter: A checked folder of a TT-LoRA adapter.
        dtype: Number format of the factors.

    Raises:
        UserError: It is of another method, or holds what a plain LoRA adapter has no place for; the message names it.
    """
    config, updates = _updates(adapter)
    factors = _factors(adapter, updates)
    ranks = {name: len(A) for name, (A, _) in factors.items()}
    r = max(ranks.values())
    tensors = {}
    for name, (A, B) in factors.items():
        missing = r - ranks[name]
        tensors[f"{MODEL_PREFIX}{name}.lora_A.weight"] = F.pad(A, (0, 0, 0, missing)).to(dtype)
        tensors[f"{MODEL_PREFIX}{name}.lora_B.weight"] = F.pad(B, (0, missing)).to(dtype)
    return Lora(_lora_config(config, r, list(factors)), tensors, ranks)


def lora_bytes(adapter: Adapter) -> int:
    """The size of the tensors of `to_lora` in float32, before any is made: a file of a few cores can claim any sizes.

    Args:
        adapter: A checked folder of a TT-LoRA adapter.

    Raises:
        UserError: As for `to_lora`.
    """
    _, updates = _updates(adapter)
    r = max(own.update.factor_rank for own in updates.values())
    return 4 * r * sum(sum(own.sizes) for own in updates.values())


@dataclass(frozen=True)
class _Own:
    """What a module has of an adapter: its update, ``[out, in]``, and the module that the file names the entries by."""

    update: Update | OwnUpdate
    sizes: Sequence[int]
    saved_as: str


def _updates(adapter: Adapter) -> tuple[Any, dict[str, _Own]]:
    """The config, and the update of each module, all of which plain LoRA can hold."""
    if isinstance(shared := adapter.config, SharedConfig):
        _require_plain(adapter, dict.fromkeys(shared.weight_sizes, "linear"), shared.weight_sizes)
        return shared, {
            module: _Own(update, shared.weight_sizes[module], name)
            for name, updates in shared.saved_groups().items()
            for module, update in updates.items()
        }
    config = require_tt_lora(adapter, "export")
    sizes = {name: saved_sizes(config, name) for name in adapter.modules}
    _require_plain(adapter, {name: saved_kind(config, name) for name in sizes}, sizes)
    return config, {name: _Own(saved_update(config, name), sizes[name], name) for name in sizes}


def _factors(adapter: Adapter, updates: Mapping[str, _Own]) -> dict[str, tuple[Tensor, Tensor]]:
    """``A`` and ``B`` of each module; those of one update come from one contraction, which is what takes the time."""
    entries = {name: adapter.entries(own.saved_as) for name, own in updates.items()}
    alike: dict[Any, list[str]] = defaultdict(list)
    for name, own in updates.items():
        alike[own.update, entries[name].dtype].append(name)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for (update, _), names in alike.items():
        A, B = update.factors(torch.stack([entries[name] for name in names]))
        factors |= dict(zip(names, zip(A, B, strict=True), strict=True))
    return {name: factors[name] for name in updates}


def _require_plain(adapter: Adapter, kinds: Mapping[str, str], sizes_of: Mapping[str, Sequence[int]]) -> None:
    way_out = "; ttlora merge writes the whole model with it"
    # the weight under an adapted layer is frozen; PEFT saves a copy of it where the layer is the model's output
    names = [key.removeprefix(MODEL_PREFIX) for key in adapter.others if not key.endswith(".base_layer.weight")]
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise UserError(
            f"{adapter.folder} cannot go into a plain LoRA adapter, which has no place for what was trained beside the "
            f"updates: {shown}{way_out}"
        )
    for name, kind in kinds.items():
        if len(sizes := sizes_of[name]) == 3:
            kind = f"stack of {sizes[0]} experts"
        if max(sizes) > LARGEST_SIDE:
            raise UserError(
                f"'{name}' is {' x '.join(map(str, sizes))} by the config of {adapter.folder}, larger than any layer: "
                "the config is damaged"
            )
        if kind != "linear":
            raise UserError(
                f"'{name}' cannot go into a plain LoRA adapter for serving, which holds linear layers alone: it is a "
                f"module of the kind '{kind}'{way_out}"
            )


def _lora_config(config: Any, r: int, names: list[str]) -> LoraConfig:
    targets: dict[str, Any] = {"target_modules": sorted(names)}
    if not isinstance(config.target_modules, str) and not any("." in name for name in config.target_modules or ["."]):
        # the same names hit the same modules
        targets = {
            "target_modules": sorted({name.rpartition(".")[2] for name in names}),
            "exclude_modules": config.exclude_modules,
            "layers_to_transform": config.layers_to_transform,
            "layers_pattern": config.layers_pattern,
        }
    return LoraConfig(
        r=r,
        lora_alpha=r,
        lora_dropout=config.dropout,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        auto_mapping=config.auto_mapping,
        inference_mode=True,
        **targets,
    )
