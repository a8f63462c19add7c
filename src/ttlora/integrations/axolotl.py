"""TT-LoRA in Axolotl: a plugin with which its YAML takes ``adapter: ttlora`` (docs/guides/axolotl.md)."""

# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False
from typing import Any, Self

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from axolotl.loaders.adapter import load_lora
from axolotl.utils.dict import DictDefault
from peft import PeftConfig, PeftModel, get_peft_model
from pydantic import BaseModel, model_validator
from transformers import PreTrainedModel

from ttlora.tuners.tt_lora import TTLoraConfig

ADAPTER, PREFIX = "ttlora", "ttlora_"
# Axolotl's keys for LoRA that have another name here, and those that mean nothing for a tensor train
WRITTEN = {
    "lora_r": "ttlora_r",
    "lora_alpha": "ttlora_alpha, which multiplies the update as it is, without a division by the rank",
    "lora_rank_pattern": "ttlora_rank_pattern",
    "lora_alpha_pattern": "ttlora_alpha_pattern",
    "peft_init_lora_weights": "ttlora_init_weights",
}
LORAS_ALONE = (
    *("peft", "peft_use_dora", "peft_layer_replication", "peft_trainable_token_indices", "loraplus_lr_ratio"),
    *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"),
)
# Axolotl quantises for its own adapters alone; this is how it does it
QUANTIZED: dict[str, dict[str, Any]] = {
    "load_in_8bit": {"load_in_8bit": True},
    "load_in_4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}


class TTLoraArgs(BaseModel):
    """What the plugin adds to Axolotl's YAML: fields of `TTLoraConfig`, whose defaults hold for what is missing."""

    ttlora_r: int | list[int] | None = None
    ttlora_alpha: float | None = None
    ttlora_shape: str | list[int] | None = None
    ttlora_rank_pattern: dict[str, Any] | None = None
    ttlora_alpha_pattern: dict[str, float] | None = None
    ttlora_shape_pattern: dict[str, Any] | None = None
    ttlora_scaling: str | None = None
    ttlora_init_weights: bool | str | None = None
    ttlora_core_size: float | str | None = None

    @model_validator(mode="before")
    @classmethod
    def settle(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Refuse keys that nobody would read, and set those by which Axolotl quantises and merges.

        Args:
            data: What the YAML says.

        Raises:
            ValueError: A key is unknown or LoRA's, or asks for a merge that only LoRA has.
        """
        if data.get("adapter") != ADAPTER:
            return data
        for key, value in data.items():
            if key.startswith(PREFIX) and key not in TTLoraArgs.model_fields:
                raise ValueError(f"{key} is no key of the plugin, which has {', '.join(TTLoraArgs.model_fields)}")
            if value and (key in WRITTEN or key in LORAS_ALONE):
                instead = f"write {WRITTEN[key]}" if key in WRITTEN else "leave it out"
                raise ValueError(f"{key} is a key for LoRA: for TT-LoRA {instead}")
        data = {**data, "merge_method": data.get("merge_method") or "legacy"}
        if data["merge_method"] != "legacy":
            raise ValueError(f"merge_method: {data['merge_method']} merges LoRA alone: write legacy, or leave it out")
        if data.get("ttlora_core_size", "even") is None:
            data["ttlora_core_size"] = "none"  # Axolotl drops every null
        for key in filter(data.get, QUANTIZED):
            bits = {"quant_method": "bitsandbytes", **QUANTIZED[key], **(data.get("bnb_config_kwargs") or {})}
            given = [data.pop(name, None) or {} for name in ("overrides_of_model_kwargs", "model_kwargs")]  # one key
            data["model_kwargs"] = {"quantization_config": bits, **given[0], **given[1]}
        return data

    @model_validator(mode="after")
    def check(self) -> Self:
        """Try the values, before a model is loaded.

        Raises:
            ValueError: One is not what `TTLoraConfig` takes.
        """
        if getattr(self, "adapter", None) == ADAPTER:
            try:
                TTLoraConfig(**_options(self.model_dump()))
            except ValueError as error:
                raise ValueError(f"among the keys that begin with {PREFIX}: {error}") from None
        return self


class TTLoraPlugin(BasePlugin):
    """Gives Axolotl the adapter ``ttlora``."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the plugin's keys."""
        return f"{__name__}.{TTLoraArgs.__name__}"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """The adapter's name."""
        return [AdapterCapabilities(name=ADAPTER)]

    def load_adapter(
        self, model: PreTrainedModel, cfg: DictDefault, inference: bool = False, config_only: bool = False
    ) -> tuple[PeftModel | None, PeftConfig] | None:
        """Put a new adapter on a model, or the one of ``lora_model_dir``, which keeps its own settings.

        Args:
            model: The base model.
            cfg: What the YAML says, checked.
            inference: Whether the adapter is not to be trained further.
            config_only: Whether a trainer puts a new adapter on by itself.

        Returns:
            The adapted model and its config; None: the YAML asks for another adapter.

        Raises:
            ValueError: ``lora_model_dir`` is not TT-LoRA's or would not be read, or the YAML does not fit the model.
        """
        if cfg.adapter != ADAPTER:
            return None
        dtype = {} if (cast := cfg.peft_autocast_adapter_dtype) is None else {"autocast_adapter_dtype": cast}
        if folder := cfg.lora_model_dir:
            if config_only:
                raise ValueError(
                    "lora_model_dir: with dpo, ipo and kto Axolotl always trains a new adapter: leave it out"
                )
            if not isinstance(config := PeftConfig.from_pretrained(folder), TTLoraConfig):
                raise ValueError(f"lora_model_dir: {folder} has an adapter of {config.peft_type.value}, not of TT-LoRA")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=not inference, **dtype)
        else:
            # the modules, layers and dropout of Axolotl's keys for LoRA, which has an empty list for what is not said
            lora = load_lora(model, cfg, config_only=True)[1]
            targets = {name: getattr(lora, name) or None for name in ("target_modules", "target_parameters")}
            config = TTLoraConfig.from_lora(lora, **targets, **_options(cfg))
            if config_only:
                return None, config
            adapted = get_peft_model(model, config, **dtype)
        if not cfg.local_rank:
            adapted.print_trainable_parameters()
        return adapted, config


def _options(keys: dict[str, Any]) -> dict[str, Any]:
    """`TTLoraConfig`'s options among the keys of a YAML."""
    given = {name.removeprefix(PREFIX): keys[name] for name in TTLoraArgs.model_fields if keys.get(name) is not None}
    options = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
    return {**options, "core_size": None} if options.get("core_size") == "none" else options
