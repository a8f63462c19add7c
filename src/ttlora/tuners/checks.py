"""What every adapter's config is checked for; a config may come from anywhere."""

import math
from typing import Any

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
