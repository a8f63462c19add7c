"""What every adapter checks: its config, which may come from anywhere, and the layers that it is put on."""

import inspect
import math
import re
from functools import lru_cache
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

    ``config.from_file`` becomes whether it is that of a saved adapter, which says `inference_mode` or what the adapter
    was made for.

    Raises:
        ValueError: It does not.
    """
    config.from_file = config.inference_mode or bool(getattr(config, "weight_sizes", None))
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


def require_called(parent: nn.Module, child_name: str, name: str) -> None:
    """Refuse a target whose weight the module around it reads, past whatever is put in the target's place.

    Mamba and its like hand the weights of ``conv1d`` and ``out_proj`` to a fused kernel, ``nn.MultiheadAttention`` that
    of its ``out_proj``; an adapter there would change nothing and learn nothing.

    Args:
        parent: The module that holds the target.
        child_name: The target's name in it.
        name: Its name in the model.

    Raises:
        ValueError: The weight is read so.
    """
    kind: Any = type(parent)
    if _reads_weight(kind, child_name):
        raise ValueError(
            f"Target module {name} cannot be adapted: {kind.__name__} reads its weight past any adapter (as a "
            f"fused kernel does); leave {child_name} out of target_modules, or name it in exclude_modules"
        )


@lru_cache(maxsize=1024)
def _reads_weight(kind: type, child: str) -> bool:
    """Whether a module's methods hand on a child's weight, rather than to ask for its dtype or device."""
    reading = re.compile(rf"self\.{re.escape(child)}\.weight(,?$|\.squeeze\(| @)", re.MULTILINE)
    return any(reading.search(source) for source in _sources(kind))


@lru_cache(maxsize=64)
def _sources(kind: type) -> list[str]:
    """The source of a class's methods, but for those that prepare weights."""
    found = []
    for owner in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(owner).items():
            if inspect.isfunction(method) and not re.search("init|reset|tie|load", name):
                try:
                    found.append(inspect.getsource(method))
                except (OSError, TypeError):  # what was typed in has none
                    continue
    return found
