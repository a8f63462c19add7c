"""YAML as people write it: 1e-3 is a number, 010 is not 8, and a key that is given twice is a mistake."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from ttlora.errors import UserError, one_line
from ttlora.utf8 import read_utf8
from ttlora.whole_files import write_text

MOST_BYTES = 2**20
# a few lines of YAML that name one another can stand for more values than any memory holds
MOST_VALUES = 2**17


def read_mapping(path: Path, refusal: str | None = None) -> dict[str, Any]:
    """Read a YAML file that holds keys with values.

    Args:
        path: The file.
        refusal: How the error begins if the file holds no mapping (default: that it cannot be read as YAML).

    Raises:
        UserError: The file cannot be read, is no YAML, gives a key twice, or holds something else than keys.
    """
    refusal = refusal or f"{path} cannot be read as YAML"
    if not os.path.isfile(path):
        raise UserError(f"{refusal}: it is no file" if os.path.lexists(path) else f"{path} is not there")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{refusal}: it has {size:,} bytes, and a file of keys has {MOST_BYTES:,} at most")
        content = parse(read_utf8(path))
    except OSError as error:
        raise UserError(f"{refusal}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{refusal}: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{refusal}: it holds no keys with values, such as model: roberta-base")
    return content


def parse(text: str) -> Any:
    """The value that YAML stands for.

    Raises:
        ValueError: It is no YAML, or gives a key twice; the message is one line.
    """
    try:
        content = yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from None
    except (ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError) as error:
        # tags such as !!timestamp make PyYAML stumble in any way over what is none
        raise ValueError(one_line(error)) from None
    _require_countable(content)
    return content


def dump(content: Any) -> str:
    """The YAML that `parse` reads as this content, with its keys in the order given."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def write_yaml(path: Path, content: Any) -> None:
    """Write YAML; the file appears whole.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    write_text(path, dump(content))


def _require_countable(content: Any) -> None:
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it holds itself, or more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses what plain YAML would take for something else without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: Any) -> int:
        """A whole number; YAML 1.1 takes 010 for 8 and 1:30 for 90."""
        number = int(self.construct_yaml_int(node))
        if ":" in node.value or re.match(r"[-+]?0[0-9_]", node.value):
            problem = f"YAML takes {node.value} for {number}: write that, or text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


class _Dumper(yaml.SafeDumper):
    """A dumper that puts in quotes what the loader would take for something else."""

    def represent_text(self, text: str) -> Any:
        # in single quotes PyYAML writes this line break so that it reads a space
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


# YAML 1.1, which PyYAML reads, takes 1e-3 for a text
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
