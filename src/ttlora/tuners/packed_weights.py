"""4-bit weights that bitsandbytes has packed anew for the processor that computes with them."""

from typing import Any

from torch import nn


def unpack_weight(layer: nn.Module) -> None:
    """Give a layer its 4-bit weight back as it was saved, if bitsandbytes has packed it anew.

    Where a processor has AVX512-BF16, `bitsandbytes.nn.Linear4bit` packs its weight in an order of its own the first
    time that it infers on it. PEFT's functions that read and write quantised weights do not know that order: what they
    read would be another matrix. The next inference packs it again.

    Args:
        layer: Any layer.
    """
    weight: Any = getattr(layer, "weight", None)
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
