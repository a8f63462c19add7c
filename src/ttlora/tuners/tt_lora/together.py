"""Building the factors of all adapted layers at once, before a forward."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ttlora.tuners.tt_lora.layer import TTLoraLayer, without_autocast


@contextmanager
def built_together(layers: Iterable[TTLoraLayer]) -> Iterator[None]:
    """Within it, layers find the factors of their active adapters built, those of one shape in one batched contraction.

    A train is contracted by a dozen tiny products, of which the calls take longer than the arithmetic: layer by layer
    they cost a small model several percent of its step, and a generation would repeat them for every token.

    What is not whole and at rest on its device (sharded, offloaded, replaced for a functional call) is left to the
    layers.

    Args:
        layers: Adapted layers.
    """
    alike = defaultdict(list)
    for layer in layers:
        for adapter in layer.acting_adapters:
            cores, update = layer.ttlora_cores[adapter], layer.ttlora_update[adapter]
            if type(cores) is nn.Parameter and not cores.is_meta and cores.shape == (update.parameters,):
                alike[update, cores.device, cores.dtype, cores.requires_grad].append((layer, adapter))
    try:
        for (update, device, *_), places in alike.items():
            stacked = torch.stack([layer.ttlora_cores[adapter] for layer, adapter in places])
            with without_autocast(device):
                A, B = update.factors(stacked)
            for (layer, adapter), *factors in zip(places, A.unbind(), B.unbind(), strict=True):
                layer.built_factors[adapter] = (factors[0], factors[1])
        yield
    finally:
        for places in alike.values():
            for layer, _ in places:
                layer.built_factors.clear()
