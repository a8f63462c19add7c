"""The entries of a train at the start of training."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.shape import TTShape
from ttlora.tensor_train.train import TensorTrain
from ttlora.tensor_train.update import Update


@torch.no_grad()
def zero_update(update: Update) -> Float[Tensor, "parameters"]:
    """The default start: ``ΔW = 0`` exactly, all cores but one orthonormal up to their gain.

    Args:
        update: What the entries mean.
    """
    z = update.zero_core
    flat = torch.zeros(update.shape.parameters, dtype=torch.float32)
    for index, (core, gain) in enumerate(zip(TensorTrain(update.shape, flat).cores, update.gains, strict=True)):
        if index != z:
            left, k, right = core.shape
            if index < z:
                core.copy_(_orthonormal_columns(left * k, right).reshape(core.shape) / gain)
            else:
                core.copy_(_orthonormal_columns(k * right, left).mT.reshape(core.shape) / gain)
    return flat


def _orthonormal_columns(rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    Q: Tensor = torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float32)).Q
    return Q


@torch.no_grad()
def random_update(update: Update) -> Float[Tensor, "parameters"]:
    """A start that changes the layer: the zero start, with the zero core drawn as wide as LoRA's ``B`` without zeros.

    Args:
        update: What the entries mean.
    """
    flat = zero_update(update)
    core = TensorTrain(update.shape, flat).cores[update.zero_core]
    core.normal_(std=1 / math.sqrt(3 * core.shape[2]))
    return flat


@torch.no_grad()
def gaussian_update(shape: TTShape, std: float) -> Float[Tensor, "parameters"]:
    """The paper's start: a Gaussian ``ΔW``, cut to the train's ranks by TT-SVD (Anjum et al. 2024, Section III-B).

    It takes the dense matrix once, and it changes the layer before the first step. Without gains: Eq. 3's plain α.

    Args:
        shape: Dims and ranks.
        std: Standard deviation of the Gaussian, on which the paper is silent.
    """
    matrix = torch.randn(shape.out_features, shape.in_features, dtype=torch.float32) * std
    return TensorTrain.from_matrix(matrix, shape.dims, shape.ranks[1:-1]).flat
