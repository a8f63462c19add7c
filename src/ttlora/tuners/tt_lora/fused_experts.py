"""Experts whose weights transformers 5 stacks in parameters, by the names of the linear layers that they once were.

Lists of targets for Mixtral and its like name ``w1``, ``w2``, ``w3`` or ``gate_proj``, ``up_proj``, ``down_proj``, as
do the names in their files of weights. PEFT converts them for LoRA alone.
"""

import copy
from dataclasses import dataclass

from torch import nn

from ttlora.compat import is_target, stacked_experts
from ttlora.tuners.checks import is_linear
from ttlora.tuners.targets import own_modules, own_parameters, unmatched
from ttlora.tuners.tt_lora.config import TTLoraConfig


@dataclass(frozen=True)
class FusedWeight:
    """A parameter that holds what were the weights of linear layers.

    Attributes:
        path: Its path in the model, such as ``model.layers.0.mlp.experts.gate_up_proj``.
        layers: The paths of those layers, without the expert's number.
    """

    path: str
    layers: tuple[str, ...]


def fused_weights(model: nn.Module) -> list[FusedWeight]:
    """The stacked weights of a model's experts and, beside them, the weights of the routers, in the model's order."""
    sources = dict(stacked_experts(model))
    if not sources:
        return []
    modules, found = dict(own_modules(model)), []
    for path, _ in own_parameters(model):
        target = next((target for target in sources if f".{path}".endswith(f".{target}")), None)
        owner = path.rpartition(".")[0]
        if target is not None:
            found.append(FusedWeight(path, tuple(f"{owner}.{name}" for name in sources[target])))
        elif path.endswith(".gate.weight") and not is_linear(modules[owner]):
            found.append(FusedWeight(path, (owner,)))
    return found


def names_of_experts(model: nn.Module) -> set[str]:
    """The names of the layers that are stacked in parameters now; a target of such a name means the parameter."""
    return {layer.rpartition(".")[2] for weight in fused_weights(model) for layer in weight.layers}


def with_fused_experts(config: TTLoraConfig, model: nn.Module) -> TTLoraConfig:
    """The config whose targets mean the stacked weights, where they mean what was stacked: as PEFT does for LoRA.

    Of the target modules those stay that are linear layers still, such as those of shared experts.

    Args:
        config: A config, which stays as it is.
        model: A model, adapted or not.

    Returns:
        The config itself where nothing is to be changed.

    Raises:
        ValueError: The targets mean a part of a stacked weight, or a pattern of the config is for a part.
    """
    if not config.target_modules or not (weights := fused_weights(model)):
        return config
    everything = config.target_modules == "all-linear"
    converted: list[FusedWeight] = []
    for weight in weights:
        meant = [layer for layer in weight.layers if everything or is_target(config, layer)]
        if not meant:
            continue
        if missing := [layer for layer in weight.layers if layer not in meant]:
            one, other = meant[0].rpartition(".")[2], missing[0].rpartition(".")[2]
            raise ValueError(
                f"target_modules has {one} and not {other}: both are in the parameter {weight.path}; name both or none"
            )
        converted.append(weight)
    if not converted:
        return config
    for weight in converted:
        _refuse_patterns_for_parts(config, weight)
    paths = [path for path, _ in own_parameters(model)]
    config = copy.copy(config)
    config.target_parameters = sorted({*(config.target_parameters or []), *_shortened(converted, paths)})
    if everything:
        return config
    layers = {layer for weight in converted for layer in weight.layers}
    modules = {path: module for path, module in own_modules(model) if path}
    if isinstance(config.target_modules, str):
        matching = {path for path in modules if is_target(config, path)}
        config.target_modules = matching - layers
    else:
        names = set(config.target_modules or ())
        no_layers = set(unmatched(names, (path for path, module in modules.items() if is_linear(module))))
        config.target_modules = names - (no_layers - set(unmatched(no_layers, layers)))
    return config


def _refuse_patterns_for_parts(config: TTLoraConfig, weight: FusedWeight) -> None:
    *_, owner, name = weight.path.split(".")
    parts = {layer.rpartition(".")[2] for layer in weight.layers} - {name}
    for field in ("rank_pattern", "alpha_pattern", "shape_pattern"):
        if found := sorted(parts.intersection(getattr(config, field))):
            raise ValueError(f"{field} has {found[0]}, which is in the parameter {weight.path}: name {owner}.{name}")


def _shortened(weights: list[FusedWeight], paths: list[str]) -> list[str]:
    """The paths of the weights by their last two names, where these mean no other parameter."""
    wanted, short = {weight.path for weight in weights}, []
    for path in wanted:
        ending = ".".join(path.split(".")[-2:])
        alike = {other for other in paths if f".{other}".endswith(f".{ending}")}
        short.append(ending if alike <= wanted else path)
    return sorted(set(short))
