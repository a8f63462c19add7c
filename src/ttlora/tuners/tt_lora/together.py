"""Building the factors of all adapted layers at once, before a forward."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ttlora.tuners.tt_lora.layer import BUILT_FACTORS, TTLoraLayer, without_autocast
from ttlora.tuners.tt_lora.linear import TTLoraLinear


@contextmanager
def built_together(layers: Iterable[TTLoraLayer], adapter_names: Sequence[str] | None = None) -> Iterator[None]:
    """Within it, layers find their factors built, those of one shape in one batched contraction.

    A train is contracted by a dozen tiny products, of which the calls take longer than the arithmetic: layer by layer
    they cost a small model several percent of its step, and a generation would repeat them for every token.

    What is not whole and at rest on its device (sharded, offloaded, replaced for a functional call, copied to another
    device for a part of a batch) is left to the layers. What is built is the caller's alone: other threads that run the
    same layers build their own.

    Args:
        layers: Adapted layers.
        adapter_names: The adapters of a mixed batch, row by row; None: those that are active.
    """
    alike = defaultdict(list)
    for layer in layers:
        for names in _stacks(layer, adapter_names):
            cores, update = [layer.ttlora_cores[name] for name in names], layer.ttlora_update[names[0]]
            if all(_at_rest(layer, name) and layer.ttlora_update[name] == update for name in names):
                like = (cores[0].device, cores[0].dtype, cores[0].requires_grad)
                alike[update, len(names), *like].append((layer, names, cores))
    built = dict(BUILT_FACTORS.get())
    for (update, count, device, *_), places in alike.items():
        with without_autocast(device):
            A, B = update.factors(torch.stack([core for *_, cores in places for core in cores]))
        if adapter_names is not None:
            A, B = (factor.view(-1, count, *factor.shape[1:]) for factor in (A, B))
        for (layer, names, _), *factors in zip(places, A.unbind(), B.unbind(), strict=True):
            built[layer, names[0] if adapter_names is None else names] = (factors[0], factors[1])
    before = BUILT_FACTORS.set(built)
    try:
        yield
    finally:
        BUILT_FACTORS.reset(before)


def _stacks(layer: TTLoraLayer, adapter_names: Sequence[str] | None) -> list[tuple[str, ...]]:
    """The adapters whose factors the layer will ask for, as it asks for them: one by one, or stacked."""
    if adapter_names is None:
        return [(name,) for name in layer.acting_adapters]
    used = layer.adapters_of_rows(adapter_names)
    return [used] if used and isinstance(layer, TTLoraLinear) else []


def _at_rest(layer: TTLoraLayer, name: str) -> bool:
    cores = layer.ttlora_cores[name]
    return type(cores) is nn.Parameter and not cores.is_meta and len(cores) == layer.ttlora_update[name].parameters
