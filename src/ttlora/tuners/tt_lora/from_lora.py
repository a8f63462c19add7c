"""From LoRA's settings to TT-LoRA's: what is taken over, and what is written in another way."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from peft import LoraConfig

# what says the same in both configs
SHARED = (
    *("task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save",),
)
# an option of LoRA's that TT-LoRA has under another name, and what to write
WRITTEN = {
    "lora_alpha": "alpha=4, which multiplies the update as it is, without a division by r",
    "lora_dropout": "dropout",
    "use_rslora": "scaling='alpha/sqrt(r)'",
    "init_lora_weights": "init_weights",
}
# what LoRA derives by itself or what only sizes and starts its two factors
OF_NO_CONCERN = {
    *("peft_type", "auto_mapping", "peft_version", "r", "bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("runtime_config", "qalora_group_size", "ensure_weight_tying"),
}


def refuse_loras_options(names: Iterable[str]) -> None:
    """Refuse LoRA's options where TT-LoRA's are wanted.

    Args:
        names: Names of options.

    Raises:
        TypeError: One is LoRA's; the message says what to write instead.
    """
    of_lora = {field.name for field in dataclasses.fields(LoraConfig)}
    for name in names:
        if name in WRITTEN:
            raise TypeError(f"{name} is an option of LoRA: for TT-LoRA write {WRITTEN[name]}")
        if name in of_lora:
            raise TypeError(f"{name} is an option of LoRA, and TT-LoRA has no such thing: leave it out")


def options_of_lora(lora: LoraConfig) -> dict[str, Any]:
    """The options of a LoRA config that TT-LoRA takes over: targets, layers, dropout, biases and modules saved whole.

    Args:
        lora: A LoRA config. Its ranks and scales are those of two matrices, and are not taken over.

    Raises:
        ValueError: It asks for something of LoRA's that TT-LoRA does not have, such as DoRA.
    """
    plain = LoraConfig()
    known = {*SHARED, *WRITTEN, *OF_NO_CONCERN}
    for field in dataclasses.fields(LoraConfig):
        value = getattr(lora, field.name)
        if field.name not in known and value != getattr(plain, field.name):
            raise ValueError(f"{field.name}={value!r} is LoRA's alone, and TT-LoRA has no such thing: take it out")
    options = {name: getattr(lora, name) for name in SHARED}
    if lora.use_rslora:
        options["scaling"] = "alpha/sqrt(r)"
    bias = "ttlora_only" if lora.bias == "lora_only" else lora.bias
    return {**options, "dropout": lora.lora_dropout, "bias": bias}
