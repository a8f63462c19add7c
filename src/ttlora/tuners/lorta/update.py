"""One CP decomposition for the weights of all layers, types and heads."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tuners.shared.update import SharedUpdate


@dataclass(frozen=True)
class CPShape:
    """Shape of a CP decomposition: a factor ``k x r`` for each mode.

    Attributes:
        head_dim: Rows of the block of a head.
        heads: Blocks of the widest weight.
        layers: How many layers.
        types: How many types of weights.
        in_features: Columns of the weights.
        r: Its rank.
    """

    head_dim: int
    heads: int
    layers: int
    types: int
    in_features: int
    r: int

    @property
    def dims(self) -> tuple[int, ...]:
        """The modes: row in a head, head, layer, type, column."""
        return self.head_dim, self.heads, self.layers, self.types, self.in_features

    @property
    def boundary(self) -> int:
        """How many modes run over rows."""
        return len(self.dims) - 1

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank, as often as a train has bonds."""
        return 1, *[self.r] * self.boundary, 1

    @property
    def out_features(self) -> int:
        """Rows of the weights of all places."""
        return self.head_dim * self.heads * self.layers * self.types

    @property
    def factor_rank(self) -> int:
        """Inner size of ``B A``."""
        return self.r

    @property
    def parameters(self) -> int:
        """``r (d / h + h + L + M + d)``."""
        return self.r * sum(self.dims)


@dataclass(frozen=True)
class LortaUpdate(SharedUpdate):
    """``ΔW_{l,m} = s concat_h A diag(C_h ∘ C_m ∘ C_l) B`` (LoRTA, arXiv 2410.04060), ``h`` over blocks of the outputs.

    As a matrix out x in it is ``B_{l,m} A`` of rank ``r``: the rows of head ``h`` in ``B_{l,m}`` are those of ``B``
    times ``C_h ∘ C_m ∘ C_l``.

    Attributes:
        shape: The modes.
        scale: ``s``.
    """

    shape: CPShape
    scale: float = 1.0

    @property
    def parameters(self) -> int:
        """The length of the flat vector: ``B``, the factors of heads, layers and types, ``A``."""
        return self.shape.parameters

    @torch.no_grad()
    def start(self, zero: bool) -> Float[Tensor, "parameters"]:
        """``A`` as LoRA's, ``B`` zero or as wide as LoRA's without zeros, the other factors around one in size."""
        factors = [torch.empty(k, self.shape.r) for k in self.shape.dims]
        B, *of_places, A = factors
        if zero:
            B.zero_()
        else:
            B.normal_(std=1 / math.sqrt(3 * self.shape.r))
        for factor in of_places:
            # of variance one, so that their product changes no sizes
            factor.uniform_(-math.sqrt(3), math.sqrt(3))
        A.uniform_(-1, 1).div_(math.sqrt(self.shape.in_features))
        return torch.cat([factor.flatten() for factor in factors])

    def contract(
        self, flat: Float[Tensor, "*batch parameters"], place: int | None
    ) -> tuple[Float[Tensor, "*batch r in"], Tensor]:
        """As of every shared update, with the scale in ``B``."""
        B, of_heads, of_layers, of_types, A = self._factors(flat)
        of_rows = (of_heads[..., :, None, :] * B[..., None, :, :]).flatten(-3, -2)
        if place is not None:
            layer, type_ = divmod(place, self.shape.types)
            of_place = of_layers[..., layer : layer + 1, :] * of_types[..., type_ : type_ + 1, :]
            return A.mT, of_rows * (of_place * self.scale)
        of_places = (of_layers[..., :, None, :] * of_types[..., None, :, :]).flatten(-3, -2)
        return A.mT, of_rows[..., None, :, :] * (of_places[..., :, None, :] * self.scale)

    def norm(self, flat: Float[Tensor, "parameters"], place: int, out_features: int) -> Float[Tensor, ""]:
        """As of every shared update: Gram matrices of Khatri-Rao products are products of Gram matrices."""
        B, of_heads, of_layers, of_types, A = self._factors(flat)
        layer, type_ = divmod(place, self.shape.types)
        of_place = of_layers[layer : layer + 1] * of_types[type_ : type_ + 1] * self.scale
        gram = torch.ones_like(of_place.mT @ of_place)
        for factor in (B, of_heads[: out_features // self.shape.head_dim], of_place, A):
            gram = gram * (factor.mT @ factor)
        # rounding may leave the sum of what cancels below zero
        return gram.sum().clamp(min=0).sqrt()

    def _factors(self, flat: Float[Tensor, "*batch parameters"]) -> list[Tensor]:
        """``B``, the factors of heads, layers and types, and ``A``, a row for each index of a mode."""
        pieces = torch.split(flat, [k * self.shape.r for k in self.shape.dims], dim=-1)
        return [piece.reshape(*piece.shape[:-1], -1, self.shape.r) for piece in pieces]
