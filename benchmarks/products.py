"""What each product of a low-rank update adds to a linear layer, forward and backward.

    python benchmarks/products.py [--rounds 41] [--json products.json]

The bare minimum of an adapted layer, one product after the other: `A` and `B` of rank 5 are there, nothing checks or
builds anything, and what is added to the output and to the input's gradient is added in place. What is measured here
is the limit of `layer.py`'s TT-LoRA on the same machine, whose last rows are the whole layers.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from contestants import adapted, adapter_configs
from layer import BARS, SHAPES, both_ways
from measuring import Row, compare, in_turn, parse, publish
from torch import Tensor, nn

R = 5
PRODUCTS = ("h = x Aᵀ", "y += h Bᵀ", "dh = dy B", "dx += dh A", "dA = dhᵀ x", "dB = (hᵀ dy)ᵀ")


def main() -> None:
    arguments = parse(__doc__, rounds=41)
    rows = [row for width, tokens in BARS for row in measure(width, tokens, arguments.dtype, arguments.rounds)]
    publish(arguments, "products", rows)


def measure(width: int, tokens: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    base = nn.Linear(width, width).to(dtype).requires_grad_(False)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    dy = torch.randn(tokens, width, dtype=dtype)
    A = torch.randn(R, width, dtype=dtype, requires_grad=True)
    # from columns, as the adapted layer keeps it
    B = torch.randn(R, width, dtype=dtype).T.requires_grad_()
    contestants: dict[str, Callable[[], object]] = {"frozen": both_ways(base, x, dy)}
    for count in range(len(PRODUCTS) + 1):
        name = f"and {PRODUCTS[count - 1]}" if count else "in one function of its own"
        contestants[name] = with_products(count, base, x, dy, A, B)
    for name, config in adapter_configs(SHAPES.get(width, "auto"), target_modules=["0"]).items():
        contestants[name] = both_ways(adapted(nn.Sequential(base), config), x, dy)
    case = f"{width} wide, {tokens:,} tokens"
    seconds = in_turn(contestants, rounds, case=case)
    rows = []
    for name, figures in compare(seconds).items():
        differences = [run - frozen for run, frozen in zip(seconds[name], seconds["frozen"], strict=True)]
        figures["over_frozen"] = statistics.median(differences)
        rows.append(Row(case, name, figures))
    return rows


def with_products(count: int, base: nn.Linear, x: Tensor, dy: Tensor, A: Tensor, B: Tensor) -> Callable[[], object]:
    """The layer with the first so many of the six products; gradients that are not computed yet are left empty."""

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
            y = torch.addmm(base.bias, x, base.weight.T)
            h = x @ A.T if count >= 1 else None
            if count >= 2:
                y.addmm_(h, B.T)
            ctx.save_for_backward(x, A, B, h)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x, A, B, h = ctx.saved_tensors
            dx = dy @ base.weight
            dh = dy @ B if count >= 3 else None
            if count >= 4:
                dx.addmm_(dh, A)
            dA = dh.T @ x if count >= 5 else torch.empty_like(A)
            dB = (h.T @ dy).T if count >= 6 else torch.empty_like(B)
            return dx, dA, dB

    return lambda: torch.autograd.grad(Layer.apply(x, A, B), [x, A, B], dy)


if __name__ == "__main__":
    main()
