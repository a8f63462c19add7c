"""What a setting can be in a search: one of several values, or a number of a range."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ttlora.errors import UserError
from ttlora.experiments.keys import check_recipe, recipe_keys, require_known, require_type
from ttlora.values import fits

SEARCHABLE = (
    "shape",
    "r",
    "alpha",
    "dropout",
    "learning_rate",
    "head_learning_rate",
    "weight_decay",
    "warmup",
    "batch_size",
)
WHOLE = ("r", "batch_size")
RATES = ("learning_rate", "head_learning_rate")
# so many ranks out of a range: each makes an adapter of its own with each shape
MOST_RANKS = 32
GRID_POINTS = 5


@dataclass(frozen=True)
class Choices:
    """Values of which each is as likely as any other.

    Attributes:
        values: The values, all different.
    """

    values: tuple[Any, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.values)

    def at(self, place: float) -> Any:
        """The value at a place from 0 up to, but not, 1."""
        return self.values[int(place * len(self.values))]

    def settle(self, value: Any) -> Any:
        """The value as a recipe has it."""
        return value

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid has."""
        return self.values


@dataclass(frozen=True)
class Range:
    """The numbers from one to another, both among them.

    Attributes:
        low: The least.
        high: The greatest.
        scale: On which scale all are as likely.
        whole: Whether they are whole numbers; others have three significant digits, so that recipes read well.
    """

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False

    @property
    def count(self) -> int | None:
        """How many there are; None: as good as endlessly many."""
        return round(self.high - self.low) + 1 if self.whole else None

    def at(self, place: float) -> float:
        """The number at a place from 0 to 1 on the scale."""
        if self.scale == "log":
            return self.settle(self.low * (self.high / self.low) ** place)
        return self.settle(self.low + (self.high - self.low) * place)

    def settle(self, value: float) -> float:
        """The number of the range that is nearest."""
        rounded = round(value) if self.whole else float(f"{value:.2e}")
        return min(max(rounded, self.low), self.high)

    def grid(self, points: int = GRID_POINTS) -> tuple[float, ...]:
        """Numbers at even distances on the scale, from the least to the greatest."""
        return tuple(dict.fromkeys(self.at(point / (points - 1)) for point in range(points)))


Domain = Choices | Range


def read_domain(key: str, value: Any, place: str) -> Domain:
    """What a search's file lets a setting be.

    A list is a choice of its values, and ``{from: 1e-4, to: 1e-2, scale: log}`` a range. Without a scale, that of
    learning rates is log and any other linear. A range of ``r`` stands for up to 32 of its numbers at even distances.

    Args:
        key: The recipe's key.
        value: What the file says.
        place: Where it stands, for messages.

    Raises:
        UserError: It is neither, or a recipe cannot have such a value.
    """
    if isinstance(value, dict) and key != "shape":
        return _read_range(key, value, place)
    if not isinstance(value, list) or not value or (key == "shape" and fits(value, list[int])):
        form = (
            "a list of shapes, as [[16, 24, 24, 16]], or auto"
            if key == "shape"
            else "a list of values, as [1, 2], or a range, as {from: 1, to: 2}"
        )
        raise UserError(f"{place}: {key} is {value!r}, and has to be {form}")
    items = [_read_value(key, item, place) for item in value]
    return Choices(tuple(item for index, item in enumerate(items) if item not in items[:index]))


def _read_range(key: str, content: Mapping[str, Any], place: str) -> Domain:
    place = f"{place}: {key}"
    require_known(content, ["from", "to", "scale"], place, {})
    whole = key in WHOLE
    ends = []
    for name in ("from", "to"):
        if name not in content:
            raise UserError(f"{place} is {content!r}: {name} is missing; write {{from: 1, to: 2}}")
        require_type(name, content[name], int if whole else float, place)
        ends.append(_read_value(key, content[name], place))
    low, high = ends
    scale = content.get("scale", "log" if key in RATES else "linear")
    require_type("scale", scale, Literal["linear", "log"], place)
    if low >= high:
        raise UserError(f"{place} goes from {low:g} to {high:g}: the first has to be the smaller")
    if scale == "log" and low <= 0:
        raise UserError(f"{place} goes from {low:g}, which has no place on a log scale: use scale: linear")
    numbers = Range(low, high, scale, whole)
    return Choices(numbers.grid(min(round(high - low) + 1, MOST_RANKS))) if key == "r" else numbers


def _read_value(key: str, value: Any, place: str) -> Any:
    """A value as a recipe has it, which reads shapes and ranks from text too."""
    keys = recipe_keys({key: value}, [key], place)
    return getattr(check_recipe(place, **keys), key)
