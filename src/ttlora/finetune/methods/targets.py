"""Which modules of a model a method adapts."""

import re
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from ttlora.finetune.base import Base, poolers_of
from ttlora.finetune.methods.method import in_head
from ttlora.tuners.targets import default_targets, query_and_value, require_modules
from ttlora.tuners.tt_lora import DEFAULT_TARGET_MODULES, TTLoraConfig, names_of_experts


def find_targets(base: Base, targets: Sequence[str] | str | None, config: PeftConfig) -> Any:
    """The names of the modules to adapt, after checking that the model has them; None: PEFT decides.

    Args:
        base: The model.
        targets: Names of modules, or ["all-linear"]; None: by default.
        config: The method's config.

    Raises:
        ValueError: A target is not there, or in the head; or none is given and the model's type has no default.
    """
    if targets is None and isinstance(config, TTLoraConfig):
        return sorted(default_targets(base.model, base.head))
    if targets is None:
        return query_and_value(base.model, base.head) if _takes_query_and_value(config) else None
    if list(targets) == ["all-linear"]:
        return "all-linear"
    of_experts = names_of_experts(base.model) if isinstance(config, TTLoraConfig) else set()
    require_modules(base.model, set(targets) - of_experts, base.head)
    for name in targets:
        paths = [path for path, _ in base.model.named_modules() if f".{path}".endswith(f".{name}")]
        if paths and all(in_head(f"{path}.", base.head) for path in paths):
            raise ValueError(f"'{name}' belongs to the head, which trains whole: leave it out of the targets")
    return list(targets)


def with_poolers(targets: Any, model: Any) -> Any:
    """The targets, and the linear layers of the poolers in a model's body.

    Args:
        targets: As `find_targets` gives them.
        model: The model.
    """
    poolers = poolers_of(model)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    of_poolers = [path for path in linear if in_head(f"{path}.", poolers)]
    if targets == "all-linear" or not of_poolers:
        return targets
    if isinstance(targets, str):
        return "|".join([targets, *map(re.escape, of_poolers)])
    return [*targets, *of_poolers]


def _takes_query_and_value(config: PeftConfig) -> bool:
    """Whether a method adapts query and value by default, as LoRA does: they are known for more models than PEFT's."""
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]  # type: ignore[index]
    return getattr(tuner, "target_module_mapping", {}).get("bert") == DEFAULT_TARGET_MODULES["bert"]
