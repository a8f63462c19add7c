"""Adapters by the thousand: those of one recipe are the rows of one tensor."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttlora.tensor_train import Update
from ttlora.tuners.tt_lora.factors import RowsOfStack, Stack
from ttlora.tuners.tt_lora.layer import TTLoraLayer, without_autocast


class PooledAdapters(nn.Module):
    """Adapters with cores of the same shapes at the same layers: one tensor, an adapter a row.

    A mixed batch gathers the rows of the adapters that it names, contracts the cores of all layers of one shape in one
    pass, and adds each layer's updates by two batched products. The factors are gone with the batch.

    One adapter at a time can act on whole batches: its cores are copied to an adapter of PEFT's, the slot.

    Args:
        slot: An adapter of PEFT's, of the shapes and at the layers that the others share.
        layers: Name to layer, for all layers that have it.
        dtype: Of the cores; it widens with the adapters that are put in.
        capacity: For how many adapters there is room; it grows.
    """

    cores: Float[Tensor, "capacity parameters"]

    def __init__(self, slot: str, layers: Mapping[str, TTLoraLayer], dtype: torch.dtype, capacity: int = 1) -> None:
        super().__init__()
        self.slot = slot
        self.names: list[str] = []
        self._place: dict[str, int] = {}
        self.layers = dict(layers)
        alike: dict[Update, dict[str, TTLoraLayer]] = defaultdict(dict)
        for name, layer in layers.items():
            alike[layer.updates[slot]][name] = layer
        # in the order of a row: layers of one shape are neighbours
        self._groups = [(update, tuple(named.values())) for update, named in alike.items()]
        self._layer_names = [name for named in alike.values() for name in named]
        self._sizes = [update.parameters for update, group in self._groups for _ in group]
        device = self._groups[0][1][0].cores[slot].device
        # no part of a saved model: the adapters are in folders
        self.register_buffer("cores", torch.empty(capacity, sum(self._sizes), dtype=dtype, device=device), False)

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self.names)

    def put(self, name: str, cores: Mapping[str, Tensor]) -> None:
        """Add an adapter, or replace the one of that name.

        Args:
            name: Its name.
            cores: Name of a layer to the flat vector of its cores.
        """
        row = torch.cat([cores[layer] for layer in self._layer_names])
        self.cores = self.cores.to(torch.promote_types(self.cores.dtype, row.dtype))
        place = self._place.get(name, len(self.names))
        if place == len(self.cores):
            self.resize(2 * place)
        self.cores[place] = row.to(self.cores)
        if place == len(self.names):
            self.names.append(name)
            self._place[name] = place

    def remove(self, name: str) -> None:
        """Forget an adapter; the last one takes its place."""
        place, last = self._place.pop(name), self.names.pop()
        if last != name:
            self.names[place] = last
            self._place[last] = place
            self.cores[place] = self.cores[len(self.names)]

    def resize(self, capacity: int) -> None:
        """Make room for a number of adapters, no smaller than that of those that are there."""
        if capacity != len(self.cores):
            larger = self.cores.new_empty(capacity, self.cores.shape[1])
            larger[: len(self)] = self.cores[: len(self)]
            self.cores = larger

    @torch.no_grad()
    def copy_to_slot(self, name: str | None) -> None:
        """Let the slot be an adapter; None: one that changes nothing."""
        # cores of zeros make no update
        row = self.cores.new_zeros(self.cores.shape[1]) if name is None else self.cores[self._place[name]]
        layers = (layer for _, group in self._groups for layer in group)
        for layer, cores in zip(layers, torch.split(row, self._sizes), strict=True):
            layer.cores[self.slot].copy_(cores)

    @torch.no_grad()
    def stacks(self, adapter_names: Sequence[str]) -> Iterator[tuple[TTLoraLayer, Stack]]:
        """The factors of those adapters that a mixed batch names, for each layer.

        Args:
            adapter_names: One name a row.
        """
        names = tuple(dict.fromkeys(name for name in adapter_names if name in self))
        if not names:
            return
        places = torch.tensor([self._place[name] for name in names], device=self.cores.device)
        gathered = self.cores.index_select(0, places)
        rows: dict[tuple[str, ...], RowsOfStack] = {}
        sizes = [update.parameters * len(group) for update, group in self._groups]
        for (update, group), cores in zip(self._groups, torch.split(gathered, sizes, dim=1), strict=True):
            of_layers = cores.view(len(names), len(group), -1).transpose(0, 1)
            alike = defaultdict(list)
            for index, layer in enumerate(group):
                alike[layer.cores[self.slot].device, layer.product_dtype].append(index)
            for (device, dtype), chosen in alike.items():
                part = of_layers if len(chosen) == len(group) else of_layers[chosen]
                with without_autocast(device):
                    factors = update.factors(part.reshape(-1, update.parameters).to(device), dtype)
                A, B = (factor.view(len(chosen), len(names), *factor.shape[1:]) for factor in factors)
                for index, *own in zip(chosen, A.unbind(), B.unbind(), strict=True):
                    yield group[index], Stack(names, (own[0], own[1]), rows)
