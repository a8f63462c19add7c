"""A frozen linear layer and its low-rank update in one pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def low_rank_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
) -> Float[Tensor, "*batch out"]:
    """``x (W + B A)ᵀ + b`` with gradients for ``x``, ``A`` and ``B``; ``W`` and ``b`` are frozen.

    The low-rank terms are added into the products with ``W`` where they lie, forward and backward: what an update of
    low rank costs is memory traffic, and a separate sum is one more pass over the layer's output.

    Args:
        x: Input.
        weight: ``W``, without gradient.
        bias: ``b``, without gradient, or None.
        A: Input side of the update, its scale included.
        B: Output side of the update.
    """
    # reshaped out here: of what a custom function returns as a view, autograd lets nobody change an entry in place
    rows = x.reshape(-1, x.shape[-1])
    y: Tensor = _LowRankLinear.apply(rows, weight, bias, A, B)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        hidden = rows @ A.T
        y.addmm_(hidden, B.T)
        ctx.save_for_backward(rows, hidden, weight, A, B)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None]:
        rows, hidden, weight, A, B = ctx.saved_tensors
        dy = gradients[0]
        if torch.is_grad_enabled():  # with create_graph: a second derivative runs through what was kept
            hidden = rows @ A.T
        needs_x, _, _, needs_A, needs_B = ctx.needs_input_grad
        dx = dA = dB = None
        dhidden = dy @ B
        if needs_x:
            dx = (dy @ weight).addmm_(dhidden, A)
        if needs_A:
            dA = dhidden.T @ rows
        if needs_B:
            # this order lets the product run along dy's rows
            dB = (hidden.T @ dy).T
        return dx, None, None, dA, dB
