"""The modules of a model that can be adapted: by default for its type, and by name."""

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ttlora.compat import is_target, matching_pattern, shortest_names
from ttlora.tuners.checks import is_linear, reads_weight

# Query and value, as in the paper (Section IV-A), for model types that PEFT's own table leaves out or sees otherwise.
DEFAULT_TARGET_MODULES: dict[str, Any] = {
    **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    "albert": ["query", "value"],
    "camembert": ["query", "value"],
    "cohere": ["q_proj", "v_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "ernie": ["query", "value"],
    "gemma3": ["q_proj", "v_proj"],
    "granite": ["q_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
    "nomic_bert": ["q_proj", "v_proj", "Wqkv"],
    "olmo": ["q_proj", "v_proj"],
    "olmo2": ["q_proj", "v_proj"],
    "phi": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
    "qwen2_moe": ["q_proj", "v_proj"],
    "qwen3_moe": ["q_proj", "v_proj"],
    "smollm3": ["q_proj", "v_proj"],
    "vit": ["q_proj", "v_proj", "query", "value"],
    "whisper": ["q_proj", "v_proj"],
    "xlm-roberta-xl": ["query", "value"],
}


# Names of linear layers that decide where attention looks, and nothing else.
QUERY_OR_KEY = re.compile(
    r"(\w+_)?(q|k|query|key)(_(proj|lin|layer|a_proj|b_proj|head|global))?|w[qk](_b)?|query_key|pos_proj",
    re.IGNORECASE,
)


def default_places(model: Any, head: tuple[str, ...] = ()) -> list[str]:
    """Paths of the modules that TT-LoRA adapts by default: where few parameters serve best (docs/learning.md).

    They are the linear layers of the model's body but those of query and key alone. Where query, key and value are one
    layer, it is among them; experts that are stacked in parameters are not.

    Args:
        model: A model of transformers, adapted or not.
        head: Names of modules in it that train whole.

    Raises:
        ValueError: There are none.
    """
    body = getattr(model, "base_model_prefix", "")
    inside = f"{body}." if isinstance(getattr(model, body, None), nn.Module) else ""
    outputs = _base_of(model.get_output_embeddings())
    modules = dict(own_modules(model))
    # of another adapter's, too
    trained = [path for path, module in modules.items() if isinstance(module, AuxiliaryTrainingWrapper)]
    whole = tuple(f"{name}." for name in (*head, *trained))
    places = []
    for path, module in modules.items():
        owner, _, name = path.rpartition(".")
        kind: Any = type(modules[owner])
        if (
            is_linear(module)
            and path.startswith(inside)
            # whoever uses a body alone may never ask for what its pooler makes
            and (inside or "pooler" not in path)
            and not f"{path}.".startswith(whole)
            # a model that is made of several has a head in each
            and module is not outputs
            and name != "lm_head"
            and not QUERY_OR_KEY.fullmatch(name)
            # Mamba's layers, or those of `nn.MultiheadAttention`, where an adapter would change nothing
            and not reads_weight(kind, name)
        ):
            places.append(path)
    if not places:
        raise ValueError(f"a {type(model).__name__} has no linear layers that are adapted by default: name the targets")
    return places


def default_targets(model: Any, head: tuple[str, ...] = ()) -> set[str]:
    """Names for the modules that TT-LoRA adapts by default: the shortest that mean them and no others.

    Whole paths would do, but an adapter that holds them would go into a model with more layers and say nothing.

    Args:
        model: A model of transformers, adapted or not.
        head: Names of modules in it that train whole.

    Raises:
        ValueError: The model has none.
    """
    places = set(default_places(model, head))
    return shortest_names(places, {path for path, _ in own_modules(model)} - places)


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
        model: A model, adapted or not.
        names: The names.
        head: Names of its head's modules, which no message offers.

    Raises:
        ValueError: A name is neither.
    """
    if missing := unmatched(names, (path for path, _ in own_modules(model))):
        raise ValueError(
            f"'{missing[0]}' is no module of the model; its linear modules are {linear_names(model, head)}"
        )


def require_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Check that each name is that of a parameter, or the end of some parameters' paths.

    Args:
        model: A model, adapted or not.
        names: The names.

    Raises:
        ValueError: A name is neither.
    """
    if missing := unmatched(names, (path for path, _ in own_parameters(model))):
        raise ValueError(f"target_parameters has '{missing[0]}', which is no parameter of the model")


def require_layers(model: nn.Module, config: Any) -> None:
    """Check that each index of ``layers_to_transform`` is that of a layer with a target.

    Args:
        model: A model, adapted or not.
        config: A config with such indices.

    Raises:
        ValueError: An index is not.
    """
    indices, paths = config.layers_to_transform, [path for path, _ in own_modules(model)]
    for index in indices if isinstance(indices, list) else [indices]:
        alone = copy.copy(config)
        alone.layers_to_transform = index
        if not any(is_target(alone, path) for path in paths):
            raise ValueError(f"layers_to_transform has {index}, but no layer of that index has a target module")


def unmatched(names: Iterable[str], paths: Iterable[str]) -> list[str]:
    """The names that no path is or ends with."""
    endings = {ending for path in paths for ending in _endings(path)}
    return sorted(set(names) - endings)


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of a model as they are without adapters: an adapted layer counts as its base layer."""
    seen: set[int] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = _base_of(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield path, module
        for name, child in module.named_children():
            yield from walk(f"{path}.{name}" if path else name, child)

    return walk("", model)


def own_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Paths and parameters of a model as they are without adapters; a parametrised weight counts as one parameter."""
    for path, module in own_modules(model):
        names = [name for name, _ in module.named_parameters(recurse=False)]
        for name in [*names, *getattr(module, "parametrizations", ())]:
            yield f"{path}.{name}" if path else name, getattr(module, name)


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
        if not any(matching_pattern([pattern], name) == pattern for name in adapted):
            names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in adapted))
            raise ValueError(f"the {what} of '{pattern}' belongs to no adapted module; adapted are {names}")


def linear_names(model: Any, head: tuple[str, ...] = ()) -> str:
    """The names of a model's linear modules outside of its head, each once."""
    names = (
        path.rpartition(".")[2]
        for path, module in own_modules(model)
        if isinstance(module, nn.Linear | Conv1D) and not path.startswith(head)
    )
    return ", ".join(dict.fromkeys(names))


def _base_of(module: Any) -> Any:
    while isinstance(module, BaseTunerLayer):
        layer: Any = module
        module = layer.base_layer
    return module


def _endings(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.partition(".")[2]
