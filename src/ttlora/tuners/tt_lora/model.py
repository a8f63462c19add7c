"""A transformer whose target modules are updated by tensor trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.tuners.tt_lora.config import TTLoraConfig, as_asked, write_shapes
from ttlora.tuners.tt_lora.layer import TTLoraLayer, TTLoraLinear

# Query and value, as in the paper (Section IV-A), for model types that PEFT's own table leaves out or sees otherwise.
DEFAULT_TARGET_MODULES: dict[str, Any] = {
    **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    "albert": ["query", "value"],
    "camembert": ["query", "value"],
    "cohere": ["q_proj", "v_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "ernie": ["query", "value"],
    "gemma3": ["q_proj", "v_proj"],
    "granite": ["q_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
    "nomic_bert": ["q_proj", "v_proj", "Wqkv"],
    "olmo": ["q_proj", "v_proj"],
    "olmo2": ["q_proj", "v_proj"],
    "phi": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
    "qwen2_moe": ["q_proj", "v_proj"],
    "qwen3_moe": ["q_proj", "v_proj"],
    "smollm3": ["q_proj", "v_proj"],
    "vit": ["q_proj", "v_proj", "query", "value"],
    "whisper": ["q_proj", "v_proj"],
    "xlm-roberta-xl": ["query", "value"],
}


class TTLoraModel(BaseTuner):
    """Puts `TTLoraLayer` in the place of the target modules of a model; made by ``get_peft_model``.

    Args:
        model: The model to adapt.
        peft_config: A `TTLoraConfig`.
        adapter_name: The adapter's name.

    Raises:
        ValueError: No module matches the targets, or a shape does not fit.
        TypeError: A target is not a linear layer.
    """

    prefix = "ttlora_"
    tuner_layer_cls = TTLoraLayer
    target_module_mapping = DEFAULT_TARGET_MODULES

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the target modules, and write the sizes and shapes into the adapter's config."""
        given = self.peft_config[adapter_name]
        config = self.peft_config[adapter_name] = as_asked(given)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        shapes, sizes = {}, {}
        for name, module in model.named_modules():
            if isinstance(module, TTLoraLayer) and adapter_name in module.ttlora_update:
                shapes[name] = module.ttlora_update[adapter_name].shape
                sizes[name] = [module.out_features, module.in_features]
        write_shapes(config, shapes, sizes)
        if config == given:
            # the object that the user holds, as long as it says the same
            self.peft_config[adapter_name] = given

    def _create_and_replace(  # type: ignore[override]  # PEFT hands each tuner its own config
        self,
        peft_config: TTLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, TTLoraLayer):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not _is_linear(base_layer):
            raise TypeError(
                f"Target module {current_key} is not supported: {type(base_layer).__name__} is none of "
                "`torch.nn.Linear` (quantised or not) and `transformers.pytorch_utils.Conv1D`."
            )
        layer = TTLoraLinear(target, adapter_name, peft_config, current_key, **get_quantization_kwargs(self.model))
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *_: Any, adapter_names: list[str] | None = None, num_beams: int | None = None, **__: Any
    ) -> Iterator[None]:
        """Hand the names of a mixed batch to the adapted layers, each once for every beam."""
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {name for layer in self.modules() if isinstance(layer, TTLoraLayer) for name in layer.ttlora_cores}
        if unknown := set(adapter_names) - known - {"__base__"}:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")

        names_in_beams = [name for name in adapter_names for _ in range(num_beams or 1)]
        # the encoder of an encoder-decoder model sees each row once, however many beams the decoder follows
        has_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        in_encoder = set(self.model.get_encoder().modules()) if has_decoder else set()
        handles = [
            module.register_forward_pre_hook(
                partial(_set_adapter_names, names=adapter_names if module in in_encoder else names_in_beams),
                with_kwargs=True,
            )
            for module in self.modules()
            if isinstance(module, TTLoraLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _set_adapter_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _is_linear(layer: nn.Module) -> bool:
    if isinstance(layer, torch.nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(layer)
    return backend is not None and backend.layer_type == "linear"
