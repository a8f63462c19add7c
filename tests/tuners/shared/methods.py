"""The methods whose parameters serve many layers at once, and what a tuner of theirs looks like from outside."""

import torch
from peft import get_peft_model

from ttlora import LortaConfig, MetaTTConfig
from ttlora.tuners.shared.layer import SharedLinear

RANDOM = {"init_weights": False}


def meta_tt(**options):
    return MetaTTConfig(**{"r": 4, **options})


def meta_tt_factored(**options):
    return MetaTTConfig(**{"r": 4, "shape": {"24": [4, 6], "40": [5, 8], "12": [3, 4]}, **options})


def lotr(**options):
    return MetaTTConfig(**{"r": 4, "joint": True, "core_size": None, **options})


def lorta(**options):
    return LortaConfig(**{"r": 4, **options})


METHODS = {"meta-tt": meta_tt, "lorta": lorta}
VARIANTS = {**METHODS, "meta-tt factored": meta_tt_factored, "lotr": lotr}


def layers_of(model):
    """The adapted layers by their paths in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, SharedLinear)
    }


def trained_of(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model.eval()(**inputs, **kwargs).logits


def random_model(architecture, make, name="default", **options):
    """A model with an adapter that changes it."""
    return get_peft_model(architecture.build(), make(**RANDOM, **options), adapter_name=name).eval()


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()
