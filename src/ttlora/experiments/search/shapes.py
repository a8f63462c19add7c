"""The shapes of a search: the matrices that they have to fit, those that are generated, and the paper's."""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from ttlora.errors import UserError
from ttlora.experiments.counts import skeleton_of
from ttlora.experiments.search.presets import Preset
from ttlora.finetune.recipe import Recipe
from ttlora.planner.targets import adapted_modules, resolve_targets
from ttlora.tensor_train import TTShape, aligned_dims
from ttlora.tuners.targets import require_matches
from ttlora.tuners.tt_lora import TTLoraConfig, resolve_update
from ttlora.tuners.tt_lora.config import by_pattern

Sizes = Mapping[str, tuple[int, int]]
Shape = list[int] | dict[str, list[int]]


def adapted_sizes(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix that tt-lora adapts, by the name of its module; no weights are read.

    Args:
        recipe: A recipe with the method's defaults, of which the shape does not matter.

    Raises:
        UserError: There is no such model, or it has no such targets.
    """
    model = skeleton_of(recipe).model
    try:
        targets: Any = recipe.targets
        settings: dict[str, Any] = recipe.settings or {}  # type: ignore[assignment]
        return adapted_modules(model, TTLoraConfig(target_modules=resolve_targets(model, targets), **settings))
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


def build_trains(recipe: Recipe, sizes: Sizes) -> tuple[TTShape, ...]:
    """The shape of the train of each adapted matrix, with ranks clipped to what its bonds can have.

    Args:
        recipe: A recipe with the method's defaults.
        sizes: Rows and columns by module name.

    Raises:
        UserError: The recipe's shape or ranks do not fit a matrix.
    """
    shapes: dict[str, Any] = {"shape_pattern": recipe.shape} if isinstance(recipe.shape, dict) else {}
    try:
        config = TTLoraConfig(r=recipe.r, **(shapes or {"shape": recipe.shape}), **(recipe.settings or {}))  # type: ignore[arg-type]
        require_matches("shape", shapes.get("shape_pattern", {}), sizes)
        return tuple(resolve_update(config, name, *size).shape for name, size in sizes.items())
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


def generate_shapes(sizes: Sizes) -> list[Shape]:
    """Near-equal aligned shapes of ever more cores: two, four, and so on, as long as more of them save parameters.

    Args:
        sizes: Rows and columns by module name.
    """
    shapes: list[Shape] = []
    for side in count(1):
        shape = _as_shape({name: aligned_dims(*size, side) for name, size in sizes.items()})
        if shapes and shape == shapes[-1]:
            break
        shapes.append(shape)
    return shapes


def fit_preset(preset: Preset, sizes: Sizes) -> tuple[list[Shape], list[str]]:
    """The shapes of a preset that fit all matrices, and notes on those that are left out or changed.

    A matrix with fewer rows than the preset is for, as in grouped-query attention, has each shape without what it has
    too much: for a quarter of the rows, a 4 among its row dims goes, or else the first of the largest row dims that 4
    divides has a quarter. [16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16] for 4096 x 4096 comes to
    [16, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16] for 1024 x 4096.

    Args:
        preset: The preset.
        sizes: Rows and columns by module name.
    """
    shapes: list[Shape] = []
    notes = []
    for dims in preset.shapes:
        fitted = {name: _narrow(preset, dims, out_features) for name, (out_features, _) in sizes.items()}
        unfit = [size for name, size in sizes.items() if math.prod(fitted[name]) != math.prod(size)]
        if unfit:
            out_features, in_features = unfit[0]
            notes.append(
                f"left out of space {preset.name}: shape {list(dims)}, whose product is {math.prod(dims):,}, where the "
                f"{out_features} x {in_features} matrix has {out_features * in_features:,} entries"
            )
        else:
            shapes.append(_as_shape(fitted))
    narrower = {size[0] for size in sizes.values()} - {preset.out_features}
    if shapes and narrower:
        notes.append(
            f"space {preset.name} is for {preset.out_features} x {preset.in_features}: matrices with "
            f"{', '.join(map(str, sorted(narrower)))} rows have its shapes with smaller row dims"
        )
    return shapes, notes


def _narrow(preset: Preset, dims: tuple[int, ...], out_features: int) -> tuple[int, ...]:
    """The dims for a matrix of so many rows, or as they are if they cannot be had for it."""
    factor, rest = divmod(preset.out_features, out_features)
    boundary = next((at for at in range(len(dims)) if math.prod(dims[:at]) == preset.out_features), None)
    if factor < 2 or rest or boundary is None:
        return dims
    rows, columns = list(dims[:boundary]), dims[boundary:]
    if factor in rows:
        rows.remove(factor)
    elif divisible := [k for k in rows if k % factor == 0]:
        rows[rows.index(max(divisible))] //= factor
    return (*rows, *columns)


def _as_shape(dims: Mapping[str, Sequence[int]]) -> Shape:
    """Dims by module name as a recipe has them: one list where all agree, or else by the shortest endings that do."""
    lists = {name: list(its_dims) for name, its_dims in dims.items()}
    first, *others = lists.values()
    if all(other == first for other in others):
        return first
    agreed: dict[str, list[int] | None] = {}
    for name, its_dims in lists.items():
        for ending in _endings(name):
            agreed[ending] = its_dims if agreed.get(ending, its_dims) == its_dims else None
    clear = {ending: its_dims for ending, its_dims in agreed.items() if its_dims is not None}
    shortest = [next((ending for ending in _endings(name) if ending in clear), "") for name in lists]
    # where one layer is not like another, each module goes by its whole name
    return {ending: clear[ending] for ending in shortest} if all(shortest) else by_pattern(lists)


def _endings(name: str) -> list[str]:
    """The endings of a module's path, the shortest first; the number of a layer is any number."""
    parts = [r"\d+" if part.isdigit() else part for part in name.split(".")]
    return [".".join(parts[at:]) for at in reversed(range(len(parts)))]
