"""What our tuners have in common."""

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TaskType
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from ttlora.compat import holds_adapters
from ttlora.tuners.checks import require_called
from ttlora.tuners.targets import require_layers, require_modules, require_parameters
from ttlora.tuners.tied import require_one_place, ties_embeddings, untie

# Tasks whose head PEFT adds to the user's config when the adapter is in already: to the list that a copy has, too.
NAMED_LATER = (TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)


def _told(config: Any) -> str:
    """The targets of a config, in one line."""
    targets = config.target_modules
    return targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))


class Tuner(BaseTuner):
    """A tuner of PEFT whose adapters go in whole: one that does not fit leaves the model as it was.

    PEFT stops where a layer refuses, with the layers before it adapted, and whoever mends the config and tries again
    would adapt those twice.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the target modules, all of them or none.

        Raises:
            ValueError: A name that the config gives is that of nothing in the model. An adapter from a file is taken as
                it is: what it did not find when it was trained, it has no weights for.
        """
        config = self.peft_config[adapter_name]
        if not config.from_file and kwargs.get("state_dict") is None:
            require_one_place(model, config)
            if isinstance(config.target_modules, set | list):
                require_modules(model, config.target_modules)
            require_parameters(model, getattr(config, "target_parameters", None) or ())
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if not config.from_file:
                self._check_adapted(adapter_name)
        except Exception as error:
            self._take_out(model, adapter_name)
            for parameter in trainable:
                parameter.requires_grad_(True)
            if config.from_file and isinstance(error, NoMatchingPeftModuleError):
                raise ValueError(f"the model has none of the modules that it adapts: {_told(config)}") from None
            raise

    def _own_config(self, adapter_name: str) -> Any:
        """The config of an adapter that is to be put in, for what is resolved for this model to be written into.

        A copy: the user's may serve for another model. The one that an adapter is loaded with is that adapter's own,
        which PEFT promises to keep.
        """
        config = self.peft_config[adapter_name]
        if config.modules_to_save is None and config.task_type in NAMED_LATER:
            config.modules_to_save = []
        return config if config.inference_mode else copy.copy(config)

    def _check_adapted(self, adapter_name: str) -> None:
        """Refuse a new adapter whose config has settings for modules that it does not adapt."""

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        # here the default targets of the model's type are known
        if not peft_config.from_file and peft_config.layers_to_transform is not None and peft_config.target_modules:
            require_layers(model, peft_config)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        if not peft_config.from_file:
            require_called(parent, target_name, current_key)
        if self._is_adapted(target, parameter_name):
            layer: Any = target
            layer.update_layer(adapter_name, peft_config, current_key)
            return
        base_layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        make = self._layer_class(base_layer, current_key, parameter_name)
        self._replace_module(parent, target_name, make(target, adapter_name, peft_config, current_key), target)

    def _is_adapted(self, target: nn.Module, parameter_name: str | None) -> bool:
        """Whether a target is a layer of ours, which a further adapter joins."""
        return isinstance(target, self.tuner_layer_cls)

    @abstractmethod
    def _layer_class(self, base_layer: nn.Module, name: str, parameter_name: str | None) -> Callable[..., nn.Module]:
        """What makes the layer of ours for a base layer, or for one of its parameters.

        Raises:
            TypeError: The base layer cannot be adapted; the message names it.
        """

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Add the updates to the base weights, as PEFT does.

        Raises:
            ValueError: There is no adapter of a name, for which PEFT would merge nothing.
        """
        self._require_adapters(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        self._require_adapters(adapter_names)
        was_tied = ties_embeddings(self.model)
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if was_tied and not ties_embeddings(model):
            untie(model)
        return model

    def _require_adapters(self, adapter_names: list[str] | None) -> None:
        if unknown := sorted(set(adapter_names or ()) - set(self.peft_config)):
            raise ValueError(f"there is no adapter {unknown[0]!r}: there are {', '.join(self.peft_config)}")

    def _check_merge_allowed(self) -> None:
        # PEFT warns of tied weights here, which our layers untie when they merge
        pass

    def _twin(self, adapter_name: str) -> str | None:
        """The adapter of which a new one is to be a copy.

        TRL's trainers keep the model that they start from as an adapter "ref", made from another one's config. They
        copy its weights by the names that LoRA's have, which ours have not.
        """
        given = self.peft_config[adapter_name]
        others = (name for name, config in self.peft_config.items() if config is given and name != adapter_name)
        return next(others, None) if adapter_name == "ref" else None

    def _take_out(self, model: nn.Module, adapter_name: str) -> None:
        layers = [module for module in model.modules() if isinstance(module, self.tuner_layer_cls)]
        for layer in layers:
            layer.delete_adapter(adapter_name)
        without_adapter = {layer for layer in layers if not holds_adapters(layer)}
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                base_layer: Any = child
                while base_layer in without_adapter:
                    base_layer = base_layer.base_layer
                if base_layer is not child:
                    setattr(parent, name, base_layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Our layers put what trains where the base layer's weight is, where PEFT would look for a `weight` on every
        # module; and it would give a norm that is unloaded the weight of its trained copy.
        setattr(parent, child_name, new_module)
