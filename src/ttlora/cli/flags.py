"""From a command's function to its flags, through jsonargparse, with errors of one line."""

import inspect
import os
import re
import sys
import typing
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_dumper

from ttlora.errors import UserError
from ttlora.strict_yaml import dump, read_mapping
from ttlora.utf8 import half_character
from ttlora.values import complaint, fits, kinds, shown, wanted

# what --print-config prints, --config reads
set_dumper("yaml", dump)


def parse(
    name: str, function: Callable[..., int | None], positional: str | None, arguments: Sequence[str]
) -> dict[str, Any] | None:
    """Read a command's arguments.

    A function with ``**keywords`` takes them from a YAML file too, with ``--config``; flags go before the file.

    Args:
        name: The command.
        function: Its function; signature and docstring say what the flags are.
        positional: The parameter that is given without a flag.
        arguments: What the user typed.

    Returns:
        The function's arguments, or None if the user only wanted to see help or the configuration.

    Raises:
        UserError: A flag or a value is wrong; the message names it.
    """
    parser = _Parser(
        positional,
        prog=f"ttlora {name}",
        usage=f"ttlora {name} {f'{positional.upper()} ' if positional else ''}[OPTIONS]",
        description=_description(function),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    takes_config = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(function).parameters.values()
    )
    if takes_config:
        parser.add_argument(
            "--config", action="config", help="YAML file with keys named as the flags; flags override it."
        )
    parser.add_function_arguments(function, as_group=False, as_positional=False)
    for argument in arguments:
        if half_character(argument):
            raise UserError(f"{argument!r} is not UTF-8 text")
    config, flags = _split_config(parser, arguments, takes_config)
    if config is not None:
        _read_config(parser, config, f"ttlora {name} --help")
    try:
        values = parser.parse_args(flags)
    except ArgumentError as error:
        raise UserError(_explain(parser, str(error), f"ttlora {name} --help")) from None
    except SystemExit as end:
        if not end.code:
            return None
        raise
    return {key: value for key, value in values.as_dict().items() if not (takes_config and key == "config")}


class _Parser(ArgumentParser):
    """A parser with flags as people type them: hyphens, and switches without a value."""

    def __init__(self, positional: str | None = None, **options: Any) -> None:
        self.positional = positional
        super().__init__(**options)

    def add_argument(self, *names: str, **options: Any) -> Action:
        key = names[0].lstrip("-")
        hint = options.get("type") or getattr(options.get("action"), "_typehint", None)
        if key == self.positional:
            options.pop("required", None)
            names = (key,)
            if hint == list[str]:
                options.pop("action", None)
                options.update(type=str, nargs="+")
                hint = str
        elif names[0] != "--print_config":
            names = tuple(name.replace("_", "-") for name in names)
        if hint is bool:
            del options["type"]
            options["action"] = "store_true"
        elif hint is not None:
            options["metavar"] = _metavar(key, hint)
            options.pop("action", None)
            options["type"] = _reader(names[0] if names[0].startswith("-") else key.upper(), hint)
        action: Action = super().add_argument(*names, **options)
        action.hint = hint  # type: ignore[attr-defined]
        return action


class _HelpFormatter(DefaultHelpFormatter):
    """Help that shows defaults where they say something, and no Python types."""

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").rstrip(".")
        if action.dest == "print_config":
            return "print all of this as YAML for --config, and exit"
        if action.required and action.option_strings:
            return f"{text} (required)"
        if action.default in (None, SUPPRESS) or action.default is False or "(default" in text:
            return text
        return f"{text} (default: {action.default})"


def _description(function: Callable[..., Any]) -> str:
    """The docstring up to its sections."""
    return re.split(r"\n\s*(?:Args|Returns|Raises):", inspect.getdoc(function) or "")[0].strip()


def _split_config(parser: _Parser, arguments: Sequence[str], takes_config: bool) -> tuple[str | None, list[str]]:
    """The configuration file, if the parser takes one, and the other arguments with flags spelt as it knows them."""
    config = None
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        flag, equals, value = queue.pop(0).partition("=")
        if flag.startswith("--") and flag not in parser._option_string_actions:
            spellings = (flag.replace("_", "-"), flag.replace("-", "_").replace("__", "--", 1))
            flag = next((spelling for spelling in spellings if spelling in parser._option_string_actions), flag)
        if flag == "--config" and takes_config and (equals or queue):
            if config is not None:
                raise UserError("--config is there twice: flags go before a file, but no file goes before another")
            config = value if equals else queue.pop(0)
        elif equals or not queue or not _is_dashed_text(parser, flag, queue[0]):
            rest.append(flag + equals + value)
        else:
            rest.append(f"{flag}={queue.pop(0)}")
    return config, rest


def _is_dashed_text(parser: _Parser, flag: str, following: str) -> bool:
    """Whether what follows a flag is its value, though argparse would take it for a flag: -x, and - alone."""
    action = parser._option_string_actions.get(flag)
    dashed = following.startswith("-") and not following.startswith("--") and following != "-h"
    return dashed and action is not None and action.nargs is None


def _explain(parser: _Parser, message: str, help_command: str) -> str:
    """The complaint of jsonargparse in one line, which names the flag, the value and the way out."""
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        flag = found[1].partition("=")[0]
        known = [option for action in flags.values() for option in action.option_strings]
        close = get_close_matches(flag, known, n=1) if flag.startswith("-") else []
        hint = f"did you mean {close[0]}?" if close else f"see {help_command}"
        return f"{'unknown option' if flag.startswith('-') else 'unexpected argument'} {flag}: {hint}"
    if found := re.match(r"the following arguments are required: (.+)", message):
        names = [_shown(flags[key]) for key in found[1].split(", ")]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing: see {help_command}"
    if found := re.match(r"argument (\S+): ignored explicit argument (.*)", message):
        return f"{found[1]} takes no value, and was given {found[2]}"
    if found := re.match(r"argument (\S+): expected", message):
        return f"{found[1]} needs a value: see {help_command}"
    return message


def _read_config(parser: _Parser, config: str, help_command: str) -> None:
    """Put the values of a YAML file in the place of the defaults.

    Raises:
        UserError: It is none, or has a key or a value that is no flag's.
    """
    path = os.path.expanduser(config)
    if not os.path.lexists(path):
        raise UserError(f"--config {config} is not there")
    content = read_mapping(Path(path), f"--config {config} holds no recipe in YAML")
    hints = {action.dest: action.hint for action in parser._actions if getattr(action, "hint", None) is not None}
    for key, value in content.items():
        if key not in hints:
            close = get_close_matches(key, hints, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see {help_command}"
            raise UserError(f"--config {config}: unknown key {key!r}: {hint}")
        if problem := complaint(key, value, hints[key]):
            raise UserError(f"--config {config}: {problem}")
    parser.set_defaults(content)


def _reader(flag: str, hint: Any) -> Callable[[Any], Any]:
    """What makes a flag's value of the text that was typed: where text is a value it stays as it is, to the letter."""
    types = kinds(hint)
    numbers = [kind for kind in types if kind in (int, float)]

    def read(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        for kind in numbers:
            with suppress(ValueError):
                if abs(number := kind(text)) <= sys.float_info.max:
                    return number
        if fits(text, hint):
            return text
        raise UserError(f"{flag} is {shown(text)}, and has to be {wanted(hint)}")

    return read


def _metavar(key: str, hint: Any) -> str:
    for kind in kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    return {int: "N", float: "X"}.get(kinds(hint)[0], key.rpartition("_")[2].upper())


def _shown(action: Action) -> str:
    return action.option_strings[0] if action.option_strings else action.dest.upper()
