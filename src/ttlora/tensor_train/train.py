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
        flat: The cores, end to end.

    Raises:
        ValueError: ``flat`` is not a vector of ``shape.parameters`` entries.
    """

    shape: TTShape
    flat: Float[Tensor, "parameters"]

    def __post_init__(self) -> None:
        if tuple(self.flat.shape) != (self.shape.parameters,):
            raise ValueError(
                f"the cores of shape {list(self.shape.dims)} with ranks {list(self.shape.ranks)} have "
                f"{self.shape.parameters} entries, not {list(self.flat.shape)}"
            )

    @property
    def cores(self) -> tuple[Float[Tensor, "left k right"], ...]:
        """``C_1 ... C_d`` as views of the flat vector."""
        pieces = torch.split(self.flat, list(self.shape.core_sizes))
        return tuple(piece.view(shape) for piece, shape in zip(pieces, self.shape.core_shapes, strict=True))

    def factors(self) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        """``A`` and ``B`` with ``ΔW = B A``, of inner size ``shape.factor_rank``, in the dtype of the cores.

        Aligned shapes: ``B`` contracts the cores of the rows and ``A`` those of the columns. In unaligned shapes some
        cores run over both; contracted into a middle block ``M`` (r_i x s x t x r_j) they join the two sides ``L`` and
        ``R`` as ``ΔW[(p, s), (t, q)] = Σ L[p, a] M[a, s, t, b] R[b, q]``, and ``M`` goes to the side on which the inner
        size stays smaller.
        """
        i, j = self.shape.span
        cores = self.cores
        if i == j:
            return _contract_columns(self.flat, cores[j:]), _contract_rows(self.flat, cores[:i])

        left = _contract_rows(self.flat, cores[:i])
        right = _contract_columns(self.flat, cores[j:])
        rows = self.shape.out_features // left.shape[0]
        columns = self.shape.in_features // right.shape[1]
        middle = _contract_rows(self.flat, cores[i:j])
        if left.shape[1] * rows <= columns * right.shape[0]:
            A = (middle @ right).reshape(-1, self.shape.in_features)
            B = torch.kron(left, torch.eye(rows, dtype=left.dtype, device=left.device))
        else:
            A = torch.kron(torch.eye(columns, dtype=right.dtype, device=right.device), right)
            B = (left @ middle.reshape(left.shape[1], -1)).reshape(self.shape.out_features, -1)
        return A, B

    def to_matrix(self) -> Float[Tensor, "out in"]:
        """The dense matrix ``ΔW``."""
        A, B = self.factors()
        return B @ A

    def norm(self) -> Float[Tensor, ""]:
        """The Frobenius norm of ``ΔW``, from the cores alone."""
        gram = self.flat.new_ones(1, 1)
        for core in self.cores:
            gram = torch.einsum("ab,akc,bkd->cd", gram, core, core)
        return gram.squeeze().clamp(min=0).sqrt()

    @classmethod
    def from_cores(
        cls, out_features: int, in_features: int, cores: Sequence[Float[Tensor, "left k right"]]
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
        cores = list(self.cores)
        for index in reversed(range(1, len(cores))):
            left, k, right = cores[index].shape
            Q, R = torch.linalg.qr(cores[index].reshape(left, k * right).mT)
            cores[index] = Q.mT.reshape(-1, k, right)
            cores[index - 1] = cores[index - 1] @ R.mT
        allowed = tolerance * torch.linalg.vector_norm(cores[0]).item() / math.sqrt(max(len(cores) - 1, 1))
        for index, bound in enumerate(bounds[1:-1]):
            left, k, right = cores[index].shape
            U, S, Vh = _truncated_svd(cores[index].reshape(left * k, right), bound, allowed)
            cores[index] = U.reshape(left, k, -1)
            cores[index + 1] = torch.tensordot(S[:, None] * Vh, cores[index + 1], dims=1)
        return type(self).from_cores(shape.out_features, shape.in_features, cores)


def _contract_rows(flat: Tensor, cores: Sequence[Float[Tensor, "left k right"]]) -> Float[Tensor, "rows right"]:
    """Contract neighbouring cores from the left: row ``(a, j_1, ..., j_n)``, ``a`` the first bond."""
    product = flat.new_ones(1, 1) if not cores else cores[0].reshape(-1, cores[0].shape[2])
    for core in cores[1:]:
        left, k, right = core.shape
        product = (product @ core.reshape(left, k * right)).reshape(-1, right)
    return product


def _contract_columns(flat: Tensor, cores: Sequence[Float[Tensor, "left k right"]]) -> Float[Tensor, "left columns"]:
    """Contract neighbouring cores from the right: column ``(j_1, ..., j_n)``."""
    product = flat.new_ones(1, 1) if not cores else cores[-1].reshape(cores[-1].shape[0], -1)
    for core in reversed(cores[:-1]):
        left, k, right = core.shape
        product = (core.reshape(left * k, right) @ product).reshape(left, -1)
    return product


def _truncated_svd(
    matrix: Float[Tensor, "rows columns"], bound: int, allowed: float
) -> tuple[Float[Tensor, "rows r"], Float[Tensor, "r"], Float[Tensor, "r columns"]]:
    """The SVD cut to at most ``bound`` values, or to fewer if what is cut has a norm of at most ``allowed``."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, min(bound, int((tails > allowed).sum())))
    return U[:, :rank], S[:rank], Vh[:rank]
