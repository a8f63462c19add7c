"""An update that is measured from where its cores started, as DoTA's is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.train import TensorTrain
from ttlora.tensor_train.update import Update, laid_out


@dataclass(frozen=True)
class Difference(Update):
    """``ΔW = U(θ) - U(θ₀)``: what the train ``U`` of the trained entries ``θ`` has become since its start ``θ₀``.

    ``W + ΔW = (W - U(θ₀)) + U(θ)`` is DoTA's weight (Hu et al. 2024), whose residual is never formed. The functions
    take ``θ`` and ``θ₀`` end to end; `parameters` counts ``θ`` alone.
    """

    @property
    def factor_rank(self) -> int:
        """Inner size of ``B A``: twice the train's."""
        return 2 * super().factor_rank

    def factors(
        self, flat: Float[Tensor, "*batch both"], dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "*batch twice_r in"], Float[Tensor, "*batch out twice_r"]]:
        """``A`` and ``B`` with ``ΔW = B A``, of twice the inner size: ``B₁ A₁ - B₀ A₀ = (B₁ - B₀) A₁ + B₀ (A₁ - A₀)``.

        In this form ``ΔW`` is exactly zero at the start, and half precision rounds what was learned and not what was
        there before.

        Args:
            flat: ``θ`` and ``θ₀``, or those of several adapters stacked.
            dtype: As for `Update.factors`.
        """
        A, B = super().factors(flat[..., : self.parameters])
        A0, B0 = super().factors(flat[..., self.parameters :].detach())
        return laid_out(torch.cat([A, A - A0], -2), torch.cat([B - B0, B0], -1), dtype)

    def acting_train(self, flat: Float[Tensor, "both"]) -> TensorTrain:
        """The train whose matrix is ``ΔW``, of twice the ranks where its unfoldings can have them.

        Args:
            flat: ``θ`` and ``θ₀``.
        """
        now, before = torch.split(flat, self.parameters)
        return (super().acting_train(now) - super().acting_train(before)).clipped()
