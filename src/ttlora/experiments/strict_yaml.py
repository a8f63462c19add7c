"""YAML as people write it: 1e-3 is a number, and a key that is given twice is a mistake."""

import re
from pathlib import Path
from typing import Any

import yaml

from ttlora.errors import UserError, one_line

MOST_BYTES = 2**20


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys with values.

    Raises:
        UserError: The file cannot be read, is no YAML, gives a key twice, or holds something else than keys.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{path} has {size:,} bytes, which is no file of a person's writing")
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {one_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds no keys with values, such as models: [...]")
    return content


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses what plain YAML would take for something else without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 1e-3 for a text
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
