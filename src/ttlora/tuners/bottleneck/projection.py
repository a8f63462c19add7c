"""The two projections of a bottleneck, dense or trains."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ttlora.tensor_train import Update
from ttlora.tensor_train.start import random_update, zero_update
from ttlora.tuners.bottleneck.config import BottleneckConfig, resolve_trains
from ttlora.tuners.tt_lora.layer import without_autocast

RANDOM_BIAS = 0.1


class TrainLinear(nn.Module):
    """``y = W x + b`` with ``W`` (out x in) a tensor train, held in one flat vector, and ``b`` dense.

    Args:
        update: What the entries of the vector mean.
        start: Makes them.
    """

    def __init__(self, update: Update, start: Callable[[Update], Float[Tensor, "parameters"]]) -> None:
        super().__init__()
        self.update = update
        self.cores = nn.Parameter(start(update))
        self.bias = nn.Parameter(torch.zeros(update.shape.out_features))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """``W x + b``, through the two factors of ``W``."""
        with without_autocast(self.cores.device):
            A, B = self.update.factors(self.cores)
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """The sizes, for the printed model."""
        shape = self.update.shape
        return f"{shape.out_features} x {shape.in_features}, dims={list(shape.dims)}, ranks={list(shape.ranks)}"


def make_projections(config: BottleneckConfig, module_name: str, outputs: int) -> tuple[nn.Module, nn.Module]:
    """``down`` and ``up`` of a bottleneck at their starting points.

    ``down`` is random; ``up`` and the biases are zero, or random with ``init_weights=False``.

    Args:
        config: The adapter's config.
        module_name: The target's name in the model, for errors.
        outputs: The target's number of outputs.

    Raises:
        ValueError: As `resolve_trains`.
    """
    trains = resolve_trains(config, module_name, outputs)
    down: nn.Module
    up: nn.Module
    if trains is not None:
        down = TrainLinear(trains[0], random_update)
        up = TrainLinear(trains[1], zero_update if config.init_weights else random_update)
    else:
        down, up = nn.Linear(outputs, config.r), nn.Linear(config.r, outputs)
        if config.init_weights:
            nn.init.zeros_(up.weight)
    for projection in (down, up):
        # biases as well, since the target's outputs may be small
        nn.init.normal_(projection.bias, std=0.0 if config.init_weights else RANDOM_BIAS)
    return down, up
