"""A weighted sum of adapters as one adapter."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ttlora.tensor_train import TensorTrain, TTShape
from ttlora.tuners.tt_lora.config import TTLoraConfig, by_pattern
from ttlora.tuners.tt_lora.layer import TTLoraLayer


def weighted_sum(layer: TTLoraLayer, weights: Mapping[str, float]) -> TensorTrain:
    """``Σ w_a ΔW_a`` of a layer, exactly: TT-ranks add up, and what exceeds an unfolding's rank falls away.

    Args:
        layer: An adapted layer.
        weights: Adapter to weight; adapters that the layer does not have count as zero.

    Raises:
        ValueError: The adapters have different shapes.
    """
    trains = []
    for adapter, weight in weights.items():
        if adapter in layer.cores:
            update = layer.updates[adapter]
            entries = layer.entries(adapter).detach().double()
            trains.append(replace(update, scale=update.scale * weight).acting_train(entries))
    total = trains[0]
    for train in trains[1:]:
        total = total + train
    return total.clipped()


def config_of_sum(configs: Sequence[TTLoraConfig], shapes: Mapping[str, TTShape], targets: set[str]) -> TTLoraConfig:
    """The config of a sum of adapters, whose ranks may differ from module to module.

    Args:
        configs: Those of the adapters.
        shapes: Module name to the shape of the sum.
        targets: Names of the adapted modules.

    Raises:
        ValueError: The adapters' configs cannot be one.
    """
    first = configs[0]
    if any(config.modules_to_save for config in configs):
        raise ValueError("adapters with modules_to_save have no sum: their heads cannot be added")
    if any(config.bias != "none" for config in configs):
        raise ValueError("adapters that train biases have no sum")
    config = copy.copy(first)
    config.alpha = first.alpha or 1.0
    config.alpha_pattern, config.scaling, config.dropout, config.init_weights = {}, "alpha", 0.0, True
    config.rank_pattern = by_pattern({name: list(shape.ranks[1:-1]) for name, shape in shapes.items()})
    same = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
    if any(getattr(other, name) != getattr(first, name) for other in configs for name in same):
        if any(other.target_parameters for other in configs):
            raise ValueError("adapters of different targets have no sum if some adapt parameters")
        config.target_modules = targets
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
        config.shape_pattern = by_pattern({name: list(shape.dims) for name, shape in shapes.items()})
    return config
