"""One tensor train for the weights of all layers and types."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train import TensorTrain, TTShape, Update
from ttlora.tensor_train.start import random_update, zero_update
from ttlora.tensor_train.train import contract_columns, contract_rows
from ttlora.tuners.shared.update import SharedUpdate


@dataclass(frozen=True)
class MetaTTUpdate(SharedUpdate):
    """``ΔW_{l,m} = s G_1 G_2[l] G_3[m] G_4`` (MetaTT 4D, arXiv 2506.09105).

    The train is that of the matrix of all updates, ``ΔW[(o, l, m), i]``: the cores of the rows, a core with a slice for
    each layer, one with a slice for each type, the cores of the columns.

    Attributes:
        train: The train and what its entries mean. Its rows are those of one weight times the places.
        modes: How many slices the cores between rows and columns have.
    """

    train: Update
    modes: tuple[int, ...]

    @property
    def shape(self) -> TTShape:
        """Dims and ranks of the train."""
        return self.train.shape

    @property
    def scale(self) -> float:  # type: ignore[override]
        """``s``."""
        return self.train.scale

    @property
    def parameters(self) -> int:
        """The length of the flat vector."""
        return self.train.parameters

    def start(self, zero: bool) -> Float[Tensor, "parameters"]:
        """All cores orthonormal but the last in front of the columns, which is zero or random."""
        return zero_update(self.train) if zero else random_update(self.train)

    def contract(
        self, flat: Float[Tensor, "*batch parameters"], place: int | None
    ) -> tuple[Float[Tensor, "*batch r in"], Tensor]:
        """As of every shared update: ``A`` is ``G_4``, and ``B`` is ``G_1 G_2[l] G_3[m]``, the scale included."""
        flat = self.train.balanced(flat)
        rows, columns = self._at(TensorTrain(self.shape, flat), place)
        *_, A = contract_columns(flat, columns, self.train.column_scale)
        *_, B = contract_rows(flat, rows, self.train.row_scale)
        if place is None:
            B = B.reshape(*B.shape[:-2], -1, math.prod(self.modes), B.shape[-1]).transpose(-3, -2)
        return A, B

    def norm(self, flat: Float[Tensor, "parameters"], place: int, out_features: int) -> Float[Tensor, ""]:
        """As of every shared update: that of the one core that is left when all others are made orthonormal."""
        rows, columns = self._at(self.train.acting_train(flat), place)
        left = right = flat.new_ones(1, 1)
        for core in rows:
            left = torch.linalg.qr(torch.tensordot(left, core, dims=1).flatten(0, 1)).R
        for core in reversed(columns):
            right = torch.linalg.qr(torch.tensordot(core, right.mT, dims=1).flatten(1).mT).R
        norm: Tensor = torch.linalg.vector_norm(left @ right.mT)
        return norm

    def _at(self, train: TensorTrain, place: int | None) -> tuple[list[Tensor], list[Tensor]]:
        """The cores of the rows and of the columns, those of the modes cut to a place."""
        cores, boundary = list(train.cores), self.shape.boundary
        assert boundary is not None, "the modes stand at the boundary"
        if place is not None:
            for mode in reversed(range(len(self.modes))):
                place, index = divmod(place, self.modes[mode])
                at = boundary - len(self.modes) + mode
                cores[at] = cores[at][..., index : index + 1, :]
        return cores[:boundary], cores[boundary:]
