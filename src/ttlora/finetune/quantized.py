"""Base models whose weights are held in 4 or 8 bits: which library does it, and what stays whole."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from ttlora.errors import UserError

Bits = Literal["4bit", "8bit"]


def require_library(bits: Bits) -> None:
    """Refuse to quantise where no library is there that does it.

    Raises:
        UserError: Neither bitsandbytes nor torchao is installed.
    """
    if find_spec("bitsandbytes") is None and find_spec("torchao") is None:
        raise UserError(
            f"`quantize` {bits} needs bitsandbytes, which is not installed: python -m pip install bitsandbytes"
        )


def quantized(bits: Bits, dtype: torch.dtype | None, whole: Sequence[str]) -> dict[str, Any]:
    """The options of ``from_pretrained`` for a quantised model.

    4 bits are bitsandbytes' NF4 with quantised constants (Dettmers et al. 2023, QLoRA). Where bitsandbytes is not
    installed, torchao quantises the weights alone.

    Args:
        bits: The bits of a weight.
        dtype: In which the products are computed; None: bfloat16.
        whole: Modules that stay as they are, such as a head that trains; none: the output layer.
    """
    skipped = list(whole) or None
    config: Any
    if find_spec("bitsandbytes") is not None:
        config = BitsAndBytesConfig(
            load_in_4bit=bits == "4bit",
            load_in_8bit=bits == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype or torch.bfloat16,
            llm_int8_skip_modules=skipped,
        )
    else:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

        kind = Int4WeightOnlyConfig() if bits == "4bit" else Int8WeightOnlyConfig()
        config = TorchAoConfig(kind, modules_to_not_convert=skipped)
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}, "dtype": dtype or torch.bfloat16}


def entries(weight: torch.Tensor) -> int:
    """The number of a weight's entries, of which bitsandbytes packs two of 4 bits into one."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)
