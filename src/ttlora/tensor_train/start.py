"""Where a train starts and how it is scaled, so that one learning rate, and nearly LoRA's own, serves every shape.

Adam moves every entry by about the learning rate, whatever the entry's size. LoRA's ``A`` has small entries and turns
quickly; orthonormal cores have large ones and hardly turn, the longer the train the less. So the trained entries
``θ_i`` of each core are kept at one small size ``ε``, and the core that acts is ``g_i θ_i`` with a fixed gain ``g_i``:

    ΔW = α κ (g_1 θ_1) (g_2 θ_2) ... (g_d θ_d)

With ``z`` the core at the boundary, which starts at zero so that ``ΔW = 0``:

- before ``z`` the acting cores start left-orthogonal, after it right-orthogonal: ``g_i = rms(orthonormal core) / ε``;
- ``κ = 1/√3`` gives the rows of ``A`` the norm that LoRA's have;
- ``g_z = √(P / r_{z-1})``, ``P`` the product of the dims before ``z``: Adam's first step then moves ``ΔW`` as far as it
  would move LoRA's ``B A`` of the same rank.

The gains multiply to thousands in long trains. Adam does not see that, but plain SGD and gradient clipping would, so
`balance` hands back the gradient of the acting core over ``g_i`` instead of times ``g_i``: a step of SGD then moves the
acting cores as if there were no gains.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.shape import TTShape
from ttlora.tensor_train.train import TensorTrain

LORA_ROW_NORM = 1 / math.sqrt(3)


def zero_core(shape: TTShape) -> int:
    """Index ``z`` of the core that starts at zero: the last of the rows, or the first of the middle block."""
    i, j = shape.span
    return i if i < j else max(i - 1, 0)


@lru_cache(maxsize=1024)
def gains(shape: TTShape, epsilon: float | None) -> tuple[float, ...]:
    """``g_1 ... g_d`` for trained entries of the size ``epsilon`` (see the module's text); None: all 1."""
    if epsilon is None:
        return (1.0,) * shape.order
    z = zero_core(shape)

    def gain(index: int) -> float:
        left, k, right = shape.core_shapes[index]
        if index == z:
            return math.sqrt(math.prod(shape.dims[:z]) / left)
        return 1 / (math.sqrt(left * k if index < z else k * right) * epsilon)

    return tuple(gain(index) for index in range(shape.order))


def update_scale(shape: TTShape, epsilon: float | None) -> float:
    """``κ g_1 ... g_d``: what the train of the trained entries is multiplied with, besides α; 1 without gains."""
    return math.prod(update_scales(shape, epsilon))


def update_scales(shape: TTShape, epsilon: float | None) -> tuple[float, float]:
    """`update_scale` as the gains of the cores that run over rows, and ``κ`` times those of the columns.

    Each side times its own is of the size that LoRA's is. With all on one side, float16 would hold neither.
    """
    if epsilon is None:
        return 1.0, 1.0
    j = shape.span[1]
    return math.prod(gains(shape, epsilon)[:j]), LORA_ROW_NORM * math.prod(gains(shape, epsilon)[j:])


def balance(flat: Float[Tensor, "parameters"], shape: TTShape, epsilon: float | None) -> Float[Tensor, "parameters"]:
    """The trained entries unchanged; their gradient, core by core, over ``g_i²``.

    `update_scale` puts every ``g_i`` into the update, and with it into the gradient; divided twice, what arrives is the
    gradient of the acting core over ``g_i``.
    """
    if epsilon is None or not flat.requires_grad:
        return flat
    balanced: Tensor = _Balance.apply(flat, shape.core_sizes, gains(shape, epsilon))  # type: ignore[no-untyped-call]
    return balanced


class _Balance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, sizes: tuple[int, ...], gains: tuple[float, ...]) -> Tensor:
        ctx.sizes, ctx.gains = sizes, gains
        return flat.view_as(flat)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        pieces = torch.split(gradients[0], list(ctx.sizes))
        return torch.cat([piece / gain**2 for piece, gain in zip(pieces, ctx.gains, strict=True)]), None, None


@torch.no_grad()
def zero_update(shape: TTShape, epsilon: float | None) -> Float[Tensor, "parameters"]:
    """The default start: ``ΔW = 0`` exactly, all cores but one orthonormal up to their gain.

    Args:
        shape: Dims and ranks.
        epsilon: Size of the trained entries; None: that of orthonormal cores.
    """
    z = zero_core(shape)
    flat = torch.zeros(shape.parameters, dtype=torch.float32)
    for index, (core, gain) in enumerate(zip(TensorTrain(shape, flat).cores, gains(shape, epsilon), strict=True)):
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
def random_update(shape: TTShape, epsilon: float | None) -> Float[Tensor, "parameters"]:
    """A start that changes the layer: the zero start, with the zero core drawn as wide as LoRA's ``B`` without zeros.

    Args:
        shape: Dims and ranks.
        epsilon: Size of the trained entries; None: that of orthonormal cores.
    """
    flat = zero_update(shape, epsilon)
    core = TensorTrain(shape, flat).cores[zero_core(shape)]
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
