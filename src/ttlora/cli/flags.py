"""From a command's function to its flags: signature and docstring say what they are, and errors are one line."""

import argparse
import inspect
import os
import re
import sys
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttlora.errors import UserError
from ttlora.finetune.recipe import DefaultOfKind, Recipe
from ttlora.strict_yaml import dump, read_mapping
from ttlora.utf8 import half_character
from ttlora.values import complaint, fits, kinds, nearest, shown, wanted

HELP, CONFIG, PRINT_CONFIG = ("-h", "--help"), "--config", "--print-config"
# what names a file or a folder, and cannot be empty
PATHS = ("adapter", "config", "data", "directory", "input", "lora", "model", "output", "results", "train", "validation")
METAVARS = {"push_to_hub": "NAME", "report_to": "NAMES"}
# options of earlier versions, by command
GONE = {("search", "--resume"): "without it, the same command goes on where it was stopped"}


@dataclass(frozen=True)
class _Flag:
    """A parameter of a command as it is typed.

    Attributes:
        key: The parameter's name.
        hint: Its type.
        default: Its default, or `inspect.Parameter.empty`.
        help: What its docstring says.
        is_positional: Whether it is given without a flag.
    """

    key: str
    hint: Any
    default: Any
    help: str
    is_positional: bool = False

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.key.upper() if self.is_positional else f"--{self.key.replace('_', '-')}"

    @property
    def is_list(self) -> bool:
        """Whether it is a positional with many values."""
        return self.is_positional and typing.get_origin(self.hint) is list

    @property
    def metavar(self) -> str:
        """What stands for its value in the help."""
        kind, *_ = kinds(self.hint)
        if self.is_positional:
            return self.name
        number = {int: "N", float: "X"}.get(kind)
        for literal in kinds(self.hint):
            if typing.get_origin(literal) is typing.Literal:
                words = ",".join(map(str, typing.get_args(literal)))
                return f"{number}|{words}" if number else "{" + words + "}"
        return number or METAVARS.get(self.key, self.key.rpartition("_")[2].upper())

    def read(self, text: str) -> Any:
        """The value of what was typed: where text is a value it stays as it is, to the letter.

        Raises:
            UserError: It is no value of the flag's type.
        """
        if not text and self.key in PATHS:
            raise UserError(f"{self.name} is empty: name a file or a folder")
        hint = typing.get_args(self.hint)[0] if self.is_list else self.hint
        for kind in kinds(hint):
            if kind in (int, float):
                with suppress(ValueError):
                    if abs(number := kind(text)) <= sys.float_info.max:
                        return number
        if fits(text, hint):
            return text
        raise UserError(f"{self.name} is {shown(text)}, and has to be {wanted(hint)}")


def parse(
    name: str, function: Callable[..., int | None], positional: str | None, arguments: Sequence[str]
) -> dict[str, Any] | None:
    """Read a command's arguments.

    A function with ``**recipe`` has the keys of a recipe as flags, too, and takes them from a YAML file with
    ``--config``. Flags go before the file.

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
    flags = {flag.key: flag for flag in _flags_of(function, positional)}
    takes_recipe = inspect.getfullargspec(function).varkw is not None
    help_command = f"ttlora {name} --help"
    for argument in arguments:
        if half_character(argument):
            raise UserError(f"{argument!r} is not UTF-8 text")
        if reason := GONE.get((name, argument)):
            raise UserError(f"{argument} is not an option any more: {reason}")
    typed, config, wish = _read(list(flags.values()), takes_recipe, arguments, help_command)
    if wish == "help":
        _print_help(name, function, list(flags.values()), takes_recipe)
        return None
    values = {key: flag.default for key, flag in flags.items()}
    if config is not None:
        values |= _read_config(flags, config, help_command)
    values |= typed
    if wish == "config":
        # a default that depends on other keys is no value of its own
        told = {key: value for key, value in values.items() if not isinstance(value, DefaultOfKind)}
        print(dump({key: value for key, value in told.items() if value is not inspect.Parameter.empty}), end="")
        return None
    if missing := [flags[key].name for key, value in values.items() if value is inspect.Parameter.empty]:
        raise UserError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: see {help_command}")
    return values


def with_flags(message: str, function: Callable[..., Any], positional: str | None) -> str:
    """A message of the library as the command says it: arguments in backticks as the flags that set them.

    Args:
        message: A message such as "`batch_size` is 0".
        function: The command's function.
        positional: The parameter that is given without a flag.
    """
    return _with_names(message, _flags_of(function, positional))


def _with_names(text: str, flags: Iterable[_Flag]) -> str:
    names = {flag.key: flag.name for flag in flags}
    return re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), text)


def _flags_of(function: Callable[..., Any], positional: str | None) -> Iterator[_Flag]:
    hints, helps = typing.get_type_hints(function), _documented(function)
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from _flags_of(Recipe, None)
        else:
            yield _Flag(key, hints[key], parameter.default, helps.get(key, ""), key == positional)


def _documented(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    *_, section = re.split(r"\nArgs:\n", inspect.getdoc(function) or "", maxsplit=1)
    entries: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if found := re.match(r" {4}\*{0,2}(\w+): (.*)", line):
            entries[found[1]] = [found[2]]
        elif entries and line.strip():
            entries[next(reversed(entries))].append(line.strip())
    return {key: " ".join(lines) for key, lines in entries.items()}


def _read(
    flags: Sequence[_Flag], takes_recipe: bool, arguments: Sequence[str], help_command: str
) -> tuple[dict[str, Any], str | None, str]:
    """The values that were typed, the configuration file, and whether "help" or "config" is what is wanted.

    Raises:
        UserError: An option is unknown, has no value, or has a value that it does not take.
    """
    options = {flag.name: flag for flag in flags if not flag.is_positional}
    known = [*options, *HELP, *((CONFIG, PRINT_CONFIG) if takes_recipe else ())]
    values: dict[str, Any] = {}
    given: list[str] = []
    config, wish = None, ""
    queue = deque(arguments)
    while queue:
        argument = queue.popleft()
        if not argument.startswith("-") or argument == "-" or " " in argument.partition("=")[0]:
            given.append(argument)
            continue
        option, equals, value = argument.partition("=")
        option = option.replace("_", "-") if option.startswith("--") else option
        if option not in known:
            raise UserError(f"unknown option {argument.partition('=')[0]}: {_hint(option, known, help_command)}")
        flag = options.get(option)
        is_switch = flag.hint is bool if flag else option != CONFIG
        if is_switch and equals:
            raise UserError(f"{option} takes no value, and was given {value!r}")
        if option in HELP:
            return {}, None, "help"
        if not is_switch and not equals:
            if not queue or queue[0].startswith("--") or queue[0] in HELP:
                raise UserError(f"{option} needs a value: see {help_command}")
            value = queue.popleft()
        if flag is not None and flag.key in values and not is_switch:
            raise UserError(f"{option} is there twice: give it once")
        if flag is not None:
            values[flag.key] = True if is_switch else flag.read(value)
        elif is_switch:
            wish = "config"
        elif config is not None:
            raise UserError("--config is there twice: flags go before a file, but no file goes before another")
        else:
            config = value
    return values | _positional(flags, given, help_command), config, wish


def _hint(name: str, known: Sequence[str], help_command: str) -> str:
    close = nearest(name, known)
    return f"did you mean {close}?" if close else f"see {help_command}"


def _positional(flags: Sequence[_Flag], given: Sequence[str], help_command: str) -> dict[str, Any]:
    flag = next((flag for flag in flags if flag.is_positional), None)
    expected = 0 if flag is None else len(given) if flag.is_list else 1
    if len(given) > expected:
        raise UserError(f"unexpected argument {given[expected]}: see {help_command}")
    if flag is None or not given:
        return {}
    values = [flag.read(text) for text in given]
    return {flag.key: values if flag.is_list else values[0]}


def _read_config(flags: dict[str, _Flag], config: str, help_command: str) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        UserError: The file is no YAML mapping, or has an unknown key or a value of a wrong type.
    """
    path = os.path.expanduser(config)
    if not config:
        raise UserError("--config is empty: name a YAML file")
    if not os.path.lexists(path):
        raise UserError(f"--config {config} is not there")
    content = read_mapping(Path(path), f"--config {config} holds no recipe in YAML")
    for key, value in content.items():
        if key not in flags:
            raise UserError(f"--config {config}: unknown key {key!r}: {_hint(key, list(flags), help_command)}")
        if problem := complaint(key, value, flags[key].hint):
            raise UserError(f"--config {config}: {problem}")
    return content


def _print_help(name: str, function: Callable[..., Any], flags: Sequence[_Flag], takes_recipe: bool) -> None:
    positional = "".join(f"{flag.name} " for flag in flags if flag.is_positional)
    parser = argparse.ArgumentParser(
        prog=f"ttlora {name}",
        usage=f"ttlora {name} {positional}[OPTIONS]",
        description=re.split(r"\n\s*(?:Args|Returns|Raises):", inspect.getdoc(function) or "")[0].strip(),
    )
    if takes_recipe:
        parser.add_argument(CONFIG, help="YAML file with keys named as the flags; flags override it")
        parser.add_argument(PRINT_CONFIG, action="store_true", help="print all of this as YAML for --config, and exit")
    for flag in flags:
        text = _with_names(_help_of(flag), flags).replace("%", "%%")
        if flag.hint is bool:
            parser.add_argument(flag.name, action="store_true", help=text)
        else:
            names = [flag.key] if flag.is_positional else [flag.name]
            parser.add_argument(*names, metavar=flag.metavar, help=text)
    parser.print_help()


def _help_of(flag: _Flag) -> str:
    """What the docstring says, with the default where that says something."""
    text = flag.help.rstrip(".")
    if flag.default is inspect.Parameter.empty:
        return text if flag.is_positional else f"{text} (required)"
    if flag.default is None or flag.default is False or "(default" in text:
        return text
    return f"{text} (default: {flag.default})"
