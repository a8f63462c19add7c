"""Whether a value from YAML is of a recipe key's type, what values that type has, and how a value is shown."""

import typing
from typing import Any, Literal


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; whole numbers are numbers, and true and false are not."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        # a recipe turns names such as 0 and 1 into text
        return isinstance(value, dict) and all(isinstance(k, str | int) and fits(v, parts[1]) for k, v in value.items())
    if parts:
        return any(fits(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def wanted(hint: Any) -> str:
    """What values a type has, in words."""
    words = {int: "a whole number", float: "a number", str: "text", list[int]: "a list of whole numbers"}
    if hint in words:
        return words[hint]
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (list, dict):
        return "a list of names" if typing.get_origin(hint) is list else "names with values"
    return " or ".join(wanted(part) for part in typing.get_args(hint) if part is not type(None))


def short(value: Any) -> str:
    """A value as it is shown in a label."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(short, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={short(part)}" for key, part in value.items())
    return str(value)
