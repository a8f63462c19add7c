"""What is in an adapter: its shapes, ranks and sizes, and how far the update has moved."""

from collections.abc import Mapping
from dataclasses import dataclass

from ttlora.adapters.header import TensorInfo
from ttlora.adapters.read import Adapter
from ttlora.tensor_train import TTShape
from ttlora.tuners.tt_lora import TTLoraConfig, saved_update


@dataclass(frozen=True)
class ModuleReport:
    """What an adapter holds for one module.

    Attributes:
        name: The module's name in the base model; "" for what belongs to none, such as learned prompts.
        tensors: Its tensors, by key in the file.
        shape: Dims and ranks of its train; None for other methods.
        norm: Frobenius norm of the update, its scale included; not finite where the cores are not. None for other
            methods.
    """

    name: str
    tensors: Mapping[str, TensorInfo]
    shape: TTShape | None = None
    norm: float | None = None

    @property
    def parameters(self) -> int:
        """The adapter's parameters for this module."""
        return sum(info.parameters for info in self.tensors.values())


def inspect_modules(adapter: Adapter) -> list[ModuleReport]:
    """Report on each adapted module.

    Norms come from the cores: the dense update is never built.

    Args:
        adapter: A checked adapter folder.
    """
    if not isinstance(adapter.config, TTLoraConfig):
        return [ModuleReport(name, tensors) for name, tensors in adapter.modules.items()]
    return [_inspect_train(adapter, adapter.config, name, tensors) for name, tensors in adapter.modules.items()]


def _inspect_train(
    adapter: Adapter, config: TTLoraConfig, name: str, tensors: Mapping[str, TensorInfo]
) -> ModuleReport:
    update = saved_update(config, name)
    (key,) = tensors
    return ModuleReport(name, tensors, update.shape, update.acting_train(adapter.load(key).double()).norm().item())
