"""Linear layers whose weight is updated by parameters that other layers share."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttlora.compat import fetched
from ttlora.tuners.shared.config import SharedConfig
from ttlora.tuners.shared.update import OwnUpdate
from ttlora.tuners.tt_lora.linear import TTLoraLinear


class SharedEntries(nn.Module):
    """The trained entries of a group of weights. Every layer of the group holds this one module.

    Args:
        entries: Their values at the start.
    """

    def __init__(self, entries: Float[Tensor, "parameters"]) -> None:
        super().__init__()
        self.entries = nn.Parameter(entries)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SharedEntries":
        """Move or cast the entries once, though every layer of the group hands it on."""
        with torch.no_grad():
            applied = fn(self.entries)
        if (applied.device, applied.dtype) == (self.entries.device, self.entries.dtype):
            return self
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class EntriesByName(Mapping[str, Tensor]):
    """The entries of each adapter, by its name, as the holders have them when asked.

    Args:
        holders: The `SharedEntries` of each adapter.
    """

    def __init__(self, holders: nn.ModuleDict) -> None:
        self._holders: Any = holders

    def __getitem__(self, name: str) -> Tensor:
        entries: Tensor = self._holders[name].entries
        return entries

    def __contains__(self, name: object) -> bool:
        held: bool = name in self._holders
        return held

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)


@dataclass(frozen=True)
class Share:
    """What a layer is given of an adapter.

    Attributes:
        config: The adapter's config.
        update: What its entries mean for this layer.
        holder: Holds the entries.
    """

    config: SharedConfig
    update: OwnUpdate
    holder: SharedEntries

    @property
    def from_file(self) -> bool:
        """Whether the config is that of a saved adapter."""
        return bool(self.config.from_file)


class SharedLinear(TTLoraLinear):
    """``y = W0 x + b + B_p A x``, with ``B_p A = ΔW_p`` from entries that the layers of a group share.

    It differs from TT-LoRA's layer in where the entries lie: in one module that all layers of a group hold, in a dict
    with the name of the adapter. What PEFT does to an adapter by its name (activate, freeze, cast, move, delete, load)
    it does through any of them. For ``nn.Linear``, quantised or not, and ``transformers``' ``Conv1D``.
    """

    _cores_container = nn.ModuleDict

    @property
    def holders(self) -> Any:
        """The `SharedEntries` of each adapter, by its name."""
        return getattr(self, self.adapter_layer_names[0])

    @property
    def cores(self) -> Mapping[str, Tensor]:
        """The entries of each adapter, by its name."""
        return EntriesByName(self.holders)

    def update_layer(self, adapter_name: str, share: Share, module_name: str) -> None:
        """Add an adapter, or replace the one of that name.

        Args:
            adapter_name: Its name.
            share: What the layer has of it.
            module_name: The layer's path in the model.
        """
        self.updates[adapter_name] = share.update
        self.dropouts[adapter_name] = nn.Dropout(share.config.dropout) if share.config.dropout else nn.Identity()
        self.holders[adapter_name] = share.holder
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=share.config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # the entries lie where the first layer of the group does
        if adapter_name in self.updates and self.updates[adapter_name].place == 0:
            super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def entries(self, adapter_name: str) -> Float[Tensor, "parameters"]:
        """What the update of an adapter is a function of, on the device of the layer.

        Args:
            adapter_name: The adapter.
        """
        holder = self.holders[adapter_name]
        entries = fetched(holder, lambda: holder.entries)
        device = self.base_parameter.device
        return entries if device.type == "meta" else entries.to(device)
