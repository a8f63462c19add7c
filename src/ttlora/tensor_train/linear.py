"""A frozen linear layer and its low-rank update in one pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ttlora.tensor_train.update import transformed

# Rows per output or input from which on it is faster to form W + B A (benchmarks/layer.py, benchmarks/inference.py).
# What learns passes over the rows for its gradients in any case.
FORMING_ROWS = 4
FORMING_ROWS_WITHOUT_GRADIENTS = 1


def low_rank_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
) -> Float[Tensor, "*batch out"]:
    """``x (W + B A)ᵀ + b`` with gradients for ``x``, ``A`` and ``B``; ``W`` and ``b`` are frozen.

    What an update of low rank costs is memory traffic. Its terms are added into the products with ``W`` where they lie,
    forward and backward, since a separate sum is one more pass over the layer's output; with many rows ``W + B A`` is
    formed instead, for the time of one product.

    Args:
        x: Input.
        weight: ``W``, without gradient.
        bias: ``b``, without gradient, or None.
        A: Input side of the update, its scale included.
        B: Output side of the update.
    """
    if transformed():
        return F.linear(x, weight, bias) + F.linear(F.linear(x, A), B)
    if not torch.is_grad_enabled():
        # where A learns, checkpointing will compute this again for its gradients, and it has to come out the same
        least = FORMING_ROWS if A.requires_grad else FORMING_ROWS_WITHOUT_GRADIENTS
        if _pays_to_form(x.numel() // max(x.shape[-1], 1), weight, least):
            return F.linear(x, torch.addmm(weight, B, A), bias)
        y = F.linear(x, weight, bias)
        y.view(-1, y.shape[-1]).addmm_(F.linear(x, A).view(-1, A.shape[0]), B.T)
        return y
    # reshaped out here: of what a custom function returns as a view, autograd lets nobody change an entry in place
    rows = x.reshape(-1, x.shape[-1])
    result: Tensor = _LowRankLinear.apply(rows, weight, bias, A, B)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], weight.shape[0])


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        ctx.forms_weight = _pays_to_form(len(rows), weight, FORMING_ROWS)
        if ctx.forms_weight:
            ctx.save_for_backward(rows, weight, A, B)
            return F.linear(rows, torch.addmm(weight, B, A), bias)
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        hidden = rows @ A.T
        y.addmm_(hidden, B.T)
        ctx.save_for_backward(rows, weight, A, B, hidden)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None]:
        rows, weight, A, B, *hidden = ctx.saved_tensors
        dy = gradients[0]
        needs_x, _, _, needs_A, needs_B = ctx.needs_input_grad
        dx = dA = dB = None
        dhidden = dy @ B
        if needs_x:
            dx = dy @ torch.addmm(weight, B, A) if ctx.forms_weight else (dy @ weight).addmm_(dhidden, A)
        if needs_A:
            dA = dhidden.T @ rows
        if needs_B:
            # with create_graph, a second derivative runs through what was kept: it is computed again
            kept = hidden[0] if hidden and not torch.is_grad_enabled() else rows @ A.T
            # this order lets the product run along dy's rows
            dB = (kept.T @ dy).T
        return dx, None, None, dA, dB


def _pays_to_form(rows: int, weight: Tensor, least: int) -> bool:
    """Whether ``W + B A`` is cheaper than two thin products: it has to be written once, they pass over all rows.

    In half precision the sum would round small updates away.
    """
    return weight.dtype.itemsize >= 4 and rows >= least * max(weight.shape)
