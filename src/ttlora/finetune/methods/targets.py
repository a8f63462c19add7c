"""Which modules of a model a method adapts."""

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.tuners.tt_lora import DEFAULT_TARGET_MODULES


def takes_query_and_value(config: PeftConfig) -> bool:
    """Whether a method adapts query and value by default, as LoRA does, and not other modules of its own."""
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]  # type: ignore[index]
    return getattr(tuner, "target_module_mapping", {}).get("bert") == DEFAULT_TARGET_MODULES["bert"]


def find_targets(base: Base, targets: Sequence[str] | str | None, query_and_value: bool) -> Any:
    """The modules to adapt, each of which is there; None: as PEFT decides.

    Args:
        base: The model.
        targets: Names of modules, or ["all-linear"]; None: by default.
        query_and_value: Whether the default is query and value, which are known for more types of models than PEFT
            knows them for.

    Raises:
        UserError: A target is not there, or none is given and the model's type has no default.
    """
    if targets is None:
        if not query_and_value:
            return None
        model_type = base.model.config.model_type
        if model_type not in DEFAULT_TARGET_MODULES:
            raise UserError(
                f"no default targets are known for models of type {model_type}: "
                f"name them with --targets, out of {linear_names(base)}"
            )
        return DEFAULT_TARGET_MODULES[model_type]
    if list(targets) == ["all-linear"]:
        return "all-linear"
    names = [name for name, _ in base.model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"--targets {target!r} is no module of model {base.name}: its linear modules are {linear_names(base)}"
            )
    return list(targets)


def linear_names(base: Base) -> str:
    """The names of a model's linear modules outside of its head, each once."""
    names = [
        name.rpartition(".")[2]
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.startswith(base.head)
    ]
    return ", ".join(dict.fromkeys(names))
