"""Check values against types, say in plain words what is wrong with one, and show values in messages.

pydantic would be one more package for the install of the core, whose configs need these checks too, and its messages do
not say what to do.
"""

import re
import reprlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import date
from difflib import get_close_matches
from typing import Any, Literal, TypeGuard, TypeVar

T = TypeVar("T")

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80


def complaint(name: str, value: Any, hint: Any) -> str | None:
    """Say what is wrong with a value, as "epochs is 'three', and has to be a whole number"; None: nothing is wrong.

    Whole numbers are numbers; true and false are none, and nothing but text is text: what YAML made of a word is no
    longer known.

    Args:
        name: What the value is called.
        value: The value.
        hint: The type that it has to have.
    """
    if fits(value, hint):
        return None
    if value is None:
        return f"{name} has no value: give one or leave it out"
    for kind in kinds(hint):
        if (part := _part(value, kind)) and (found := complaint(f"{name} of {part[0]}", *part[1:])):
            return found
    quotes = ": put text in quotes" if _is_unquoted_text(value, hint) else ""
    return f"{name} is {shown(value)}, and has to be {wanted(hint)}{quotes}"


def from_fields(kind: type[T], content: object) -> T:
    """Build a dataclass from the values of its fields as JSON holds them, with lists for tuples.

    Args:
        kind: The dataclass.
        content: Field names with values.

    Raises:
        ValueError: The content is no mapping, lacks a field, has an unknown one, or has a value of a wrong type.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it is {shown(content)}, and has to be names with values")
    hints = typing.get_type_hints(kind)
    needed = [
        item.name
        for item in fields(kind)  # type: ignore[arg-type]
        if item.default is MISSING and item.default_factory is MISSING
    ]
    if missing := [name for name in needed if name not in content]:
        raise ValueError(f"it has no {', '.join(missing)}")
    if unknown := sorted(map(str, content.keys() - hints.keys())):
        raise ValueError(f"it has the unknown key {', '.join(unknown)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    for name, value in values.items():
        if problem := complaint(name, value, hints[name]):
            raise ValueError(problem)
    return kind(**values)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = [parts[0]] * len(value) if parts[-1] is ... else parts
        return len(items) == len(value) and all(map(fits, value, items))
    if origin in (dict, Mapping):
        # names such as 0 and 1 are numbers in YAML
        return isinstance(value, dict) and all(_is_name(key) and fits(item, parts[1]) for key, item in value.items())
    if parts:
        return any(fits(value, part) for part in parts)
    if hint is int:
        return is_whole(value)
    if hint is float:
        return is_whole(value) or isinstance(value, float)
    return isinstance(value, hint)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float can hold."""
    return (is_whole(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, without None; of anything else, itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for kind in typing.get_args(hint) if kind is not type(None))
    return (hint,)


def wanted(hint: Any) -> str:
    """The values of a type in plain words, such as "a whole number"."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        list[int]: "a list of whole numbers",
    }
    if hint in words:
        return words[hint]
    origin = typing.get_origin(hint)
    if origin is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if origin in (list, tuple):
        return "a list of names"
    if origin in (dict, Mapping):
        return "names with values"
    return " or ".join(map(wanted, kinds(hint)))


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The name that was meant: one whose words begin with these letters, or else one that is written much like it.

    Args:
        name: What was given, such as "lr".
        names: The names that there are, such as "learning-rate"; hyphens and underscores count for nothing.
    """
    asked = re.sub("[-_]", "", name.lower())
    plain = {re.sub("[-_]", "", known.lower()): known for known in reversed(names)}
    initials = {"".join(re.findall("(?<![a-z0-9])[a-z0-9]", known.lower())): known for known in reversed(names)}
    close = get_close_matches(asked, plain, n=1)
    return initials.get(asked) or (plain[close[0]] if close else None)


def shown(value: Any) -> str:
    """A value of YAML or JSON for a message, cut if it is long."""
    return "nothing" if value is None else short_repr(value)


def short_repr(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    return _REPR.repr(value)


def short(value: Any) -> str:
    """A value as it is shown in a label."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(short, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={short(part)}" for key, part in value.items())
    return str(value)


def _part(value: Any, kind: Any) -> tuple[str, Any, Any] | None:
    """The first part of a dict that is not of the type of its parts: its name, itself, and that type."""
    if not isinstance(value, dict) or typing.get_origin(kind) not in (dict, Mapping):
        return None
    key_type, item_type = typing.get_args(kind)
    for key, item in value.items():
        if not _is_name(key):
            return "a name", key, key_type
        if not fits(item, item_type):
            return shown(key), item, item_type
    return None


def _is_name(key: Any) -> bool:
    return isinstance(key, str) or is_whole(key)


def _is_unquoted_text(value: Any, hint: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    is_text = str in kinds(hint) and int not in kinds(hint)
    return is_text and any(isinstance(item, bool | int | float | date) for item in values)
