"""The keys of a user's YAML file: whether they are known, and whether those of a recipe have values that fit."""

import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.values import complaint, fits, nearest, shown

HINTS = typing.get_type_hints(Recipe)
NUMBERS = tuple(key for key, hint in HINTS.items() if fits(0.5, hint) and hint is not Any)


def require_known(keys: Iterable[Any], known: Sequence[str], place: str, instead: Mapping[str, str]) -> None:
    """Refuse an unknown key.

    Args:
        keys: The keys that are there.
        known: Those that there can be.
        place: Where they stand, for the message.
        instead: What to do instead of setting a key of a recipe that has no place there.

    Raises:
        UserError: A key is not known.
    """
    for key in keys:
        if key not in known:
            close = nearest(str(key), known)
            hint = instead.get(key) or (f"did you mean {close}?" if close else f"there are {', '.join(known)}")
            raise UserError(f"{place}: unknown key {key!r}: {hint}")


def recipe_keys(content: Mapping[str, Any], names: Sequence[str], place: str) -> dict[str, Any]:
    """The recipe keys of these names, if each value is of the type and in the range that a recipe wants.

    Raises:
        UserError: A value is not; the message names it.
    """
    keys = {key: value for key, value in content.items() if key in names}
    for key, value in keys.items():
        require_type(key, value, HINTS[key], place)
    check_recipe(place, **keys)
    # 16 and 16.0 are the same recipe
    return {key: float(value) if isinstance(value, int) and key in NUMBERS else value for key, value in keys.items()}


def require_type(key: str, value: Any, hint: Any, place: str) -> None:
    """Refuse a value that is not of its key's type.

    Raises:
        UserError: It is not.
    """
    if problem := complaint(key, value, hint):
        raise UserError(f"{place}: {problem}")


def check_recipe(place: str, **keys: Any) -> Recipe:
    """A recipe with these keys.

    Raises:
        UserError: A value is out of range.
    """
    try:
        return Recipe(**{"model": "model", "task": "task", "output": "output", **keys})
    except UserError as error:
        raise UserError(f"{place}: {plain(error)}") from None


def plain(error: UserError) -> str:
    """A message as a file's keys need it, without the backticks that make flags of a recipe's arguments."""
    return str(error).replace("`", "")


def given(keys: Mapping[str, Any], name: str) -> str:
    """A key's value as a message shows it."""
    return shown(keys[name]) if name in keys else "missing"
