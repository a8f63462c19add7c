"""Checks that all methods share: of configs, which may come from anywhere, and of the layers to adapt."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from peft.utils import PeftType, TaskType, resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.tensor_train import TTShape
from ttlora.values import is_whole, short_repr

LARGEST_ORDER = 256


def is_size(value: object) -> bool:
    """Whether a value can be a dim, a rank or the side of a matrix."""
    return is_whole(value) and 0 < value < 2**31


def is_name_list(value: object) -> bool:
    """Whether a value is a list, a tuple or a set of strings."""
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(name, str) for name in value)


def require_fields(config: Any, **wanted: tuple[Callable[[Any], bool], str]) -> None:
    """Check fields of a config.

    Args:
        config: The config.
        wanted: Field to whether a value of it is right, and what a right one is, in words.

    Raises:
        ValueError: One is not right; the message names field and value.
    """
    for name, (holds, words) in wanted.items():
        if not holds(value := getattr(config, name)):
            raise ValueError(f"{name}={short_repr(value)} is not {words}")


def require_pattern(name: str, pattern: object, inside: str = "{}") -> None:
    """Check a regular expression.

    Args:
        name: The field that holds it.
        pattern: The expression.
        inside: The expression around it that PEFT matches with.

    Raises:
        ValueError: It is none.
    """
    try:
        re.compile(inside.replace("{}", pattern))  # type: ignore[arg-type]
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{name} has {short_repr(pattern)}, which is no name and no regular expression: {error}"
        ) from None


@contextmanager
def named(module_name: str) -> Iterator[None]:
    """Within it, an error in a value names the module that the value is for.

    Args:
        module_name: The module's name in the model.

    Raises:
        ValueError: There was one.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{module_name}: {error}") from None


def require_saving(shape: TTShape, rank: str, entries: int, what: str) -> TTShape:
    """The shape, if its train is no larger than any train of that matrix needs to be.

    At full rank a train has up to 8/3 of the matrix's entries; dims of 1 in its middle can multiply that.

    Args:
        shape: The shape.
        rank: The setting of its ranks and its value, such as "r=5".
        entries: Entries of the matrix.
        what: What the matrix is, such as "weight".

    Raises:
        ValueError: It is larger.
    """
    if shape.parameters > 3 * entries:
        raise ValueError(
            f"shape {list(shape.dims)} with {rank} takes {shape.parameters:,} parameters for a {what} of {entries:,} "
            f"entries; lower {rank.partition('=')[0]} or leave out the dims of 1"
        )
    return shape


def by_size(name: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """A field's values by the number of rows or outputs that they are for, as JSON has it, which knows no other keys.

    Args:
        name: The field.
        values: Number to value.

    Raises:
        ValueError: A key is no such number.
    """
    for key in values:
        if not is_size(key) and not (isinstance(key, str) and re.fullmatch("[1-9][0-9]{0,9}", key)):
            raise ValueError(f"{name} has the key {short_repr(key)}, which is no number of rows or outputs")
    return {str(key): value for key, value in values.items()}


def settle_fields(config: Any, peft_type: PeftType) -> None:
    """Check the fields that all our configs have, and bring them into the form that PEFT gives them.

    ``config.from_file`` becomes whether it is that of a saved adapter, which says `inference_mode` or what the adapter
    was made for.

    Args:
        config: The config.
        peft_type: Its method.

    Raises:
        ValueError: A field has a value of a wrong kind, or the fields that choose layers contradict each other.
    """
    text = (lambda value: value is None or isinstance(value, str)), "a string or None"
    names = (lambda value: value is None or is_name_list(value) or isinstance(value, str)), "a list of names"
    require_fields(
        config,
        peft_type=(lambda value: value in (None, peft_type), f"{peft_type.value!r}"),
        task_type=(lambda value: value is None or value in list(TaskType), f"one of {', '.join(TaskType)}"),
        peft_version=text,
        base_model_name_or_path=text,
        revision=text,
        auto_mapping=(
            lambda value: value is None or (isinstance(value, dict) and is_name_list(list(value))),
            "a dict with strings for keys",
        ),
        inference_mode=(lambda value: isinstance(value, bool), "True or False"),
        target_modules=(names[0], "a list of names or a regular expression"),
        exclude_modules=(names[0], "a list of names or a regular expression"),
        modules_to_save=(lambda value: value is None or is_name_list(value), "a list of names"),
        layers_to_transform=(_are_layers, "the index of a layer or a list of them"),
        layers_pattern=names,
    )
    config.peft_type = peft_type
    config.from_file = config.inference_mode or bool(getattr(config, "weight_sizes", None))
    for name in ("target_modules", "exclude_modules"):
        modules = getattr(config, name)
        if isinstance(modules, str):
            require_pattern(name, modules)
        elif modules is not None:
            setattr(config, name, set(modules))
    if isinstance(config.layers_to_transform, tuple | range):
        config.layers_to_transform = list(config.layers_to_transform)
    for module in config.modules_to_save or ():
        require_pattern("modules_to_save", module, r"(^|.*\.){}($|\..*)")
    patterns = config.layers_pattern or ()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        require_pattern("layers_pattern", pattern, r"(?:^|.*?\.){}\.(?P<idx>\d+)\.")
    if isinstance(config.target_modules, str):
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(config, name) is not None:
                raise ValueError(f"{name} needs target_modules as a list of names, not as a regular expression")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ValueError("layers_pattern names the list of layers for layers_to_transform, which is missing")


def _are_layers(value: object) -> bool:
    indices = value if isinstance(value, list | tuple | range) else [value]
    return value is None or all(type(index) is int and 0 <= index < 2**31 for index in indices)


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is ``nn.Linear``, quantised or not, or ``transformers``' ``Conv1D``."""
    if isinstance(layer, nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(layer)
    return backend is not None and backend.layer_type == "linear"


def require_linear(layer: nn.Module, name: str) -> None:
    """Refuse a target that is not linear.

    Raises:
        TypeError: It is not; the message names it.
    """
    if not is_linear(layer):
        raise TypeError(
            f"Target module {name} is not supported: {type(layer).__name__} is neither `torch.nn.Linear` (quantised or "
            "not) nor `transformers.pytorch_utils.Conv1D`."
        )


def require_called(parent: nn.Module, child_name: str, name: str) -> None:
    """Refuse a target whose weight the module around it reads, past whatever is put in the target's place.

    Mamba and its like hand the weights of ``conv1d`` and ``out_proj`` to a fused kernel, ``nn.MultiheadAttention`` that
    of its ``out_proj``; an adapter there would change nothing and learn nothing.

    Args:
        parent: The module that holds the target.
        child_name: The target's name in it.
        name: Its name in the model.

    Raises:
        ValueError: The weight is read so.
    """
    kind: Any = type(parent)
    if reads_weight(kind, child_name):
        raise ValueError(
            f"Target module {name} cannot be adapted: {kind.__name__} reads its weight past any adapter (as a "
            f"fused kernel does); leave {child_name} out of target_modules, or name it in exclude_modules"
        )

    if child_name == "shared" and (copies := _copies(parent, getattr(parent, child_name))):
        raise ValueError(
            f"Target module {name} is never called: {' and '.join(copies)} stand for it, tied to its weight; name "
            f"{copies[0].rpartition('.')[2]}"
        )


def _copies(parent: nn.Module, embedding: Any) -> list[str]:
    """The other embeddings below a module that share this one's weight, as in T5 and BART."""
    weight = getattr(embedding, "weight", None)
    return [
        path
        for path, module in parent.named_modules()
        if isinstance(module, nn.Embedding) and module is not embedding and module.weight is weight
    ]


@lru_cache(maxsize=1024)
def reads_weight(kind: type, child: str) -> bool:
    """Whether a module's methods use a child's weight itself, beyond its dtype and device.

    Args:
        kind: The module's class.
        child: The child's name in it.
    """
    reading = re.compile(rf"self\.{re.escape(child)}\.weight(,?$|\.squeeze\(| @)", re.MULTILINE)
    return any(reading.search(source) for source in _sources(kind))


@lru_cache(maxsize=64)
def _sources(kind: type) -> list[str]:
    """The source of a class's methods, without those that initialise weights."""
    found = []
    for owner in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(owner).items():
            if inspect.isfunction(method) and not re.search("init|reset|tie|load", name):
                try:
                    found.append(inspect.getsource(method))
                except (OSError, TypeError):  # what was typed in has none
                    continue
    return found
