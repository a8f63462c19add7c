"""Another adapter of a folder in the place of a loaded one: PEFT's `hotswap_adapter` for TT-LoRA."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttlora.tuners.tt_lora.config import TTLoraConfig, resolve_update
from ttlora.tuners.tt_lora.layer import TTLoraLayer


@torch.no_grad()
def swap_cores(model: Any, state_dict: Mapping[str, Tensor], adapter_name: str, config: TTLoraConfig) -> None:
    """Replace the cores of an adapter, and what they mean, by those of another one: of all its layers or of none.

    Cores of the same size are written where the old ones lie, so that a compiled model stays compiled. A layer that the
    new adapter does not have gets cores of zeros, as in PEFT.

    Args:
        model: An adapted model, compiled or not.
        state_dict: The new cores, by their names in the model.
        adapter_name: The adapter that is replaced.
        config: The config of the new one.

    Raises:
        ValueError: The old adapter is merged, or the new one was made for weights of other sizes, or the cores of
            either are measured from their start.
        RuntimeError: The new one has layers that the old one has not; or not all of them, and other shapes or scales.
    """
    model = getattr(model, "_orig_mod", model)
    layers = {
        f"{path}.ttlora_cores.{adapter_name}": module
        for path, module in model.named_modules()
        if isinstance(module, TTLoraLayer) and adapter_name in module.cores
    }
    if config.init_weights == "dota" or any(adapter_name in layer.starts for layer in layers.values()):
        raise ValueError(
            f"Cannot hot-swap adapter '{adapter_name}': a start of init_weights='dota' belongs to its cores; load the "
            "other adapter beside it, and delete this one"
        )
    if any(adapter_name in layer.merged_adapters for layer in layers.values()):
        raise ValueError(f"Cannot hot-swap adapter '{adapter_name}' because it is merged: unmerge it first")
    if unexpected := sorted(state_dict.keys() - layers.keys()):
        raise RuntimeError(f"Hot swapping the adapter did not succeed, unexpected keys found: {', '.join(unexpected)}.")
    updates = {}
    for key, cores in state_dict.items():
        layer = layers[key]
        path = key.removesuffix(f".ttlora_cores.{adapter_name}").removeprefix("base_model.model.")
        name = layer.name_in_patterns(path.replace(".base_layer", ""))
        updates[key] = resolve_update(config, name, layer.out_features, layer.in_features, layer.experts)
        if cores.shape != (updates[key].parameters,):
            raise ValueError(f"{name} has cores of the sizes {list(cores.shape)}, not [{updates[key].parameters}]")
    changed = [key for key, update in updates.items() if layers[key].updates[adapter_name] != update]
    if changed and len(updates) < len(layers):
        raise RuntimeError(
            f"Hot swapping the adapter did not succeed: it has {len(updates)} of {len(layers)} layers, and other "
            "shapes or scales."
        )
    for key, layer in layers.items():
        old = layer.cores[adapter_name]
        if key not in updates:
            old.zero_()
        elif key in changed:
            layer.updates[adapter_name] = updates[key]
            old.data = state_dict[key].to(old)
        else:
            old.copy_(state_dict[key])
    if len(updates) == len(layers):
        model.peft_config[adapter_name] = config
