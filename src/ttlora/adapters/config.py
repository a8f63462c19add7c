"""Read the config of an adapter, whoever wrote it: what is returned has been checked field by field."""

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from ttlora.errors import UserError, one_line
from ttlora.strict_json import each_key_once
from ttlora.tuners.checks import require_pattern
from ttlora.values import is_number, is_whole, short_repr

# Far above any real config, and little enough to look at without harm.
LARGEST_CONFIG = 2**24

WORDS = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_config(file: Path) -> Any:
    """The config of an adapter, of the class of its method.

    Args:
        file: ``adapter_config.json``.

    Raises:
        UserError: The file is damaged, or names no method that is known, or a field holds no value of its kind.
    """
    values = _read_values(file)
    method = values.get("peft_type") if isinstance(values, dict) else None
    if method not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        raise UserError(
            f"{file} names the method {short_repr(method)}, which neither ttlora nor this version of PEFT knows"
        )
    try:
        _check_fields(PEFT_TYPE_TO_CONFIG_MAPPING[method], values)
        return PeftConfig.from_peft_type(**values)  # type: ignore[no-untyped-call]
    except Exception as error:  # values that do not go together make configs stumble in any way
        raise UserError(f"{file} is no config of {method}: {one_line(error)}") from error


def _read_values(file: Path) -> Any:
    try:
        if not file.is_file():
            raise UserError(f"{file} is no file")
        with file.open("rb") as content:
            text = content.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            size = file.stat().st_size
            raise UserError(f"{file} has {size:,} bytes, too many for the config of an adapter")
        return json.loads(text, object_pairs_hook=each_key_once, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _check_fields(config_class: type, values: Mapping[str, Any]) -> None:
    """Hold values from JSON against the types of a config's fields.

    Raises:
        ValueError: A value is of another type, or a pattern is no regular expression; the message names the field.
    """
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name not in values:
            continue
        value, hint = values[field.name], hints[field.name]
        if hint is int and "alpha" in field.name:
            hint = float  # PEFT names whole numbers, and takes others
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not _fits(value, hint) and not (type(value) is type(default) and value == default):
            raise ValueError(f"{field.name}={short_repr(value)} is not {_words(hint)}")
        if field.name == "base_model_name_or_path" and not str(value).isprintable():
            # a terminal obeys control characters, and this name is shown
            raise ValueError(f"{field.name}={short_repr(value)} is no name of a model")
        _check_patterns(field.name, value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON can stand for one of a type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        # a bracket stands for what varies, as in "pissa_niter_[number of iters]"
        return value in parts or (isinstance(value, str) and any("[" in str(part) for part in parts))
    if hint in (list, set, tuple) or origin in (list, set, tuple):
        kinds = (parts[0],) * len(value) if isinstance(value, list) and (len(parts) == 1 or ... in parts) else parts
        return isinstance(value, list) and (not kinds or (len(kinds) == len(value) and all(map(_fits, value, kinds))))
    if hint is dict or origin is dict:
        return isinstance(value, dict) and (not parts or all(_fits(item, parts[1]) for item in value.values()))
    if hint is bool:
        return value is None or isinstance(value, bool)
    if hint is int:
        return is_whole(value) and abs(value) < 2**63
    if hint is float:
        return is_number(value)
    if hint is str:
        return isinstance(value, str)
    if hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str) and value in [member.value for member in hint]
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    return True


def _check_patterns(name: str, value: Any) -> None:
    """Refuse text that PEFT would read as a regular expression and that is not one."""
    patterns = []
    if name.endswith("_pattern"):
        patterns = list(value) if isinstance(value, dict | list) else [value]
    elif name in ("target_modules", "exclude_modules") and isinstance(value, str):
        patterns = [value]
    for pattern in patterns:
        if pattern is not None:
            require_pattern(name, pattern)


def _words(hint: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is typing.Literal:
        return " or ".join(json.dumps(part) for part in parts)
    known = hint if hint in WORDS else origin
    if known in WORDS:
        return WORDS[known]
    return "text" if isinstance(hint, type) and issubclass(hint, enum.Enum) else "an object"
