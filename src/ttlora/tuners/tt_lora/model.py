"""A transformer whose target modules are updated by tensor trains."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from peft.utils import get_quantization_kwargs
from torch import nn
from transformers import PreTrainedModel

from ttlora.tensor_train import TensorTrain
from ttlora.tuners.checks import is_linear
from ttlora.tuners.targets import DEFAULT_TARGET_MODULES, default_targets, require_matches
from ttlora.tuners.tt_lora.attention import TTLoraMultiheadAttention
from ttlora.tuners.tt_lora.combine import config_of_sum, weighted_sum
from ttlora.tuners.tt_lora.config import TTLoraConfig, write_shapes
from ttlora.tuners.tt_lora.conv import TTLoraConv
from ttlora.tuners.tt_lora.embedding import TTLoraEmbedding
from ttlora.tuners.tt_lora.experts import ParamWrapper
from ttlora.tuners.tt_lora.fused_experts import with_fused_experts
from ttlora.tuners.tt_lora.layer import TTLoraLayer
from ttlora.tuners.tt_lora.linear import TTLoraLinear
from ttlora.tuners.tt_lora.tuner import TrainTuner


class TTLoraModel(TrainTuner):
    """Puts `TTLoraLayer` in the place of the target modules of a model; made by ``get_peft_model``.

    Args:
        model: The model to adapt.
        peft_config: A `TTLoraConfig`.
        adapter_name: The adapter's name.

    Raises:
        ValueError: No module matches the targets, or a shape does not fit.
        TypeError: A target is of a kind that cannot be adapted.
    """

    prefix = "ttlora_"
    tuner_layer_cls = TTLoraLayer
    target_module_mapping = DEFAULT_TARGET_MODULES

    def _config_for(self, config: TTLoraConfig, model: nn.Module) -> TTLoraConfig:
        if config.target_modules is None and not config.target_parameters and isinstance(model, PreTrainedModel):
            config.target_modules = default_targets(model)
        return with_fused_experts(config, model)

    def _prepare_adapter_config(self, peft_config: TTLoraConfig, model_config: dict[str, Any]) -> TTLoraConfig:
        # as LoRA's, which adapts parameters alone where no modules are known for the type of the model
        if peft_config.target_parameters and model_config["model_type"] not in self.target_module_mapping:
            return peft_config
        return super()._prepare_adapter_config(peft_config, model_config)

    def _write_shapes(self, config: TTLoraConfig, adapter_name: str, layers: dict[str, TTLoraLayer]) -> None:
        write_shapes(
            config,
            {name: layer.updates[adapter_name].shape for name, layer in layers.items()},
            {name: layer.weight_sizes for name, layer in layers.items()},
            {name: layer.kind for name, layer in layers.items()},
        )
        if config.target_parameters:
            # from the outermost wrapper inwards, so that a saved config tells them apart
            def place(target: str) -> int:
                return next((at for at, name in enumerate(layers) if f".{name}".endswith(f".{target}")), len(layers))

            config.target_parameters = sorted(config.target_parameters, key=place)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        r: int | None = None,
        tolerance: float = 0.0,
    ) -> dict[str, float]:
        """Add an adapter whose update is ``Σ w_a ΔW_a`` (Oseledets 2011, Sections 3 and 4).

        Without `r` and `tolerance` it is exact, and its TT-ranks are the sums of the adapters'.

        Args:
            adapters: Names of adapters of this model.
            weights: A weight for each.
            adapter_name: Name of the new adapter; it is not made active.
            r: Bound on the new TT-ranks.
            tolerance: Bound on the relative error of each module's update, as long as `r` does not bind.

        Returns:
            Module name to the relative error ``‖ΔW - Σ w_a ΔW_a‖ / ‖Σ w_a ΔW_a‖``.

        Raises:
            ValueError: An adapter is not there, the new name is taken, the numbers of adapters and weights differ, the
                adapters have different shapes, or they train more than cores.
        """
        if not adapters or len(adapters) != len(weights) or len(set(adapters)) != len(adapters):
            raise ValueError(f"{len(weights)} weights for the adapters {list(adapters)}: one is needed for each")
        if unknown := [name for name in adapters if name not in self.peft_config]:
            raise ValueError(f"there is no adapter {unknown[0]!r}: there are {', '.join(self.peft_config)}")
        if adapter_name in self.peft_config:
            raise ValueError(f"there is an adapter {adapter_name!r} already: delete it or choose another name")
        trains: dict[str, TensorTrain] = {}
        errors: dict[str, float] = {}
        for name, layer in self._layers():
            if any(adapter in layer.cores for adapter in adapters):
                exact = weighted_sum(layer, dict(zip(adapters, weights, strict=True)))
                trains[name] = exact if r is None and not tolerance else exact.round(r, tolerance)
                norm, distance = exact.norm().item(), (trains[name] - exact).norm().item()
                errors[name] = distance / norm if norm else distance
        shapes = {name: train.shape for name, train in trains.items()}
        inner = {f"{name}.out_proj" for name, layer in self._layers() if isinstance(layer, TTLoraMultiheadAttention)}
        configs = [self.peft_config[name] for name in adapters]
        self.peft_config[adapter_name] = config_of_sum(configs, shapes, set(trains) - inner)
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        for name, layer in self._layers():
            if name in trains:
                cores = layer.cores[adapter_name]
                cores.data = layer.updates[adapter_name].entries_of(trains[name]).to(cores)
        return errors

    def _check_adapted(self, adapter_name: str) -> None:
        names = self._layers_with(adapter_name)
        for field in ("shape_pattern", "rank_pattern", "alpha_pattern"):
            require_matches(field.removesuffix("_pattern"), getattr(self.peft_config[adapter_name], field), names)

    def _is_adapted(self, target: nn.Module, parameter_name: str | None) -> bool:
        if parameter_name is None:
            return super()._is_adapted(target, parameter_name)
        return isinstance(target, ParamWrapper) and target.parameter_name == parameter_name

    def _layer_class(self, base_layer: nn.Module, name: str, parameter_name: str | None) -> Callable[..., nn.Module]:
        quantization = get_quantization_kwargs(self.model)
        if parameter_name is not None:
            return partial(ParamWrapper, parameter_name=parameter_name, **quantization)
        kind = _kind_of(base_layer)
        if kind is None:
            raise TypeError(
                f"Target module {name} is not supported: {type(base_layer).__name__} is none of "
                "`torch.nn.Linear` (quantised or not), `transformers.pytorch_utils.Conv1D`, `torch.nn.Embedding`, "
                "`torch.nn.Conv1d`, `torch.nn.Conv2d`, `torch.nn.Conv3d` and `torch.nn.MultiheadAttention`."
            )
        return partial(kind, **quantization)


def _kind_of(layer: nn.Module) -> type[TTLoraLayer] | None:
    if isinstance(layer, nn.Embedding):
        return TTLoraEmbedding
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return TTLoraConv
    if isinstance(layer, nn.MultiheadAttention):
        return TTLoraMultiheadAttention
    return TTLoraLinear if is_linear(layer) else None
