"""Private parts of other libraries are reached in one file alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ttlora"
LIBRARIES = ("accelerate", "bitsandbytes", "peft", "transformers")
# modules that are not documented, without an underscore in their names
UNDOCUMENTED = (
    "peft.utils.other",
    "peft.utils.transformers_weight_conversion",
    "transformers.conversion_mapping",
    "transformers.core_model_loading",
    "transformers.models.auto.modeling_auto",
    "transformers.utils.hub",
    "transformers.utils.peft_utils",
)


def private_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(LIBRARIES):
            for name in node.names:
                if name.name.startswith("_") or "._" in str(node.module) or node.module in UNDOCUMENTED:
                    yield f"{node.module}.{name.name}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "from peft.tuners.tuners_utils import _get_in_out_features",
            ["peft.tuners.tuners_utils._get_in_out_features"],
        ),
        ("from transformers.utils.hub import cached_file", ["transformers.utils.hub.cached_file"]),
        ("from peft import LoraConfig", []),
    ],
)
def test_what_is_private(line, found):
    assert list(private_imports(ast.parse(line))) == found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_parts_are_reached_in_compat_alone(path):
    found = list(private_imports(ast.parse(path.read_text("utf-8"))))
    assert bool(found) == (path.name == "compat.py"), found
