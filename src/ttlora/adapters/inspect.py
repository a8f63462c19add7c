"""What is in an adapter: its shapes, ranks and sizes, and the norm of each update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ttlora.adapters.header import TensorInfo
from ttlora.adapters.read import Adapter, read_adapter
from ttlora.tensor_train import TTShape
from ttlora.tuners.lorta.update import CPShape
from ttlora.tuners.shared.config import SharedConfig
from ttlora.tuners.shared.update import OwnUpdate
from ttlora.tuners.tt_lora import TTLoraConfig, saved_update


@dataclass(frozen=True)
class ModuleReport:
    """What an adapter holds for one module.

    Attributes:
        name: The module's name in the base model; "" for what belongs to none, such as learned prompts.
        tensors: Its tensors, by key in the file.
        shape: Dims and ranks of its train (or of its CP decomposition); None for other methods.
        norm: Frobenius norm of the update, its scale included; not finite where the cores are not. None for other
            methods.
        others: The other modules that the tensors serve, where layers share them; `norm` is that of all their updates.
    """

    name: str
    tensors: Mapping[str, TensorInfo]
    shape: TTShape | CPShape | None = None
    norm: float | None = None
    others: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The adapter's parameters for this module; the start that DoTA measures them from does not train."""
        return sum(info.parameters for key, info in self.tensors.items() if not key.endswith(".ttlora_start"))


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter folder holds.

    Attributes:
        adapter: The checked folder.
        modules: A report on each adapted module.
    """

    adapter: Adapter
    modules: tuple[ModuleReport, ...]

    @property
    def method(self) -> str:
        """The adapter's method, such as tt-lora or lora."""
        method: str = self.adapter.config.peft_type.value.lower()
        return {"ttlora": "tt-lora", "meta_tt": "meta-tt"}.get(method, method)

    @property
    def base_model(self) -> str | None:
        """The base model that the config names; None: it names none."""
        name: str | None = self.adapter.config.base_model_name_or_path
        return name

    @property
    def adapter_parameters(self) -> int:
        """Parameters of all updates."""
        return sum(module.parameters for module in self.modules)

    @property
    def other_parameters(self) -> int:
        """Parameters that were trained beside the updates, such as a task's head."""
        return sum(info.parameters for info in self.adapter.others.values())

    @property
    def bytes(self) -> int:
        """Size of the weights on disk."""
        return self.adapter.weights_file.stat().st_size

    @property
    def dtypes(self) -> list[str]:
        """Number formats of the updates' tensors."""
        return sorted({info.dtype for module in self.modules for info in module.tensors.values()})


def inspect(adapter: str | Path) -> AdapterReport:
    """Report what an adapter folder holds: method, shapes, ranks, parameters, bytes, and the norm of each update.

    Norms come from the cores: the dense update is never built.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of `train`.

    Raises:
        UserError: There is no adapter, or it is damaged.

    Examples:
        >>> import ttlora
        >>> report = ttlora.inspect("run")
        >>> report.method
        'tt-lora'
        >>> report.adapter_parameters == sum(module.parameters for module in report.modules)
        True
    """
    content = read_adapter(adapter)
    config = content.config
    if isinstance(config, SharedConfig):
        return AdapterReport(content, tuple(_inspect_group(content, *group) for group in config.saved_groups().items()))
    if not isinstance(config, TTLoraConfig):
        return AdapterReport(content, tuple(ModuleReport(*module) for module in content.modules.items()))
    return AdapterReport(content, tuple(_inspect_train(content, config, *module) for module in content.modules.items()))


def _inspect_train(
    adapter: Adapter, config: TTLoraConfig, name: str, tensors: Mapping[str, TensorInfo]
) -> ModuleReport:
    update = saved_update(config, name)
    train = update.acting_train(adapter.entries(name).double())
    return ModuleReport(name, tensors, update.shape, train.norm().item())


def _inspect_group(adapter: Adapter, name: str, updates: Mapping[str, OwnUpdate]) -> ModuleReport:
    entries = adapter.entries(name).double()
    norm = math.hypot(*(update.norm(entries).item() for update in updates.values()))
    others = tuple(module for module in updates if module != name)
    return ModuleReport(name, adapter.modules[name], updates[name].shared.shape, norm, others)
