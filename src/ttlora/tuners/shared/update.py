"""The updates of many weights as functions of one flat vector."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.update import one_node


class SharedUpdate(ABC):
    """What the entries of one flat vector mean for all weights of a group: ``ΔW_p = B_p A`` at each place ``p``.

    A place is a pair of layer and type. ``A`` is common to all of them. Subclasses are frozen dataclasses.

    Attributes:
        shape: Dims and ranks, a `TTShape` or what has the same attributes; its rows are those of all places.
        scale: What the update is multiplied with.
    """

    shape: Any
    scale: float

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The length of the flat vector."""

    @abstractmethod
    def start(self, zero: bool) -> Float[Tensor, "parameters"]:
        """The entries at the start: all updates are exactly zero, or random."""

    @abstractmethod
    def contract(
        self, flat: Float[Tensor, "*batch parameters"], place: int | None
    ) -> tuple[Float[Tensor, "*batch r in"], Tensor]:
        """``A``, and ``B`` (out x r) of a place, or those of all places stacked (places x out x r).

        Args:
            flat: The entries, or those of several adapters stacked.
            place: The place's number, types running faster than layers; None: all.
        """

    @abstractmethod
    def norm(self, flat: Float[Tensor, "parameters"], place: int, out_features: int) -> Float[Tensor, ""]:
        """The Frobenius norm of the update at a place, from the entries alone: neither factor is built.

        Args:
            flat: The entries.
            place: The place's number.
            out_features: Rows of the weight there.
        """

    def factors(
        self, flat: Float[Tensor, "*batch parameters"], dtype: torch.dtype | None = None, place: int | None = None
    ) -> tuple[Float[Tensor, "*batch r in"], Tensor]:
        """As `contract`, for the products of a layer.

        Args:
            flat: The entries, or those of several adapters stacked.
            dtype: As for `Update.factors`.
            place: As for `contract`.
        """
        # products of many cores lose too much in half precision, and they are small
        flat = flat.float() if flat.dtype.itemsize < 4 else flat
        return one_node(partial(self.contract, place=place), flat, dtype)


@dataclass(frozen=True)
class OwnUpdate:
    """The update of one weight of a group, ``ΔW = B A``.

    Attributes:
        shared: That of the group.
        place: The number of the weight's place in it.
        out_features: Rows of the weight; a group may have wider ones.
    """

    shared: SharedUpdate
    place: int
    out_features: int

    @property
    def parameters(self) -> int:
        """The length of the flat vector, which other weights share."""
        return self.shared.parameters

    @property
    def factor_rank(self) -> int:
        """Inner size of ``B A``."""
        rank: int = self.shared.shape.factor_rank
        return rank

    def factors(
        self, flat: Float[Tensor, "*batch parameters"], dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """``A`` and ``B``.

        Args:
            flat: The entries, or those of several adapters stacked.
            dtype: As for `Update.factors`.
        """
        A, B = self.shared.factors(flat, dtype, self.place)
        return A, B[..., : self.out_features, :]

    def norm(self, flat: Float[Tensor, "parameters"]) -> Float[Tensor, ""]:
        """The Frobenius norm of ``ΔW``.

        Args:
            flat: The entries.
        """
        return self.shared.norm(flat, self.place, self.out_features)
