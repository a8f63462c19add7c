"""A transformer whose target modules are updated by a LoRA of tensor trains."""

from collections.abc import Callable
from functools import partial
from typing import Any

from peft.utils import get_quantization_kwargs
from torch import nn

from ttlora.tuners.checks import require_linear
from ttlora.tuners.loretta_rep.config import LorettaRepConfig, write_shapes
from ttlora.tuners.loretta_rep.layer import LorettaRepLinear
from ttlora.tuners.norms import TrainedNorm, train_norms
from ttlora.tuners.targets import DEFAULT_TARGET_MODULES
from ttlora.tuners.tt_lora.layer import TTLoraLayer
from ttlora.tuners.tt_lora.tuner import TrainTuner


class LorettaRepModel(TrainTuner):
    """Puts `LorettaRepLinear` in the place of the target modules of a model; made by ``get_peft_model``.

    Args:
        model: The model to adapt.
        peft_config: A `LorettaRepConfig`.
        adapter_name: The adapter's name.

    Raises:
        ValueError: No module matches the targets, or a size does not fit.
        TypeError: A target is not linear.
    """

    prefix = "loretta_rep_"
    tuner_layer_cls = LorettaRepLinear
    target_module_mapping = DEFAULT_TARGET_MODULES

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the target modules, and train copies of the norms where the config asks for it."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        if config.train_layer_norms:
            train_norms(model, adapter_name, adapter_name in self.active_adapters, config.inference_mode)

    def _write_shapes(self, config: LorettaRepConfig, adapter_name: str, layers: dict[str, TTLoraLayer]) -> None:
        write_shapes(config, {name: layer.updates[adapter_name] for name, layer in layers.items()})

    def _layer_class(self, base_layer: nn.Module, name: str, parameter_name: str | None) -> Callable[..., nn.Module]:
        require_linear(base_layer, name)
        return partial(LorettaRepLinear, **get_quantization_kwargs(self.model))

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        self._require_adapters(adapter_names)
        if merge:
            self._put_trained_norms_in(self.active_adapters if adapter_names is None else adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _put_trained_norms_in(self, adapter_names: list[str]) -> None:
        """Put the trained copies of the norms in the places of the originals, so that unloading keeps them."""
        for norm in self.model.modules():
            if isinstance(norm, TrainedNorm):
                trained = [name for name in adapter_names if name in norm.modules_to_save]
                if len(trained) > 1:
                    raise ValueError(
                        f"the adapters {', '.join(trained)} cannot be merged into one model: each has LayerNorms of "
                        "its own; merge one of them"
                    )
                for name in trained:
                    dtype = next(norm.original_module.parameters()).dtype
                    norm.original_module = norm.modules_to_save[name].to(dtype)
