"""The entries of a train at the start of training."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.shape import TTShape
from ttlora.tensor_train.train import TensorTrain
from ttlora.tensor_train.update import Update

# Up to so many rows of an unfolding the product with its transpose is fast, and the singular vectors are exact.
EXACT_ROWS = 256
# Halko, Martinsson and Tropp (2011), Sections 4.2 and 4.5: more random vectors than are wanted, and powers.
SPARE_VECTORS = 10
POWERS = 4


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


@torch.no_grad()
def pretrained_update(update: Update, weight: Float[Tensor, "out in"]) -> Float[Tensor, "parameters"]:
    """DoTA's start: the entries of which the update is the TT-SVD of the pretrained weight (Hu et al. 2024).

    All cores but the zero core are orthonormal up to their gain, and that one takes the weight's size over the scale.
    The paper pairs each mode of the rows with one of the columns (MPO); here, as in TT-LoRA, rows come first, so that
    the update has factors of low rank.

    Args:
        update: What the entries mean.
        weight: The pretrained weight, on any device.

    Raises:
        ValueError: The weight is not finite, or the update has the scale 0.
    """
    shape = update.shape
    rest = weight.to(torch.promote_types(weight.dtype, torch.float32)).reshape(1, -1)
    cores = []
    for left, k, right in shape.core_shapes[:-1]:
        rest = rest.reshape(left * k, -1)
        vectors = leading_vectors(rest, right)
        cores.append(vectors.reshape(left, k, right))
        rest = vectors.mT @ rest
    cores.append(rest.reshape(-1, shape.dims[-1], 1))
    train = TensorTrain.from_cores(shape.out_features, shape.in_features, cores)
    return update.entries_of(train.orthogonalised(update.zero_core))


def leading_vectors(matrix: Float[Tensor, "rows columns"], r: int) -> Float[Tensor, "rows r"]:
    """The first left singular vectors of a matrix, or nearly these: the start of a train needs no more.

    Of few rows, the eigenvectors of ``M Mᵀ``. Of many, those within a subspace that a randomised range finder gives
    (Halko, Martinsson and Tropp 2011, Algorithms 4.4 and 5.1), always with the same random numbers.

    Args:
        matrix: ``M``.
        r: How many, no more than ``M`` has rows.

    Raises:
        ValueError: The matrix is not finite.
    """
    rows, columns = matrix.shape
    size = r + SPARE_VECTORS
    if rows <= max(EXACT_ROWS, size):
        # some devices have no float64, and it is small
        gram = (matrix @ matrix.mT).cpu().double()
        if not torch.isfinite(gram).all():
            raise ValueError("the pretrained weight is not finite, and has no TT-SVD")
        leading: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -r:].flip(-1).to(matrix)
        return leading
    generator = torch.Generator().manual_seed(0)
    # drawn on the CPU: the same for every device
    directions = torch.randn(columns, size, generator=generator, dtype=matrix.dtype, device="cpu")
    found = matrix @ directions.to(matrix.device)
    for _ in range(POWERS):
        found = matrix @ (matrix.mT @ torch.linalg.qr(found).Q)
    basis: Tensor = torch.linalg.qr(found).Q
    return basis @ leading_vectors(basis.mT @ matrix, r)
