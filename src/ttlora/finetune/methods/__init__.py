"""Methods by name: which weights of a model train, and how they are saved and loaded."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from ttlora.errors import UserError
from ttlora.finetune.methods.method import OPEN_KEYS, Method, count_parameters, in_head
from ttlora.finetune.methods.own_weights import BitFit, Full, Head
from ttlora.finetune.methods.peft_method import PeftMethod
from ttlora.finetune.methods.prompts import PromptMethod
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig
from ttlora.tuners.tt_lora import TTLoraConfig
from ttlora.values import nearest

__all__ = ["METHODS", "OPEN_KEYS", "Method", "count_parameters", "find_method", "in_head"]

_SAVED: dict[str, Any] = {"adapter_dtype": "bfloat16"}
_IN_MODULES: dict[str, Any] = {**_SAVED, "learning_rate": 1e-3, "targets": None, "settings": {}}

# Learning rates are those that did best in docs/results, where the method was measured there; where the highest one
# did, the one below it.
# Where the paper's tables print a count, its virtual tokens, widths and ranks are those that have it in DeBERTa-base.
METHODS: Mapping[str, Method] = {
    "tt-lora": PeftMethod(
        "a tensor train for each target module, and the head",
        {
            **_IN_MODULES,
            "r": TTLoraConfig.r,
            "alpha": TTLoraConfig.alpha,
            "shape": "auto",
            "dropout": 0.0,
            "head": "dense",
        },
        TTLoraConfig,
        {"r": "r", "alpha": "alpha", "shape": "shape", "dropout": "dropout"},
    ),
    "loretta-adp": PeftMethod(
        "bottlenecks of two tensor trains in each layer, all LayerNorms, and the head",
        {**_IN_MODULES, "r": 64, "settings": {"tt_rank": 5}},
        BottleneckConfig,
        {"r": "r"},
    ),
    "loretta-rep": PeftMethod(
        "LoRA's two factors as tensor trains for each target module, all LayerNorms, and the head",
        {**_IN_MODULES, "r": 8, "alpha": 16.0, "shape": "auto", "dropout": 0.0},
        LorettaRepConfig,
        {"r": "r", "alpha": "alpha", "shape": "shape", "dropout": "dropout"},
    ),
    "meta-tt": PeftMethod(
        "one tensor train over layers and types for the targets of each size, and the head",
        {
            **_IN_MODULES,
            "learning_rate": 2e-3,
            "r": MetaTTConfig.r,
            "alpha": MetaTTConfig.alpha,
            "shape": None,
            "dropout": 0.0,
        },
        MetaTTConfig,
        {"r": "r", "alpha": "alpha", "shape": "shape", "dropout": "dropout"},
    ),
    "lorta": PeftMethod(
        "one CP decomposition over layers, types and heads for the targets, and the head",
        {**_IN_MODULES, "learning_rate": 5e-3, "r": LortaConfig.r, "alpha": LortaConfig.alpha, "dropout": 0.0},
        LortaConfig,
        {"r": "r", "alpha": "alpha", "dropout": "dropout"},
    ),
    "lora": PeftMethod(
        "two low-rank factors for each target module, and the head",
        {**_IN_MODULES, "r": 8, "alpha": 16.0, "dropout": 0.0},
        LoraConfig,
        {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"},
    ),
    "adapter": PeftMethod(
        "bottlenecks behind each feed-forward and attention, all LayerNorms, and the head",
        {**_IN_MODULES, "r": 8},
        BottleneckConfig,
        {"r": "r"},
    ),
    "prefix": PromptMethod(
        "keys and values in front of each row in all layers, and the head",
        {**_SAVED, "learning_rate": 3e-2, "settings": {"num_virtual_tokens": 8}},
        PrefixTuningConfig,
        {},
    ),
    "prompt": PromptMethod(
        "embeddings in front of each row, and the head",
        {**_SAVED, "learning_rate": 3e-2, "settings": {"num_virtual_tokens": 10}},
        PromptTuningConfig,
        {},
    ),
    "p-tuning": PromptMethod(
        "embeddings in front of each row, made by a small network that trains too, and the head",
        {**_SAVED, "learning_rate": 3e-3, "settings": {"num_virtual_tokens": 20, "encoder_hidden_size": 128}},
        PromptEncoderConfig,
        {},
    ),
    "bitfit": BitFit("all biases, and the head", {**_SAVED, "learning_rate": 3e-3}),
    "head": Head("the head alone", {**_SAVED, "learning_rate": 1e-3}),
    "full": Full("every weight", {"learning_rate": 5e-5, "adapter_dtype": "float32"}),
}

# Methods of few or of shared parameters learn at higher rates.
LEARNING_RATES = {"vera": 3e-2, "pvera": 3e-2, "ia3": 1e-2, "tinylora": 5e-3, "unilora": 5e-3, "vblora": 5e-3}
# PEFT would save random projections, which are larger than what trains and follow from a seed in the config.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "vera": {"save_projection": False},
    "pvera": {"save_projection": False},
    "randlora": {"save_projection": False},
    "tinylora": {"save_projection": False},
}
UNFIT = {
    "adalora": "it decides its ranks in the loop of a training of its own",
    "adaption_prompt": "it knows some causal models alone, and has no place for a head",
    "cartridge": "it is distilled from a text that a model has read",
    "cpt": "it needs the tokens of a context and a type for each token of a row",
    "multitask_prompt_tuning": "it needs a task's number in every row",
    "poly": "it needs a task's number in every row",
    "shadow": "it trains a second model beside the first, with a loss of its own",
    "trainable_tokens": "it trains embeddings of single tokens, and has no place for a head",
    "xlora": "it mixes LoRA adapters that have been trained before",
}


def find_method(name: str) -> Method:
    """The method of that name: one of `METHODS`, or another type of PEFT by its name in lower case, with - or _.

    Raises:
        UserError: There is none, or it cannot be used this way.
    """
    if name in METHODS:
        return METHODS[name]
    others = _other_types()
    key = name.replace("-", "_")
    if key in UNFIT:
        raise UserError(f"method {name} of PEFT cannot be used here: {UNFIT[key]}")
    if key not in others:
        close = nearest(name, [*METHODS, *others])
        there = f"there are {', '.join(METHODS)}, and of PEFT {', '.join(others)}"
        raise UserError(f"no method is called {name!r}: {f'did you mean {close}?' if close else there}")
    config = others[key]
    r = next((field.default for field in fields(config) if field.name == "r"), None)
    has_rank = isinstance(r, int) and r > 0
    defaults = {**_IN_MODULES, "settings": SETTINGS.get(key, {}), **({"r": r} if has_rank else {})}
    if key in LEARNING_RATES:
        defaults["learning_rate"] = LEARNING_RATES[key]
    return PeftMethod(f"PEFT's {key.upper()}, and the head", defaults, config, {"r": "r"} if has_rank else {})


def _other_types() -> dict[str, Any]:
    """The config of each type of PEFT that has no name of its own here, by its name in lower case."""
    named = {method.config for method in METHODS.values() if isinstance(method, PeftMethod)}
    return {
        peft_type.value.lower(): config
        for peft_type, config in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items())
        if config not in named and peft_type.value.lower() not in UNFIT
    }
