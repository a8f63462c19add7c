"""What every adapter checks: its config, which may come from anywhere, and the layers that it is put on."""

import math
from typing import Any

from peft.utils import resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

LARGEST_ORDER = 256


def is_size(value: object) -> bool:
    """Whether a value can be a dim, a rank or the side of a matrix."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def settle_targets(config: Any) -> None:
    """Make sets of a config's lists of modules, as PEFT does, and check that what chooses layers goes together.

    Raises:
        ValueError: It does not.
    """
    for name in ("target_modules", "exclude_modules"):
        if isinstance(modules := getattr(config, name), list):
            setattr(config, name, set(modules))
    if isinstance(config.target_modules, str):
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(config, name) is not None:
                raise ValueError(f"{name} needs target_modules as a list of names, not as a regular expression")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ValueError("layers_pattern names the list of layers for layers_to_transform, which is missing")


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is ``nn.Linear``, quantised or not, or ``transformers``' ``Conv1D``."""
    if isinstance(layer, nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(layer)
    return backend is not None and backend.layer_type == "linear"


def require_linear(layer: nn.Module, name: str) -> None:
    """Refuse a target that is not linear.

    Raises:
        TypeError: It is not; the message names it.
    """
    if not is_linear(layer):
        raise TypeError(
            f"Target module {name} is not supported: {type(layer).__name__} is neither `torch.nn.Linear` (quantised or "
            "not) nor `transformers.pytorch_utils.Conv1D`."
        )
