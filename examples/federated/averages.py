"""Ways to average what clients trained. All that trains in a model is one vector here, piece after piece."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttlora.tensor_train import TensorTrain, TTShape, Update


@dataclass(frozen=True)
class Piece:
    """A parameter's part of the vector.

    Attributes:
        size: How many numbers it has.
        update: What they mean if they are the cores of a weight's update; None: they are what they are.
    """

    size: int
    update: Update | None = None


Average = Callable[
    [Float[Tensor, "clients numbers"], Float[Tensor, " clients"], Sequence[Piece]], Float[Tensor, " numbers"]
]


def plain_mean(
    vectors: Float[Tensor, "clients numbers"], weights: Float[Tensor, " clients"], pieces: Sequence[Piece]
) -> Float[Tensor, " numbers"]:
    """``Σ w_c θ_c``, number by number: FedAvg (McMahan et al. 2017), and FedTT's average core by core.

    The mean of the products of cores is not the product of their means, unless one core alone differs.

    Args:
        vectors: ``θ_c`` of each client.
        weights: ``w_c``, with the sum 1.
        pieces: What the vectors hold.
    """
    return (weights.double() @ vectors.double()).float()


def exact_mean(
    vectors: Float[Tensor, "clients numbers"], weights: Float[Tensor, " clients"], pieces: Sequence[Piece]
) -> Float[Tensor, " numbers"]:
    """The cores whose updates are ``Σ w_c ΔW_c``, rounded to the ranks that they have (Oseledets 2011, Algorithm 2).

    The sum of trains is a train, of the sum of the ranks. No matrix is formed. What is no train is averaged plainly.

    Args:
        vectors: ``θ_c`` of each client.
        weights: ``w_c``, with the sum 1.
        pieces: What the vectors hold.
    """
    parts = list(plain_mean(vectors, weights, pieces).split([piece.size for piece in pieces]))
    for index, (piece, columns) in enumerate(zip(pieces, columns_of(vectors, pieces), strict=True)):
        if piece.update is not None:
            shape = piece.update.shape
            rounded = mean_train(columns, weights, piece.update).round(shape.ranks[1:-1])
            parts[index] = piece.update.entries_of(widened(rounded, shape)).float()
    return torch.cat(parts)


def relative_error(
    average: Float[Tensor, " numbers"],
    vectors: Float[Tensor, "clients numbers"],
    weights: Float[Tensor, " clients"],
    pieces: Sequence[Piece],
) -> float:
    """``‖ΔW - Σ w_c ΔW_c‖ / ‖Σ w_c ΔW_c‖`` over all matrices, with the updates ``ΔW`` of an average; 0 of zeros.

    Args:
        average: The vector that stands for the average.
        vectors: ``θ_c`` of each client.
        weights: ``w_c``, with the sum 1.
        pieces: What the vectors hold.
    """
    norms, errors = [], []
    for piece, part, columns in zip(
        pieces, columns_of(average[None], pieces), columns_of(vectors, pieces), strict=True
    ):
        if piece.update is not None:
            mean = mean_train(columns, weights, piece.update)
            norms.append(mean.norm().item())
            errors.append((piece.update.acting_train(part[0].double()) - mean).norm().item())
    return math.hypot(*errors) / math.hypot(*norms) if any(norms) else 0.0


def moving(pieces: Sequence[Piece], server_round: int) -> Int[Tensor, " some"]:
    """The places of the numbers that train in a round if of each train one core trains: all but cores, and that core.

    In the first round it is the core that starts at zero: as long as it is zero, the others have no gradient. In each
    later round it is the next one, the first after the last. The clients' updates then differ in one core alone, and
    the plain mean of that core is exactly the mean of the updates.

    Args:
        pieces: What the vector holds.
        server_round: The round, from 1 on.
    """
    places, start = [], 0
    for piece in pieces:
        first, size = start, piece.size
        if piece.update is not None:
            sizes = piece.update.shape.core_parameters
            core = (piece.update.zero_core + server_round - 1) % len(sizes)
            first, size = start + sum(sizes[:core]), sizes[core]
        places.append(torch.arange(first, first + size))
        start += piece.size
    return torch.cat(places)


def mean_train(
    entries: Float[Tensor, "clients parameters"], weights: Float[Tensor, " clients"], update: Update
) -> TensorTrain:
    """The train of ``Σ w_c ΔW_c``, exactly: its ranks are the sums of the clients', where its unfoldings can have them.

    Args:
        entries: The cores' entries of each client.
        weights: ``w_c``.
        update: What they mean.
    """
    first, *others = (
        replace(update, scale=update.scale * weight).acting_train(cores)
        for weight, cores in zip(weights.tolist(), entries.double(), strict=True)
    )
    return sum(others, first).clipped()


def widened(train: TensorTrain, shape: TTShape) -> TensorTrain:
    """The same matrix at higher ranks, filled up with zeros.

    Args:
        train: A train of the same dims.
        shape: Has the ranks.
    """
    cores = []
    for core, wanted in zip(train.cores, shape.core_shapes, strict=True):
        wide = core.new_zeros(wanted)
        wide[: core.shape[0], :, : core.shape[2]] = core
        cores.append(wide)
    return TensorTrain.from_cores(shape.out_features, shape.in_features, cores)


def columns_of(
    vectors: Float[Tensor, "clients numbers"], pieces: Sequence[Piece]
) -> Sequence[Float[Tensor, "clients _size"]]:
    """The vectors piece by piece."""
    return vectors.split([piece.size for piece in pieces], dim=1)
