"""A matrix held as a tensor train over one flat vector."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttlora.tensor_train.shape import TTShape


@dataclass(frozen=True)
class TensorTrain:
    """The matrix ``ΔW[o, i] = C_1[:, j_1, :] ... C_d[:, j_d, :]`` of a `TTShape` (Anjum et al. 2024, Eq. 2).

    One flat vector holds the cores end to end, each row by row as ``r_{i-1} x k_i x r_i``; everything else is a view of
    it, so that gradients flow to the one vector.

    Attributes:
        shape: Dims, ranks and sizes.
        flat: The cores, end to end. With leading dimensions, trains of one shape stacked: their cores, factors and
            matrices are stacked likewise.

    Raises:
        ValueError: ``flat`` does not hold ``shape.parameters`` entries.
    """

    shape: TTShape
    flat: Float[Tensor, "*batch parameters"]

    def __post_init__(self) -> None:
        if self.flat.dim() < 1 or self.flat.shape[-1] != self.shape.parameters:
            raise ValueError(
                f"the cores of shape {list(self.shape.dims)} with ranks {list(self.shape.ranks)} have "
                f"{self.shape.parameters} entries, not {list(self.flat.shape)}"
            )

    @property
    def cores(self) -> tuple[Float[Tensor, "*batch _left _k _right"], ...]:
        """``C_1 ... C_d`` as views of the flat vector."""
        batch = self.flat.shape[:-1]
        pieces = torch.split(self.flat, list(self.shape.core_parameters), dim=-1)
        return tuple(piece.view(*batch, *shape) for piece, shape in zip(pieces, self.shape.core_shapes, strict=True))

    def factors(self) -> tuple[Float[Tensor, "*batch r in"], Float[Tensor, "*batch out r"]]:
        """``A`` and ``B`` with ``ΔW = B A``, of inner size ``shape.factor_rank``, in the dtype of the cores.

        Aligned shapes: ``B`` contracts the cores of the rows and ``A`` those of the columns. In unaligned shapes some
        cores run over both; contracted into a middle block ``M`` (r_i x s x t x r_j) they join the two sides ``L`` and
        ``R`` as ``ΔW[(p, s), (t, q)] = Σ L[p, a] M[a, s, t, b] R[b, q]``, and ``M`` goes to the side on which the inner
        size stays smaller.
        """
        i, j = self.shape.span
        cores = self.cores
        *_, left = contract_rows(self.flat, cores[:i])
        *_, right = contract_columns(self.flat, cores[j:])
        if i == j:
            return right, left

        batch = self.flat.shape[:-1]
        rows = self.shape.out_features // left.shape[-2]
        columns = self.shape.in_features // right.shape[-1]
        *_, middle = contract_rows(self.flat, cores[i:j])
        if left.shape[-1] * rows <= columns * right.shape[-2]:
            A = (middle @ right).reshape(*batch, -1, self.shape.in_features)
            return A, _kronecker(left, torch.eye(rows, dtype=left.dtype, device=left.device))
        A = _kronecker(torch.eye(columns, dtype=right.dtype, device=right.device), right)
        B = (left @ middle.reshape(*batch, left.shape[-1], -1)).reshape(*batch, self.shape.out_features, -1)
        return A, B

    def to_matrix(self) -> Float[Tensor, "*batch out in"]:
        """The dense matrix ``ΔW``."""
        A, B = self.factors()
        return B @ A

    def norm(self) -> Float[Tensor, ""]:
        """The Frobenius norm of ``ΔW``, from the cores alone."""
        # that of the one core that is not orthonormal: products of Gram matrices would lose half of the digits, of
        # which the difference of two near trains has few
        norm: Tensor = torch.linalg.vector_norm(self.orthogonalised(0).cores[0])
        return norm

    @classmethod
    def from_cores(
        cls, out_features: int, in_features: int, cores: Sequence[Float[Tensor, "_left _k _right"]]
    ) -> "TensorTrain":
        """The train of the given cores, whose ranks stay as they are.

        Raises:
            ValueError: The dims do not multiply to ``out_features * in_features``, or neighbouring cores do not fit.
        """
        dims = TTShape.build(out_features, in_features, [core.shape[1] for core in cores]).dims
        shape = TTShape(out_features, in_features, dims, (1, *(core.shape[2] for core in cores)))
        if shape.ranks[-1] != 1 or shape.core_shapes != tuple(tuple(core.shape) for core in cores):
            raise ValueError(f"cores of shapes {[list(core.shape) for core in cores]} do not form a train")
        return cls(shape, torch.cat([core.reshape(-1) for core in cores]))

    @classmethod
    def from_matrix(
        cls,
        matrix: Float[Tensor, "out in"],
        dims: Sequence[int],
        r: int | Sequence[int] | None = None,
        tolerance: float = 0.0,
    ) -> "TensorTrain":
        """TT-SVD (Oseledets 2011, Algorithm 1): the train of ``dims`` that is quasi-optimally close to ``matrix``.

        Args:
            matrix: The matrix to be held.
            dims: ``k_1 ... k_d``.
            r: Bound on the TT-ranks, or None for the ranks that ``tolerance`` needs.
            tolerance: Bound on ``‖matrix - ΔW‖ / ‖matrix‖`` as long as ``r`` does not bind.

        Raises:
            ValueError: As `TTShape.build`.
        """
        out_features, in_features = matrix.shape
        bounds = TTShape.build(out_features, in_features, dims, matrix.numel() if r is None else r).ranks
        allowed = tolerance * torch.linalg.vector_norm(matrix).item() / math.sqrt(max(len(dims) - 1, 1))
        cores, rest, left = [], matrix.reshape(1, -1), 1
        for k, bound in zip(dims[:-1], bounds[1:-1], strict=True):
            U, S, Vh = _truncated_svd(rest.reshape(left * k, -1), bound, allowed)
            cores.append(U.reshape(left, k, -1))
            rest, left = S[:, None] * Vh, S.shape[0]
        cores.append(rest.reshape(left, dims[-1], 1))
        return cls.from_cores(out_features, in_features, cores)

    @classmethod
    def from_factors(
        cls, A: Float[Tensor, "rank in"], B: Float[Tensor, "out rank"], dims: Sequence[int]
    ) -> "TensorTrain":
        """The exact train of ``B A`` (such as LoRA's), whose bonds are as small as SVDs of the two factors leave them.

        The dense product is built for unaligned ``dims`` alone.

        Args:
            A: Factor of the columns.
            B: Factor of the rows.
            dims: ``k_1 ... k_d``.

        Raises:
            ValueError: As `TTShape.build`.
        """
        shape = TTShape.build(B.shape[0], A.shape[1], dims)
        if shape.boundary in (None, 0, shape.order):
            return cls.from_matrix(B @ A, dims)
        rows, columns = dims[: shape.boundary], dims[shape.boundary :]
        of_rows = _split_rows(B, rows)
        # read backwards, the cores of the columns are those of the rows of the transpose
        backwards = A.reshape(-1, *columns).permute(*range(len(columns), -1, -1))
        of_columns = [core.permute(2, 1, 0) for core in reversed(_split_rows(backwards, columns[::-1]))]
        return cls.from_cores(shape.out_features, shape.in_features, [*of_rows, *of_columns]).clipped()

    def __add__(self, other: "TensorTrain") -> "TensorTrain":
        """The exact train of the sum of two matrices; its TT-ranks are the sums of theirs (Oseledets 2011, Section 4).

        Raises:
            ValueError: The two have different dims or sizes.
        """
        mine, theirs = self.shape, other.shape
        if (mine.out_features, mine.in_features, mine.dims) != (theirs.out_features, theirs.in_features, theirs.dims):
            raise ValueError(
                f"a train over {list(mine.dims)} for {mine.out_features} x {mine.in_features} and one over "
                f"{list(theirs.dims)} for {theirs.out_features} x {theirs.in_features} have no sum"
            )
        cores = []
        for index, (a, b) in enumerate(zip(self.cores, other.cores, strict=True)):
            first, last = index == 0, index == mine.order - 1
            core = a.new_zeros(
                1 if first else a.shape[0] + b.shape[0], a.shape[1], 1 if last else a.shape[2] + b.shape[2]
            )
            core[: a.shape[0], :, : a.shape[2]] += a
            core[-b.shape[0] :, :, -b.shape[2] :] += b
            cores.append(core)
        return type(self).from_cores(mine.out_features, mine.in_features, cores)

    def __sub__(self, other: "TensorTrain") -> "TensorTrain":
        """The exact train of the difference of two matrices, as `+`."""
        first = other.shape.core_parameters[0]
        return self + type(self)(other.shape, torch.cat([-other.flat[:first], other.flat[first:]]))

    def orthogonalised(self, center: int) -> "TensorTrain":
        """The same matrix with all cores but one orthonormal: left-orthogonal before it, right-orthogonal after it.

        Args:
            center: Index of the core that takes what is left.
        """
        cores = list(self.cores)
        for index in range(center):
            left, k, right = cores[index].shape
            Q, R = torch.linalg.qr(cores[index].reshape(left * k, right))
            cores[index] = Q.reshape(left, k, -1)
            cores[index + 1] = torch.tensordot(R, cores[index + 1], dims=1)
        for index in reversed(range(center + 1, len(cores))):
            left, k, right = cores[index].shape
            Q, R = torch.linalg.qr(cores[index].reshape(left, k * right).mT)
            cores[index] = Q.mT.reshape(-1, k, right)
            cores[index - 1] = cores[index - 1] @ R.mT
        return type(self).from_cores(self.shape.out_features, self.shape.in_features, cores)

    def clipped(self) -> "TensorTrain":
        """The same matrix at ranks that its unfoldings can have, as `TTShape.build` clips them."""
        shape = self.shape
        possible = TTShape.build(shape.out_features, shape.in_features, shape.dims, shape.ranks[1:-1])
        return self if shape == possible else self.orthogonalised(shape.order - 1).orthogonalised(0)

    def singular_values(self) -> list[Float[Tensor, "_rank"]]:
        """Of each inner bond, the singular values of ``ΔW``'s unfolding there, as many as the bond's rank.

        To lower a bond's rank by one costs its smallest: the squared error of a rounding is at most the sum of the
        squares of all that it drops (Oseledets 2011, Theorem 2.2).
        """
        # no tail of them has a norm below zero: none is cut
        return _cut_from_the_left(list(self.orthogonalised(0).cores), self.shape.ranks, allowed=-1.0)

    def round(self, r: int | Sequence[int] | None = None, tolerance: float = 0.0) -> "TensorTrain":
        """The train of the same dims and lower ranks that is quasi-optimally close (Oseledets 2011, Algorithm 2).

        Args:
            r: Bound on the TT-ranks, or None for the ranks that ``tolerance`` needs.
            tolerance: Bound on the relative Frobenius error as long as ``r`` does not bind.

        Raises:
            ValueError: As `TTShape.build`.
        """
        shape = self.shape
        bounds = TTShape.build(
            shape.out_features, shape.in_features, shape.dims, shape.ranks[1:-1] if r is None else r
        ).ranks
        cores = list(self.orthogonalised(0).cores)
        allowed = tolerance * torch.linalg.vector_norm(cores[0]).item() / math.sqrt(max(len(cores) - 1, 1))
        _cut_from_the_left(cores, bounds, allowed)
        # a bond that was kept may be wider than what later, narrower ones leave for it
        return type(self).from_cores(shape.out_features, shape.in_features, cores).clipped()


def contract_rows(
    flat: Tensor, cores: Sequence[Float[Tensor, "*batch _left _k _right"]], scale: float = 1.0
) -> list[Float[Tensor, "*batch _rows _right"]]:
    """Neighbouring cores contracted from the left, one more in each product: row ``(a, j_1, ..., j_n)``.

    Args:
        flat: The flat vector of the cores, whose dtype and device the product of no cores has.
        cores: ``C_i ... C_j``; the first bond ``a`` is read as part of the rows.
        scale: What the last product is multiplied with.
    """
    if len(cores) < 2:
        alone = cores[0].flatten(-3, -2) if cores else flat.new_ones(*flat.shape[:-1], 1, 1)
        return [alone * scale]
    products = [cores[0].flatten(-3, -2)]
    for index, core in enumerate(cores[1:], 1):
        product = scaled_product(products[-1], core.flatten(-2), scale if index == len(cores) - 1 else 1.0)
        products.append(product.reshape(*core.shape[:-3], -1, core.shape[-1]))
    return products


def contract_columns(
    flat: Tensor, cores: Sequence[Float[Tensor, "*batch _left _k _right"]], scale: float = 1.0
) -> list[Float[Tensor, "*batch _left _columns"]]:
    """Neighbouring cores contracted from the right, one more in each product: column ``(j_1, ..., j_n)``.

    Args:
        flat: The flat vector of the cores, whose dtype and device the product of no cores has.
        cores: ``C_i ... C_j``; the last bond is read as part of the columns.
        scale: What the last product is multiplied with.
    """
    if len(cores) < 2:
        alone = cores[0].flatten(-2) if cores else flat.new_ones(*flat.shape[:-1], 1, 1)
        return [alone * scale]
    products = [cores[-1].flatten(-2)]
    for index, core in reversed(list(enumerate(cores[:-1]))):
        product = scaled_product(core.flatten(-3, -2), products[-1], 1.0 if index else scale)
        products.append(product.reshape(*core.shape[:-2], -1))
    return products


def scaled_product(
    first: Float[Tensor, "*batch a b"], second: Float[Tensor, "*batch b c"], scale: float
) -> Float[Tensor, "*batch a c"]:
    """``scale * first @ second``, as one operator where there is at most one dim of a batch."""
    if scale == 1:
        return first @ second
    if first.dim() > 3:
        return first @ second * scale
    # with beta=0 what stands in the sum's place is not read
    unread = first.detach()[..., :1, :1]
    multiply = torch.addmm if first.dim() == 2 else torch.baddbmm
    return multiply(unread, first, second, beta=0, alpha=scale)


def _kronecker(
    first: Float[Tensor, "*#batch a b"], second: Float[Tensor, "*#batch c d"]
) -> Float[Tensor, "*batch a*c b*d"]:
    """The Kronecker product, one for each of the stacked matrices."""
    return (first[..., :, None, :, None] * second[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


def _split_rows(B: Float[Tensor, "rows *rest"], dims: Sequence[int]) -> list[Float[Tensor, "_left _k _right"]]:
    """The cores over ``dims`` whose contraction is ``B``, by exact SVDs; the last bond is B's own columns."""
    cores, rest, left = [], B.reshape(1, -1), 1
    for k in dims[:-1]:
        rest = rest.reshape(left * k, -1)
        U, S, Vh = _truncated_svd(rest, min(rest.shape), _rounding_error(rest))
        cores.append(U.reshape(left, k, -1))
        rest, left = S[:, None] * Vh, S.shape[0]
    cores.append(rest.reshape(left, dims[-1], -1))
    return cores


def _rounding_error(matrix: Float[Tensor, "rows columns"]) -> float:
    """The norm below which singular values count as rounding errors."""
    return float(max(matrix.shape) * torch.finfo(matrix.dtype).eps * torch.linalg.vector_norm(matrix))


def _cut_from_the_left(cores: list[Tensor], ranks: Sequence[int], allowed: float) -> list[Tensor]:
    """Cut each inner bond by an SVD, from the left to the right, and leave the cores behind left-orthogonal.

    Args:
        cores: Cores of which all but the first are right-orthogonal; they are replaced.
        ranks: Bounds on all ranks, the outer ones among them.
        allowed: As for `_truncated_svd`.

    Returns:
        The singular values that each inner bond keeps.
    """
    kept = []
    for index, bound in enumerate(ranks[1:-1]):
        left, k, right = cores[index].shape
        U, S, Vh = _truncated_svd(cores[index].reshape(left * k, right), bound, allowed)
        kept.append(S)
        cores[index] = U.reshape(left, k, -1)
        cores[index + 1] = torch.tensordot(S[:, None] * Vh, cores[index + 1], dims=1)
    return kept


def _truncated_svd(
    matrix: Float[Tensor, "rows columns"], bound: int, allowed: float
) -> tuple[Float[Tensor, "rows r"], Float[Tensor, "r"], Float[Tensor, "r columns"]]:
    """The SVD cut to at most ``bound`` values, or to fewer if what is cut has a norm of at most ``allowed``."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, min(bound, int((tails > allowed).sum())))
    return U[:, :rank], S[:rank], Vh[:rank]
