"""Models whose layers share weights or modules, before they are adapted and after an adapter was merged."""

import copy
from typing import Any

from torch import nn

from ttlora.compat import is_target


def ties_embeddings(model: Any) -> bool:
    """Whether a model's config says that input and output embeddings are one weight."""
    return bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))


def untie(model: Any) -> None:
    """Give every layer its own copy of a weight that it shares, where none would be tied when the model is loaded.

    A file of weights holds what is shared once. A model whose config says that nothing is tied (any more) takes it for
    one of the layers alone, such as BART's encoder, decoder and `shared`.

    Args:
        model: A model of transformers whose embeddings are tied no longer.
    """
    saved = type(model.config).from_dict(model.config.to_dict())
    if ties_embeddings(saved):
        return
    keys = model.all_tied_weights_keys
    seen: set[int] = set()
    for path in sorted({*keys, *keys.values()}):
        owner_path, _, name = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        if id(owner) in seen or id(getattr(owner, name)) in seen:
            # a module, too, may stand in several places
            owner = copy.copy(owner)
            owner._parameters = owner._parameters.copy()
            weight = getattr(owner, name)
            setattr(owner, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))
            model.set_submodule(owner_path, owner)
        seen |= {id(owner), id(getattr(owner, name))}


def require_one_place(model: nn.Module, config: Any) -> None:
    """Refuse an embedding that stands in several places of a model, of which an adapter would be put in one.

    T5 and BART come to it when their embeddings are resized.

    Args:
        model: A model.
        config: A config with target modules.

    Raises:
        ValueError: Such an embedding is a target.
    """
    if not config.target_modules or config.target_modules == "all-linear":
        return
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding):
            places.setdefault(id(module), []).append(path)
    for paths in places.values():
        if len(paths) > 1 and any(is_target(config, path) for path in paths):
            raise ValueError(
                f"Target module {paths[0]} is one module with {' and '.join(paths[1:])}, and an adapter would stand in "
                "one of these places alone; save the model and load it again, which makes them modules of their own"
            )
