"""A LoRA update whose two factors are tensor trains."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train import TensorTrain, Update
from ttlora.tensor_train.start import random_update, zero_update
from ttlora.tensor_train.update import one_node


@dataclass(frozen=True)
class LorettaRepUpdate:
    """``ΔW = B A`` as a function of the flat vector of trained entries: those of ``B``, then those of ``A``.

    Attributes:
        rows: What the entries of ``B`` (out x r) mean; its scale is that of the update.
        columns: What the entries of the transpose of ``A`` (in x r) mean.
    """

    rows: Update
    columns: Update

    @property
    def parameters(self) -> int:
        """The length of the flat vector."""
        return self.rows.parameters + self.columns.parameters

    def factors(
        self, flat: Float[Tensor, "*batch parameters"], dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """``A`` and ``B``.

        Args:
            flat: The entries, or those of several adapters stacked.
            dtype: As for `Update.factors`.
        """
        return one_node(self._contract, flat, dtype)

    def _contract(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        of_rows, of_columns = torch.split(flat, [self.rows.parameters, self.columns.parameters], dim=-1)
        return _matrix(self.columns, of_columns).mT, _matrix(self.rows, of_rows)

    @torch.no_grad()
    def start(self, zero: bool) -> Float[Tensor, "parameters"]:
        """The entries at the start: the rows of ``A`` have LoRA's mean length, ``B`` is zero or random."""
        shape, of_columns = self.columns.shape, random_update(self.columns)
        core = TensorTrain(shape, of_columns).cores[self.columns.zero_core]
        # the matrix is linear in each core
        core *= math.sqrt(shape.in_features / 3) / self.columns.acting_train(of_columns).norm()
        return torch.cat([zero_update(self.rows) if zero else random_update(self.rows), of_columns])


def _matrix(update: Update, flat: Float[Tensor, "*batch parameters"]) -> Float[Tensor, "*batch features r"]:
    right, left = update.factors(flat)
    return left @ right
