"""What our tuners have in common."""

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn


class Tuner(BaseTuner):
    """A tuner of PEFT whose adapters go in whole: one that does not fit leaves the model as it was.

    PEFT stops where a layer refuses, with the layers before it adapted, and whoever mends the config and tries again
    would adapt those twice.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adapt the target modules, all of them or none."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            self._take_out(model, adapter_name)
            for parameter in trainable:
                parameter.requires_grad_(True)
            raise

    def _take_out(self, model: nn.Module, adapter_name: str) -> None:
        layers = [module for module in model.modules() if isinstance(module, self.tuner_layer_cls)]
        for layer in layers:
            layer.delete_adapter(adapter_name)
        without_adapter = {layer for layer in layers if not layer._all_available_adapter_names()}
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
