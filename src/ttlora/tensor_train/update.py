"""What the trained entries of a train mean: a weight update, scaled so that one learning rate serves every shape.

Adam moves every entry by about the learning rate, whatever the entry's size. LoRA's ``A`` has small entries and turns
quickly; orthonormal cores have large ones and hardly turn, the longer the train the less. So the trained entries
``θ_i`` of each core are kept at one small size ``ε``, and the core that acts is ``g_i θ_i`` with a fixed gain ``g_i``:

    ΔW = s κ (g_1 θ_1) (g_2 θ_2) ... (g_d θ_d)

With ``z`` the core at the boundary, which starts at zero so that ``ΔW = 0``:

- before ``z`` the acting cores start left-orthogonal, after it right-orthogonal: ``g_i = rms(orthonormal core) / ε``;
- ``κ = 1/√3`` gives the rows of ``A`` the norm that LoRA's have;
- ``g_z = √(P / r_{z-1})``, ``P`` the product of the dims before ``z``: Adam's first step then moves ``ΔW`` as far as it
  would move LoRA's ``B A`` of the same rank.

One ``ε`` for all trains would not do: a train of many cores, or of high rank, turns further in a step
(`even_core_size`).

The gains multiply to thousands in long trains. Adam does not see that, but plain SGD and gradient clipping would, so
the gradient that the entries receive is that of the acting core over ``g_i`` instead of times ``g_i``: a step of SGD
then moves the acting cores as if there were no gains. So what arrives in ``.grad``, and what ``torch.func`` gives, is
not the derivative by the entries: that is ``g_i²`` times as large, core by core. Steps of Adam are the same with both;
norms of gradients, line searches, directional and second derivatives are not. Whoever needs the derivative trains plain
trains (``core_size=None``), where both are one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.shape import TTShape
from ttlora.tensor_train.train import TensorTrain, contract_columns, contract_rows, scaled_product

LORA_ROW_NORM = 1 / math.sqrt(3)
LARGEST_SCALE = 2.0**127
# Of one core: gradients are divided by its square, in float32.
LARGEST_GAIN = 2.0**63


@dataclass(frozen=True)
class Update:
    """A weight update ``ΔW`` as a function of the flat vector of trained entries.

    Attributes:
        shape: Dims and ranks of the train.
        scale: ``s``, the adapter's α as its config scales it.
        core_size: ``ε``; None: no gains, ``ΔW = s C_1 ... C_d`` (Anjum et al. 2024, Eq. 3).
        gains: ``g_1 ... g_d``.
        column_scale: What ``A`` is multiplied with: ``κ`` times the gains of the cores of the columns.
        row_scale: What ``B`` is multiplied with: ``s`` times the gains of the other cores. With all on one side,
            float16 would hold neither.
    """

    shape: TTShape
    scale: float = 1.0
    core_size: float | None = None
    gains: tuple[float, ...] = field(init=False, repr=False, compare=False)
    column_scale: float = field(init=False, repr=False, compare=False)
    row_scale: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gains = _gains(self.shape, self.zero_core, self.core_size)
        j = self.shape.span[1]
        # computed once: factors are built in every forward
        object.__setattr__(self, "gains", gains)
        object.__setattr__(self, "column_scale", self._row_norm * math.prod(gains[j:]))
        object.__setattr__(self, "row_scale", self.scale * math.prod(gains[:j]))
        in_range = all(1 / LARGEST_GAIN < gain < LARGEST_GAIN for gain in gains)
        if not in_range or not max(abs(self.column_scale), abs(self.row_scale)) < LARGEST_SCALE:
            raise ValueError(
                f"core_size={self.core_size}, a train over {self.shape.order} dims and a scale of {self.scale} "
                "multiply to more than float32 holds: use fewer dims or another core_size"
            )

    @property
    def parameters(self) -> int:
        """The length of the flat vector."""
        return self.shape.parameters

    @property
    def factor_rank(self) -> int:
        """Inner size of ``B A``, or a bound on it."""
        return self.shape.factor_rank

    @property
    def zero_core(self) -> int:
        """Index ``z`` of the core that starts at zero: the last of the rows, or the first of the middle block."""
        return _zero_core(self.shape)

    @property
    def _row_norm(self) -> float:
        return 1.0 if self.core_size is None else LORA_ROW_NORM

    def factors(
        self, flat: Float[Tensor, "*batch parameters"], dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """``A`` and ``B`` with ``ΔW = B A``.

        Args:
            flat: The entries ``θ``, or those of several adapters stacked.
            dtype: That of a layer's products, for which the factors are also laid out; None: that of the entries, or
                float32 if that is narrower.
        """
        # products of many cores lose too much in half precision, and they are small
        flat = flat.float() if flat.dtype.itemsize < 4 else flat
        if self.shape.boundary is not None and flat.requires_grad and not transformed():
            factors: tuple[Tensor, Tensor] = _AlignedFactors.apply(flat, self, dtype)  # type: ignore[no-untyped-call]
            return factors
        return one_node(self._contract, flat, dtype)

    def balanced(self, flat: Float[Tensor, "*batch parameters"]) -> Float[Tensor, "*batch parameters"]:
        """The entries as they are; their gradient is that of the acting cores over the gains (see the module's text).

        Args:
            flat: The entries ``θ``, or those of several adapters stacked, which are to be contracted with the gains.
        """
        if self.core_size is not None and transformed():
            pieces = torch.split(flat, list(self.shape.core_parameters), dim=-1)
            at_rest = [piece.detach() for piece in pieces]
            moved = zip(at_rest, pieces, self.gains, strict=True)
            return torch.cat([rest + (piece - rest) / gain**2 for rest, piece, gain in moved], dim=-1)
        if self.core_size is not None and flat.requires_grad:
            balanced: Tensor = _Balance.apply(flat, self)  # type: ignore[no-untyped-call]
            return balanced
        return flat

    def _contract(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.balanced(flat)
        if self.shape.boundary is not None:
            contraction = _Contraction(self, flat)
            return contraction.of_columns[-1], contraction.of_rows[-1]
        A, B = TensorTrain(self.shape, flat).factors()
        return A * self.column_scale, B * self.row_scale

    def acting_train(self, flat: Float[Tensor, "parameters"]) -> TensorTrain:
        """The train whose matrix is ``ΔW`` itself: core ``i`` times ``g_i``, and core ``z`` times ``s κ`` besides."""
        return TensorTrain(self.shape, flat * self._multipliers(flat))

    def entries_of(self, train: TensorTrain) -> Float[Tensor, "parameters"]:
        """The entries of which the update is the matrix of ``train``, balanced so that they train on well.

        All cores but ``z`` are made orthonormal, as they are at the start, and ``z`` takes what is left.

        Args:
            train: A train of this update's shape.

        Raises:
            ValueError: ``train`` has another shape, or the scale is 0.
        """
        if train.shape != self.shape:
            raise ValueError(f"a train of {train.shape} is none of {self.shape}")
        if not self.scale:
            raise ValueError("with a scale of 0 every update is zero")
        if self.core_size is not None:
            train = train.orthogonalised(self.zero_core)
        return train.flat / self._multipliers(train.flat)

    def _multipliers(self, like: Tensor) -> Float[Tensor, "parameters"]:
        values = list(self.gains)
        values[self.zero_core] *= self.scale * self._row_norm
        sizes = torch.tensor(self.shape.core_parameters, device=like.device)
        return torch.tensor(values, dtype=like.dtype, device=like.device).repeat_interleave(sizes)


def even_core_size(shape: TTShape) -> float:
    """The ``ε`` at which a learning rate turns this train as fast as any other: ``0.02 Σ_i √r_i / (3 √5)``.

    The sum runs over all cores but the zero core, and ``r_i`` is the rank of the bond of core ``i`` on the zero core's
    side. Adam moves every entry by about the learning rate ``η``. That changes an orthonormal core by up to
    ``(η/ε) √r_i`` in spectral norm, and the product of all by up to ``(η/ε) Σ_i √r_i``: 0.34 at a rate of 1e-3 for
    two cores a side of rank 5, where an ``ε`` of 0.02 was measured to be best. With this ``ε`` it is 0.34 for every
    shape and rank (docs/learning.md, "One learning rate for every shape and rank").

    Args:
        shape: Dims and ranks of the train.
    """
    z = _zero_core(shape)
    ranks = [*shape.ranks[1 : z + 1], *shape.ranks[z + 1 : -1]]
    # both sums run alike, so that two cores a side of rank 5 have 0.02 to the last bit
    return 0.02 * sum(map(math.sqrt, ranks)) / sum([math.sqrt(5)] * 3)


def _zero_core(shape: TTShape) -> int:
    i, j = shape.span
    return i if i < j else max(i - 1, 0)


def _gains(shape: TTShape, z: int, epsilon: float | None) -> tuple[float, ...]:
    """``g_1 ... g_d`` for trained entries of the size ``epsilon`` (see the module's text); None: all 1."""
    if epsilon is None:
        return (1.0,) * shape.order

    def gain(index: int) -> float:
        left, k, right = shape.core_shapes[index]
        if index == z:
            return math.sqrt(math.prod(shape.dims[:z]) / left)
        return 1 / (math.sqrt(left * k if index < z else k * right) * epsilon)

    return tuple(gain(index) for index in range(shape.order))


def laid_out(A: Tensor, B: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """The factors in the dtype of a layer's products, with the columns of ``B`` each in one piece; None: as they are.

    A product with a thin matrix whose short rows lie in memory one after the other is three times slower.
    """
    if dtype is None:
        return A, B
    columns = B.mT
    # `to` leaves the layout of what has the dtype
    columns = columns.contiguous() if B.dtype == dtype else columns.to(dtype, memory_format=torch.contiguous_format)
    return A.to(dtype), columns.mT


def one_node(
    contract: Callable[[Tensor], tuple[Tensor, Tensor]],
    flat: Float[Tensor, "*batch parameters"],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``contract(flat)`` as one node of the graph, which saves no tensors: backward contracts again.

    Checkpointing counts saved tensors, and a layer whose factors came from outside when it first ran builds them itself
    when it runs again.

    Args:
        contract: From entries to factors, in operations that autograd knows.
        flat: The entries.
        dtype: As for `laid_out`.
    """
    if not flat.requires_grad or transformed():
        return laid_out(*contract(flat), dtype)
    factors: tuple[Tensor, Tensor] = _OneNode.apply(flat, contract, dtype)  # type: ignore[no-untyped-call]
    return factors


def transformed() -> bool:
    """Whether ``torch.compile`` or ``torch.func`` (``grad``, ``vmap``, ``jvp``, ...) looks on.

    A function that is one node gives way to plain operations then, with the same gradients: torch.func takes none, and
    torch.compile fuses operations itself. Of such functions torch 2.7 to 2.10 compile none into one graph, and torch
    2.11 makes gradients of zeros.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class _OneNode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, contract: Callable[[Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        ctx.flat, ctx.contract = flat, contract
        return laid_out(*contract(flat.detach()), dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        twice = torch.is_grad_enabled()  # with create_graph
        flat = ctx.flat if twice else ctx.flat.detach().requires_grad_()
        with torch.enable_grad():
            factors = ctx.contract(flat)
        # a side that is all rows or all columns of the other's middle block is an identity
        learned = [(f, g.to(f.dtype)) for f, g in zip(factors, gradients, strict=True) if f.requires_grad]
        outputs, directions = zip(*learned, strict=True)
        (gradient,) = torch.autograd.grad(outputs, flat, directions, create_graph=twice)
        return gradient, None, None


class _AlignedFactors(torch.autograd.Function):
    """`Update.factors` of an aligned shape as one node of the graph.

    Contracting a train takes a dozen tiny products, and autograd spends more time on recording and walking them than
    they take; every adapted layer pays for that in every step. Scales are factors of the products themselves.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, update: Update, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        contraction = _Contraction(update, flat)
        # not as saved tensors, as in `one_node`; what is returned holds this node, and would hold itself
        ctx.update, ctx.flat, ctx.contraction = update, flat, contraction
        return laid_out(contraction.of_columns.pop(), contraction.of_rows.pop(), dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        update, flat = ctx.update, ctx.flat
        # with create_graph, a second derivative runs through the products: they are computed again
        contraction = _Contraction(update, flat) if torch.is_grad_enabled() else ctx.contraction
        pieces = contraction.backward(*(gradient.to(flat.dtype) for gradient in gradients))
        batch = flat.dim() - 1
        return torch.cat([piece.flatten(batch) for piece in pieces], -1), None, None


class _Contraction:
    """The products that contract an aligned train, kept for their gradients.

    Args:
        update: Has an aligned shape.
        flat: The cores, end to end, or those of several trains stacked.
    """

    def __init__(self, update: Update, flat: Float[Tensor, "*batch parameters"]) -> None:
        cores, bond = TensorTrain(update.shape, flat).cores, update.shape.span[0]
        self.rows, self.columns = cores[:bond], cores[bond:]
        self.of_rows = contract_rows(flat, self.rows, update.row_scale)
        self.of_columns = contract_columns(flat, self.columns, update.column_scale)
        # what the gradient of each core is multiplied with
        scales = [update.row_scale] * bond + [update.column_scale] * len(self.columns)
        if update.core_size is not None:
            scales = [scale / gain**2 for scale, gain in zip(scales, update.gains, strict=True)]
        self.row_scales, self.column_scales = scales[:bond], scales[bond:]

    def backward(self, dA: Float[Tensor, "*batch r in"], dB: Float[Tensor, "*batch out r"]) -> list[Tensor]:
        """The gradients of the cores, in their order, from those of the last product of either side."""
        of_rows, gradient, last = [], dB, len(self.rows) - 1
        for index in range(last, 0, -1):
            core, product = self.rows[index], self.of_rows[index - 1]
            gradient = gradient.reshape(*product.shape[:-1], -1)
            of_rows.append(scaled_product(product.mT, gradient, self.row_scales[index]))
            gradient = scaled_product(gradient, core.flatten(-2).mT, self.row_scales[0] if index == 1 else 1.0)
        if self.rows:
            of_rows.append(gradient if last else gradient * self.row_scales[0])
        of_columns, gradient, last = [], dA, len(self.columns) - 1
        for index, core in enumerate(self.columns[:-1]):
            product = self.of_columns[last - 1 - index]
            gradient = gradient.reshape(*gradient.shape[:-2], -1, product.shape[-1])
            of_columns.append(scaled_product(gradient, product.mT, self.column_scales[index]))
            scale = self.column_scales[-1] if index == last - 1 else 1.0
            gradient = scaled_product(core.flatten(-3, -2).mT, gradient, scale)
        if self.columns:
            of_columns.append(gradient if last else gradient * self.column_scales[0])
        return [*reversed(of_rows), *of_columns]


class _Balance(torch.autograd.Function):
    """The entries unchanged; their gradient, core by core, over ``g_i²``.

    The factors hold every ``g_i``, and with them the gradient; divided twice, what arrives is the gradient of the
    acting core over ``g_i``.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, update: Update) -> Tensor:
        ctx.update = update
        return flat.view_as(flat)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        pieces = torch.split(gradients[0], list(ctx.update.shape.core_parameters), dim=-1)
        divided = [piece / gain**2 for piece, gain in zip(pieces, ctx.update.gains, strict=True)]
        return torch.cat(divided, dim=-1), None
