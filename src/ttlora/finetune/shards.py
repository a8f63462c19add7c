"""A base model that several processes hold together: each keeps a part of every frozen weight."""

import inspect
import os
from collections.abc import Iterator

import torch
from torch import nn

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.processes import Processes
from ttlora.finetune.recipe import Recipe

# what accelerate launch sets where a model is to be divided
BY_FSDP, BY_DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"


def asked_by_launcher() -> bool:
    """Whether accelerate launch was told to divide the model; accelerate itself does not hear of it any more.

    Raises:
        UserError: It was told to do so by DeepSpeed.
    """
    if os.environ.get(BY_DEEPSPEED) == "true":
        raise UserError(
            "accelerate was told to divide the model by DeepSpeed, which ttlora train does not do: start without, and "
            "set `shard`"
        )
    return os.environ.pop(BY_FSDP, "false") == "true"


def require_shardable(recipe: Recipe) -> None:
    """Refuse to divide what cannot be divided.

    Raises:
        UserError: The recipe asks for something that does not go with it, or PyTorch is too old.
    """
    if not recipe.shard:
        return
    if recipe.quantize == "8bit":
        raise UserError("`shard`: bitsandbytes' weights of 8 bits cannot be divided: set `quantize` to 4bit")
    if recipe.compile:
        raise UserError("`shard` and `compile` do not go together: leave one of them out")
    if recipe.rows_at_once == "auto":
        raise UserError("`shard`: memory that runs out in one process stops all: set `rows_at_once` to a number")
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError(f"`shard` needs torch 2.7 or newer, and {torch.__version__} is installed")


def shard(base: Base, recipe: Recipe, processes: Processes) -> None:
    """Divide the frozen weights of an adapted model among several processes, if the recipe asks for it.

    The weights of a layer are put together where the layer is computed, and let go behind it (Zhao et al. 2023, FSDP).
    What trains is small, and stays whole on the device of every process.

    Args:
        base: The adapted model, the same in all processes; it is changed.
        recipe: Says whether to divide it.
        processes: Those that hold it.
    """
    if not recipe.shard or processes.count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = torch.accelerator.current_accelerator()
    mesh = init_device_mesh("cpu" if device is None else device.type, (processes.count,))
    whole = set(base.trained)
    if base.virtual_tokens:
        # a learned prompt is joined to the tokens' embeddings outside of the model's own forward
        whole |= set(base.plain.get_input_embeddings().parameters())
    if device is not None:
        for weight in whole:
            weight.data = weight.data.to(device)
    for layer in _layers(base.plain):
        fully_shard(layer, mesh=mesh, ignored_params=whole & set(layer.parameters()))
    fully_shard(base.plain, mesh=mesh, ignored_params=whole)


def let_go(base: Base) -> None:
    """Let go of the weights outside of the layers, which a forward puts together and keeps.

    All processes have to do so before one of them saves: what it saves lets go of them in that process alone, and then
    it would wait in the next forward for others that still have them.
    """
    if hasattr(base.plain, "reshard"):
        base.plain.reshard()


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that a model is a sequence of: what stands in its lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)
