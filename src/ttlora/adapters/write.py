"""Write an adapter folder: it appears whole or not at all, and nothing is overwritten."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import PeftConfig, PeftType
from safetensors.torch import save_file
from torch import Tensor

from ttlora.adapters.card import CARD, adapter_card
from ttlora.adapters.read import CONFIG_NAME, MODEL_PREFIX, WEIGHTS_NAME
from ttlora.errors import UserError
from ttlora.values import complaint
from ttlora.whole_files import whole_folder

Dtype = Literal["float32", "bfloat16", "float16"]


def as_dtype(name: Dtype) -> torch.dtype:
    """The number format of that name.

    Raises:
        UserError: It is not one of `Dtype`.
    """
    if problem := complaint("`dtype`", name, Dtype):
        raise UserError(problem)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def write_adapter(
    output: str | Path, config: PeftConfig, tensors: Mapping[str, Tensor], how: str = "An adapter."
) -> None:
    """Write a folder that PEFT loads, with a model card.

    Args:
        output: A folder that is empty or not there yet.
        config: The adapter's config.
        tensors: Its tensors by their key in the file.
        how: What it was made from, for the card, as a sentence.

    Raises:
        UserError: ``output`` holds something, or a tensor has entries that are not finite.
        RunError: The folder cannot be written.
    """
    for key, tensor in tensors.items():
        if not _is_finite(tensor):
            name = key.removeprefix(MODEL_PREFIX)
            raise UserError(
                f"'{name}' has entries that are not finite in {str(tensor.dtype).removeprefix('torch.')}: "
                "the training diverged, the file is damaged, or the number format is too narrow"
            )
    with whole_folder(output, last=CONFIG_NAME) as folder:
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS_NAME, {"format": "pt"}
        )
        # sets in the order of their names, so that the same adapter gives the same file
        content = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)
        (folder / CONFIG_NAME).write_text(content + "\n", "utf-8")
        size = (folder / WEIGHTS_NAME).stat().st_size
        card = adapter_card(config.base_model_name_or_path or "", PeftType(config.peft_type).value, how, size)
        (folder / CARD).write_text(card, "utf-8")


def _is_finite(tensor: Tensor) -> bool:
    # of eight-bit floats, torch cannot tell
    readable = tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor
    return bool(torch.isfinite(readable).all())
