"""Which modules of a model an adapter will change, decided by PEFT's and the tuner's own rules."""

from collections.abc import Sequence
from typing import Any

from peft import TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.compat import is_target, with_all_linear
from ttlora.errors import UserError
from ttlora.tuners.targets import default_places, linear_names, require_modules
from ttlora.tuners.tt_lora import TTLoraConfig
from ttlora.tuners.tt_lora.fused_experts import with_fused_experts


def resolve_targets(skeleton: Any, targets: Sequence[str] | None) -> list[str]:
    """The `target_modules` of the adapter's config: as asked for, or the tuner's default.

    Raises:
        ValueError: A target matches no module, or the model has none that are adapted by default.
    """
    if targets is None:
        linear = default_places(skeleton)
    elif list(targets) == ["all-linear"]:
        classifier = type(skeleton).__name__.endswith("ForSequenceClassification")
        config = TTLoraConfig(target_modules="all-linear", task_type=TaskType.SEQ_CLS if classifier else None)
        linear = with_all_linear(config, skeleton).target_modules
    else:
        require_modules(skeleton, targets)
        return list(targets)
    # a pooler trains whole, with the task's head
    return sorted(name for name in linear if "pooler" not in name)


def adapted_modules(skeleton: Any, config: Any) -> dict[str, tuple[int, int]]:
    """Each adapted module's full name, with its out and in features.

    Raises:
        UserError: A target is no linear module, or none is left.
    """
    sizes = {}
    for name, module in skeleton.named_modules():
        if is_target(config, name):
            size = _features(module)
            if size is None:
                raise UserError(
                    f"'{name}' is a {type(module).__name__}, which no adapter fits; linear modules are "
                    f"{linear_names(skeleton)}"
                )
            sizes[name] = size
    if not sizes:
        raise UserError(
            f"the model has none of the modules {config.target_modules} that are adapted by default; name "
            f"others as `targets`: {linear_names(skeleton)}"
        )
    return sizes


def split_experts(
    skeleton: Any, targets: Sequence[str] | None
) -> tuple[Sequence[str] | None, dict[str, tuple[int, int, int]]]:
    """Tell the targets that are modules from those that mean the stacked weights of experts, as the tuner does.

    Args:
        skeleton: A model.
        targets: Names of targets, or ["all-linear"]; None: the default.

    Returns:
        The targets that are modules, and each stacked weight's full name with its out and in features and experts.

    Raises:
        ValueError: The targets mean a part of a stacked weight.
    """
    if targets is None:
        return None, {}
    everything = list(targets) == ["all-linear"]
    config = with_fused_experts(TTLoraConfig(target_modules="all-linear" if everything else list(targets)), skeleton)
    sizes = {}
    for path, weight in skeleton.named_parameters():
        if any(f".{path}".endswith(f".{name}") for name in config.target_parameters or ()):
            *experts, rows, columns = weight.shape
            if experts and getattr(skeleton.get_submodule(path.rpartition(".")[0]), "is_transposed", False):
                rows, columns = columns, rows
            sizes[path] = (rows, columns, *(experts or [1]))
    return (targets if everything or not sizes else sorted(config.target_modules or ())), sizes


def _features(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    return None
