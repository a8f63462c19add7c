"""Values that may be given as text: dims as 16,24,24,16, names as q_proj,v_proj, sizes as 40KB, pairs as 0=no 1=yes."""

import re
import shlex
from typing import Literal

from ttlora.errors import UserError, one_line
from ttlora.values import shown

Shape = Literal["auto"] | list[int] | dict[str, list[int]]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_integers(name: str, text: str) -> list[int]:
    """The whole numbers of ``16,24,24,16``.

    Args:
        name: What the message calls the value.
        text: The text.

    Raises:
        UserError: The text has another form.
    """
    try:
        return [int(number) for number in text.strip("[]() ").split(",")]
    except ValueError:
        raise UserError(f"{name} is {shown(text)}, and has to be whole numbers with commas, as 16,24,24,16") from None


def parse_names(text: str) -> list[str]:
    """The names of ``q_proj, v_proj``; empty ones are left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_shape(text: str) -> Shape:
    """The shape that a text names: "auto", dims as "16,24,24,16", or by module as "q_proj=64,64 v_proj=16,64".

    Raises:
        UserError: The text has another form.
    """
    if text == "auto":
        return "auto"
    if "=" not in text:
        return parse_integers("`shape`", text)
    shapes: dict[str, list[int]] = {}
    for part in text.split():
        module, separator, dims = part.partition("=")
        if not module or not separator or module in shapes:
            problem = f"{module!r} is there twice" if module in shapes else f"cannot read {part!r}"
            raise UserError(f"`shape` is {text!r}: {problem} (wanted: q_proj=64,64 v_proj=16,64)")
        shapes[module] = parse_integers("`shape`", dims)
    return shapes


def parse_pairs(name: str, text: str) -> dict[str, str]:
    """The names and texts of ``a=1 b=text c="two words"``.

    Args:
        name: What the message calls the value.
        text: The text.

    Raises:
        UserError: The text has another form, or a name twice.
    """
    pairs: dict[str, str] = {}
    try:
        for part in shlex.split(text):
            key, equals, value = part.partition("=")
            if not key or not equals:
                raise ValueError(f"cannot read {'it' if part == text else shown(part)}")
            if key in pairs:
                raise ValueError(f"{shown(key)} is there twice")
            pairs[key] = value
    except ValueError as error:
        raise UserError(
            f"{name} is {shown(text)}: {one_line(error)} (wanted: name=value name=value, with quotes around spaces)"
        ) from None
    return pairs


def parse_bytes(name: str, text: str) -> int:
    """The bytes of a size such as 40KB (1000 bytes each), 220KiB (1024 bytes each) or 40000.

    Args:
        name: What the message calls the value.
        text: The size.

    Raises:
        UserError: The text has another form.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match and match[2].upper() in UNITS else 0
    if not size:
        raise UserError(f"{name} '{text}' is no size; write 40KB, 1MB, 220KiB or a number of bytes")
    return size


def parse_parameters(name: str, text: str) -> int:
    """A number of parameters such as 4000, or how many a size such as 8KB holds at 16 bit each.

    Args:
        name: What the message calls the value.
        text: The number or the size.

    Raises:
        UserError: The text has another form.
    """
    if text.strip().isdecimal():
        return int(text)
    return parse_bytes(name, text) // 2
