"""Building the factors of all adapted layers at once, before a forward."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ttlora.tensor_train.difference import Difference
from ttlora.tuners.tt_lora.factors import BuiltFactors, Factors, RowsOfStack, Stack
from ttlora.tuners.tt_lora.layer import TTLoraLayer, without_autocast
from ttlora.tuners.tt_lora.linear import TTLoraLinear
from ttlora.tuners.tt_lora.pooled import PooledAdapters


def build_together(
    layers: Iterable[TTLoraLayer],
    adapter_names: Sequence[str] | None = None,
    pooled: Iterable[PooledAdapters] = (),
) -> BuiltFactors:
    """The factors that a forward will ask its layers for, those of one shape from one batched contraction.

    A train is contracted by a dozen tiny products, of which the calls take longer than the arithmetic: layer by layer
    they cost a small model several percent of its step, and a generation would repeat them for every token.

    What is not whole and at rest on its device (sharded, offloaded, replaced for a functional call, copied to another
    device for a part of a batch) is left to the layers.

    Args:
        layers: Adapted layers.
        adapter_names: The adapters of a mixed batch, row by row; None: those that are active.
        pooled: Further adapters that a mixed batch may name.
    """
    wanted: list[tuple[TTLoraLayer, tuple[str, ...]]]
    if adapter_names is None:
        wanted = [(layer, (name,)) for layer in layers for name in layer.acting_adapters]
    else:
        # the other kinds of layers ask for the adapters of a mixed batch one by one, where they need them
        linear = [layer for layer in layers if isinstance(layer, TTLoraLinear)]
        wanted = [(layer, names) for layer in linear if (names := layer.adapters_of_rows(adapter_names))]
    alike = defaultdict(list)
    for layer, names in wanted:
        cores, update = [layer.cores[name] for name in names], layer.updates[names[0]]
        if all(at_rest(layer, name) and layer.updates[name] == update for name in names):
            like = (cores[0].device, layer.product_dtype, cores[0].dtype, cores[0].requires_grad)
            alike[update, len(names), *like].append((layer, names, cores))
    single: dict[nn.Module, dict[str, Factors]] = defaultdict(dict)
    stacked: dict[nn.Module, list[Stack]] = defaultdict(list)
    rows: dict[tuple[str, ...], dict[tuple[str, ...], RowsOfStack]] = defaultdict(dict)
    for (update, count, device, dtype, *_), places in alike.items():
        with without_autocast(device):
            entries = [core for *_, cores in places for core in cores]
            if isinstance(update, Difference):
                entries = [layer.entries(name) for layer, names, _ in places for name in names]
            A, B = update.factors(torch.stack(entries), dtype)
        if adapter_names is not None:
            A, B = (factor.view(-1, count, *factor.shape[1:]) for factor in (A, B))
        for (layer, names, _), factors in zip(places, zip(A.unbind(), B.unbind(), strict=True), strict=True):
            if adapter_names is None:
                single[layer][names[0]] = factors
            else:
                stacked[layer].append(Stack(names, factors, rows[names]))
    for adapters in pooled:
        for layer, stack in adapters.stacks(adapter_names or ()):
            stacked[layer].append(stack)
    return BuiltFactors(single, stacked)


def at_rest(layer: TTLoraLayer, name: str) -> bool:
    """Whether an adapter's cores are whole and on their device."""
    cores = layer.cores[name]
    return type(cores) is nn.Parameter and not cores.is_meta and len(cores) == layer.updates[name].parameters
