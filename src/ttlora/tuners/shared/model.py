"""A transformer whose target modules are updated by parameters that they share."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_quantization_kwargs
from torch import Tensor, nn

from ttlora.compat import in_out_features, is_target, with_all_linear
from ttlora.tuners.checks import require_linear
from ttlora.tuners.shared.config import SharedConfig
from ttlora.tuners.shared.groups import in_order
from ttlora.tuners.shared.layer import Share, SharedEntries, SharedLinear
from ttlora.tuners.shared.update import OwnUpdate, SharedUpdate
from ttlora.tuners.targets import DEFAULT_TARGET_MODULES, own_modules
from ttlora.tuners.tt_lora.factors import BuiltFactors, Factors
from ttlora.tuners.tt_lora.layer import TTLoraLayer, without_autocast
from ttlora.tuners.tt_lora.together import at_rest
from ttlora.tuners.tt_lora.tuner import TrainTuner


class SharedModel(TrainTuner):
    """Puts layers in the places of the target modules of a model that share the entries of an adapter.

    The entries of a group of weights are a module of their own, which stands in every layer of the group. A model's
    parameters name them once, and so does the file of a saved adapter, by the path that comes first when paths are
    sorted: its config says which other layers they serve.

    Args:
        model: The model to adapt.
        peft_config: The config of such a method.
        adapter_name: The adapter's name.

    Raises:
        ValueError: No module matches the targets, or a size does not fit.
        TypeError: A target is not linear.
    """

    target_module_mapping = DEFAULT_TARGET_MODULES

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the target modules, by the config's names even where a state dict is given: that names a few of them.

        Raises:
            ValueError: As for every tuner, or the config was written for other weights.
        """
        kwargs["state_dict"] = None
        self._updates: dict[str, OwnUpdate] = {}
        self._holders: dict[SharedUpdate, SharedEntries] = {}
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            self._holders = {}

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        sizes = target_sizes(with_all_linear(peft_config, model), model)
        if sizes and peft_config.from_file and peft_config.weight_sizes:
            _require_same(peft_config.weight_sizes, sizes)
        self._updates = peft_config.own_updates(sizes) if sizes else {}

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        require_linear(target.get_base_layer() if isinstance(target, BaseTunerLayer) else target, kwargs["current_key"])
        update = self._updates[kwargs["current_key"]]
        if update.shared not in self._holders:
            self._holders[update.shared] = SharedEntries(update.shared.start(zero=peft_config.init_weights))
        share = Share(peft_config, update, self._holders[update.shared])
        super()._create_and_replace(share, adapter_name, target, *args, **kwargs)

    def _layer_class(self, base_layer: nn.Module, name: str, parameter_name: str | None) -> Callable[..., nn.Module]:
        kind: Any = self.tuner_layer_cls
        return partial(kind, **get_quantization_kwargs(self.model))

    def _write_shapes(self, config: SharedConfig, adapter_name: str, layers: dict[str, TTLoraLayer]) -> None:
        config.weight_sizes = {name: layer.weight_sizes for name, layer in layers.items()}

    def _build(self, layers: Sequence[TTLoraLayer]) -> BuiltFactors:
        """All places of a group from one contraction."""
        alike: dict[Any, list[tuple[SharedLinear, str]]] = defaultdict(list)
        # layers of another method build their own
        for layer in (layer for layer in layers if isinstance(layer, SharedLinear)):
            for name in layer.acting_adapters:
                if at_rest(layer, name) and layer.cores[name].device == layer.base_parameter.device:
                    alike[layer.holders[name], layer.product_dtype].append((layer, name))
        single: dict[nn.Module, dict[str, Factors]] = defaultdict(dict)
        for (holder, dtype), members in alike.items():
            layer, name = members[0]
            with without_autocast(holder.entries.device):
                A, B = layer.updates[name].shared.factors(holder.entries, dtype)
            places = B.unbind()
            for layer, name in members:
                update = layer.updates[name]
                single[layer][name] = A, places[update.place][: update.out_features]
        return BuiltFactors(single)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        again = {name for names in _names_of_shared(model) for name in names[1:]}
        return {key: tensor for key, tensor in found.items() if key not in again}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for names in _names_of_shared(model):
            if names[0] in mapped:
                mapped |= dict.fromkeys(names, mapped[names[0]])
        return mapped


def target_sizes(config: Any, model: nn.Module) -> dict[str, list[int]]:
    """``[out, in]`` of the linear modules that a config adapts, by their paths.

    Args:
        config: The config, which names its targets.
        model: The model, adapted or not.
    """
    sizes = {}
    for path, module in own_modules(model):
        if path and is_target(config, path):
            in_features, out_features = in_out_features(module)
            if in_features is not None and out_features is not None:
                sizes[path] = [out_features, in_features]
    return sizes


def _require_same(saved: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """Refuse a saved adapter whose weights are not those of the model.

    Raises:
        ValueError: A weight is missing, or one too many, or has another size.
    """
    for module in [*saved, *found]:
        before, now = (" x ".join(map(str, sizes[module])) if module in sizes else "" for sizes in (saved, found))
        if before != now:
            raise ValueError(
                f"{module} {f'is {now}' if now else 'is no target'}, but this adapter was made for a model in which it "
                f"{f'is {before}' if before else 'is none'}: load it into that model"
            )


def _names_of_shared(model: nn.Module) -> list[list[str]]:
    """All names of each parameter that layers share, in order."""
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SharedEntries):
            names[module.entries].append(f"{path}.entries")
    return [sorted(of_parameter, key=in_order) for of_parameter in names.values()]
