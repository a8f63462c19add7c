"""Weights that layers of a model share, of which an adapter updates one layer's alone."""

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ttlora.adapters.read import MODEL_PREFIX

# where PEFT's layers keep the layer that they stand for
WRAPPERS = {"base_layer", "original_module", "modules_to_save", "token_adapter"}


def base_name(key: str) -> str:
    """The name in the base model of a parameter of the adapted model, or of a tensor that was saved with an adapter.

    Args:
        key: Its name there.
    """
    return ".".join(part for part in key.removeprefix(MODEL_PREFIX).split(".") if part not in WRAPPERS)


class TiedWeights:
    """The weights of a model that stand in several places, such as in its embeddings and its output layer.

    An adapted layer adds the update to what it computes, and the layers that share its weight do not. So each gets a
    weight of its own before updates are added to weights, and those that are still alike share one again afterwards.

    Args:
        model: The model, before it is adapted.
    """

    def __init__(self, model: Any) -> None:
        self._names = [names for names in _places(model).values() if len(names) > 1]
        configs = {id(config): config for config in (model.config, model.config.get_text_config())}
        self._configs = [(config, getattr(config, "tie_word_embeddings", False)) for config in configs.values()]

    def split(self, adapted: nn.Module) -> None:
        """Give each layer a weight of its own, if the adapter is on one that shares its weight.

        Args:
            adapted: The adapted model.
        """
        known = {name for names in self._names for name in names}
        tied = {
            weight: names for weight, names in _places(adapted).items() if not known.isdisjoint(map(base_name, names))
        }
        if not any(_is_wrapped(name) for names in tied.values() for name in names):
            return
        for weight, names in tied.items():
            places: dict[str, list[str]] = defaultdict(list)
            for name in names:
                places[base_name(name)].append(name)
            seen: set[nn.Module] = set()
            for place in places.values():
                path, _, leaf = place[0].rpartition(".")
                layer = adapted.get_submodule(path)
                if layer in seen:
                    # some architectures share the layer itself once it has been resized, until they are loaded again
                    layer = copy.deepcopy(layer)
                    for name in place:
                        adapted.set_submodule(name.rpartition(".")[0], layer)
                elif seen:
                    setattr(layer, leaf, nn.Parameter(weight.detach().clone(), requires_grad=False))
                seen.add(layer)

    def join(self, merged: Any) -> None:
        """Let those that are alike share their weight again, and the model's config say whether they do.

        A decoder whose weights differ has none tied. An encoder and decoder keeps its config, which for some also says
        how outputs are scaled: transformers ties no two weights that it finds to differ.

        Args:
            merged: The model with the update added to its weights.
        """
        alike = [names for names in self._names if _are_alike([merged.get_parameter(name) for name in names])]
        differs = len(alike) < len(self._names)
        if differs and not merged.config.is_encoder_decoder:
            for config, _ in self._configs:
                config.tie_word_embeddings = False
            return
        for names in alike:
            for name in names[1:]:
                path, _, leaf = name.rpartition(".")
                setattr(merged.get_submodule(path), leaf, merged.get_parameter(names[0]))
        if self._names:
            for config, value in self._configs:
                config.tie_word_embeddings = value


def _are_alike(weights: list[nn.Parameter]) -> bool:
    return all(torch.equal(weights[0], weight) for weight in weights[1:])


def _places(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    places = defaultdict(list)
    for name, weight in model.named_parameters(remove_duplicate=False):
        places[weight].append(name)
    return places


def _is_wrapped(name: str) -> bool:
    return base_name(name) != name.removeprefix(MODEL_PREFIX)
