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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

from ttlora.adapters.read import MODEL_PREFIX, Adapter, read_adapter, require_tt_lora
from ttlora.adapters.write import Dtype, as_dtype, write_adapter
from ttlora.errors import UserError
from ttlora.tuners.tt_lora import TTLoraConfig, saved_kind, saved_update
from ttlora.tuners.tt_lora.config import saved_sizes
from ttlora.whole_files import require_free

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


def export(adapter: str | Path, output: str | Path, dtype: Dtype = "float32") -> Lora:
    """Write a TT-LoRA adapter as a plain LoRA adapter with exactly the same update; the base model is not needed.

    Args:
        adapter: A folder with a saved TT-LoRA adapter, or the output folder of `train`.
        output: Folder for the LoRA adapter; empty or not there yet.
        dtype: Number format of the factors; float32 is exact.

    Returns:
        What was written.

    Raises:
        UserError: There is no such adapter, or it holds what cannot go into a LoRA adapter, or the output is in use.

    Examples:
        >>> import ttlora
        >>> lora = ttlora.export("adapter", "adapter-as-lora")
        >>> lora.config.r == max(lora.ranks.values())
        True
    """
    path = require_free(output)
    lora = to_lora(read_adapter(adapter), as_dtype(dtype))
    write_adapter(path, lora.config, lora.tensors, "An adapter of TT-LoRA as plain LoRA, with the same update.")
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
    config = require_tt_lora(adapter, "export")
    _require_plain(adapter, config)
    updates = {name: saved_update(config, name) for name in adapter.modules}
    ranks = {name: update.shape.factor_rank for name, update in updates.items()}
    r = max(ranks.values())
    tensors = {}
    for name, update in updates.items():
        (key,) = adapter.modules[name]
        A, B = update.factors(adapter.load(key))
        missing = r - ranks[name]
        tensors[f"{MODEL_PREFIX}{name}.lora_A.weight"] = F.pad(A, (0, 0, 0, missing)).to(dtype)
        tensors[f"{MODEL_PREFIX}{name}.lora_B.weight"] = F.pad(B, (0, missing)).to(dtype)
    return Lora(_lora_config(config, r, list(adapter.modules)), tensors, ranks)


def _require_plain(adapter: Adapter, config: TTLoraConfig) -> None:
    way_out = "; ttlora merge writes the whole model with it"
    # the weight under an adapted layer is frozen; PEFT saves a copy of it where the layer is the model's output
    names = [key.removeprefix(MODEL_PREFIX) for key in adapter.others if not key.endswith(".base_layer.weight")]
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise UserError(
            f"{adapter.folder} cannot go into a plain LoRA adapter, which has no place for what was trained beside the "
            f"updates: {shown}{way_out}"
        )
    for name in adapter.modules:
        kind = saved_kind(config, name)
        if len(sizes := saved_sizes(config, name)) == 3:
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


def _lora_config(config: TTLoraConfig, r: int, names: list[str]) -> LoraConfig:
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
