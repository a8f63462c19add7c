"""The modules of a model that can be adapted: by default for its type, and by name."""

from collections.abc import Iterable
from typing import Any

from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.tuners.tt_lora import DEFAULT_TARGET_MODULES


def query_and_value(model: Any, head: tuple[str, ...] = ()) -> Any:
    """Names of the modules for query and value of self-attention, or a regular expression for them.

    Args:
        model: A model of transformers.
        head: Names of its head's modules, which no message offers.

    Raises:
        ValueError: They are not known for models of this type.
    """
    model_type = model.config.model_type
    if model_type not in DEFAULT_TARGET_MODULES:
        names = linear_names(model, head)
        raise ValueError(
            f"no default targets are known for the model type '{model_type}'; name the targets, out of {names}"
        )
    return DEFAULT_TARGET_MODULES[model_type]


def require_modules(model: Any, names: Iterable[str], head: tuple[str, ...] = ()) -> None:
    """Check that each name is that of a module, or the end of some modules' paths.

    Args:
        model: A model.
        names: The names.
        head: Names of its head's modules, which no message offers.

    Raises:
        ValueError: A name is neither.
    """
    paths = [path for path, _ in model.named_modules()]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            raise ValueError(f"'{name}' is no module of the model; its linear modules are {linear_names(model, head)}")


def require_matches(what: str, patterns: Iterable[str], modules: Iterable[str]) -> None:
    """Check that each name with a shape, a rank or an α of its own is that of an adapted module, as PEFT looks it up.

    Args:
        what: What is its own: "shape", "rank" or "alpha".
        patterns: The names, or regular expressions.
        modules: Full names of the adapted modules.

    Raises:
        ValueError: A name is not.
    """
    adapted = list(modules)
    for pattern in patterns:
        if not any(get_pattern_key([pattern], name) == pattern for name in adapted):
            names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in adapted))
            raise ValueError(f"the {what} of '{pattern}' belongs to no adapted module; adapted are {names}")


def linear_names(model: Any, head: tuple[str, ...] = ()) -> str:
    """The names of a model's linear modules outside of its head, each once."""
    names = (
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not path.startswith(head)
    )
    return ", ".join(dict.fromkeys(names))
