"""The shape of a tensor train that holds a matrix: which dims, which TT-ranks, where rows end and columns begin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal

# Sizes and order of "auto" were chosen by what learns best (docs/learning.md).
AUTO_DIM = 16


@dataclass(frozen=True)
class TTShape:
    """Shape of the train of a matrix ``ΔW`` (out x in), read row by row as a tensor ``k_1 x ... x k_d``.

    ``ΔW[o, i] = C_1[:, j_1, :] C_2[:, j_2, :] ... C_d[:, j_d, :]`` with ``(j_1, ..., j_d)`` the digits of
    ``o * in + i`` to the bases ``k_1, ..., k_d``, so that the leading cores run over the rows of the stored weight
    (Anjum et al. 2024, Eq. 2). Build one with `TTShape.build`, which checks and clips.

    Attributes:
        out_features: Rows ``m`` of the matrix.
        in_features: Columns ``n`` of the matrix.
        dims: ``k_1 ... k_d``, with the product ``m * n``.
        ranks: TT-ranks ``r_0 ... r_d``, where ``r_0 = r_d = 1``.
    """

    out_features: int
    in_features: int
    dims: tuple[int, ...]
    ranks: tuple[int, ...]

    @classmethod
    def build(
        cls,
        out_features: int,
        in_features: int,
        dims: Sequence[int] | Literal["auto"] = "auto",
        r: int | Sequence[int] = 5,
    ) -> "TTShape":
        """Check ``dims`` against the matrix and clip the ranks to what the unfoldings can have.

        A rank above ``min(k_i * r_{i-1}, k_{i+1} * r_{i+1})`` adds parameters and no matrices: clipping loses nothing.

        Args:
            out_features: Rows of the matrix.
            in_features: Columns of the matrix.
            dims: ``k_1 ... k_d``, at least two of them, or "auto" for near-equal dims of about 16 at most, the
                largest ones next to the boundary.
            r: One TT-rank for all bonds, or the ``d - 1`` inner ones.

        Raises:
            ValueError: The product of ``dims`` is not ``out_features * in_features``, or a dim or a rank is not a
                positive integer, or the number of ranks is not ``d - 1``.
        """
        if dims == "auto":
            dims = (*reversed(_near_equal_factors(out_features)), *_near_equal_factors(in_features))
        else:
            dims = tuple(dims)
            _check_dims(dims, out_features, in_features)
        return cls(out_features, in_features, dims, _clip(dims, _inner_ranks(r, len(dims))))

    @classmethod
    def build_experts(
        cls,
        experts: int,
        out_features: int,
        in_features: int,
        dims: Sequence[int] | Literal["auto"] = "auto",
        r: int | Sequence[int] = 5,
    ) -> "TTShape":
        """The shape of one train for the stacked weights of all experts, ``ΔW[(o, e), i]``.

        The expert's index is a mode of its own at the boundary: all experts share ``A`` and the rows' side of ``B``,
        and differ by the ``r x r`` matrix in between.

        Args:
            experts: Number of experts ``E``.
            out_features: Rows of one expert's matrix.
            in_features: Columns of one expert's matrix.
            dims: Dims of one expert's matrix, as for `build`; ``E`` is put in between rows and columns.
            r: One TT-rank for all bonds, or the ``d - 1`` inner ones of one expert's matrix, or all ``d``.

        Raises:
            ValueError: As `build`, or rows and columns share one of the dims.
        """
        one = cls.build(out_features, in_features, dims, 1)
        if one.boundary is None:
            raise ValueError(
                f"shape {list(one.dims)} has a dim that runs over rows and columns: the expert's index has no place "
                f"between them; use dims of which the first multiply to {out_features}"
            )
        at = one.boundary
        dims = (*one.dims[:at], experts, *one.dims[at:])
        if isinstance(r, int) or len(r) == len(dims) - 1:
            return cls.build(out_features * experts, in_features, dims, r)
        ranks = (1, *_inner_ranks(r, one.order), 1)
        # the bond at the boundary stands on both sides of the expert's index
        return cls.build(out_features * experts, in_features, dims, (*ranks[: at + 1], *ranks[at:])[1:-1])

    @property
    def order(self) -> int:
        """The number ``d`` of cores."""
        return len(self.dims)

    @cached_property
    def core_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """``(r_{i-1}, k_i, r_i)`` of each core."""
        return tuple((left, k, right) for k, (left, right) in zip(self.dims, pairwise(self.ranks), strict=True))

    @cached_property
    def core_parameters(self) -> tuple[int, ...]:
        """``r_{i-1} k_i r_i`` of each core."""
        return tuple(math.prod(shape) for shape in self.core_shapes)

    @property
    def parameters(self) -> int:
        """``Σ r_{i-1} k_i r_i``, the length of the flat vector that holds all cores."""
        return sum(self.core_parameters)

    @cached_property
    def span(self) -> tuple[int, int]:
        """``(i, j)``: the cores before ``i`` run over rows alone, those from ``j`` on over columns alone.

        The prefix product ``P`` up to ``i`` divides ``out_features`` and the suffix product ``Q`` from ``j`` divides
        ``in_features``, both as long as possible. Aligned shapes have ``i = j``; in the others the cores ``i ... j-1``
        form the middle block, of ``m / P`` rows and ``n / Q`` columns.
        """
        if self.boundary is not None:
            return self.boundary, self.boundary
        prefixes = list(accumulate(self.dims, mul, initial=1))
        suffixes = list(accumulate(reversed(self.dims), mul, initial=1))[::-1]
        i = max(index for index, product in enumerate(prefixes) if self.out_features % product == 0)
        j = min(index for index, product in enumerate(suffixes) if self.in_features % product == 0)
        return i, j

    @cached_property
    def boundary(self) -> int | None:
        """The bond at which rows end and columns begin (prefix product ``out_features``), or None if there is none."""
        prefixes = accumulate(self.dims, mul, initial=1)
        return next((bond for bond, product in enumerate(prefixes) if product == self.out_features), None)

    @property
    def factor_rank(self) -> int:
        """Inner size of ``B A``: the TT-rank at the boundary, or for unaligned shapes what the middle block needs.

        It bounds the rank of ``ΔW``; for aligned shapes of full rank it is the rank.
        """
        i, j = self.span
        rows = self.out_features // math.prod(self.dims[:i])
        columns = self.in_features // math.prod(self.dims[j:])
        return min(self.ranks[i] * rows, columns * self.ranks[j])


def aligned_dims(out_features: int, in_features: int, side: int) -> tuple[int, ...]:
    """Near-equal dims, up to ``side`` of them for rows and for columns each, the largest ones next to the boundary.

    There are fewer where more would not lower the sum of the dims, and with it the parameters: a prime stays whole, and
    4 is not split into 2 and 2.

    Args:
        out_features: Rows of the matrix.
        in_features: Columns of the matrix.
        side: Most dims to a side.
    """
    return (*reversed(_lowest_sum_factors(out_features, side)), *_lowest_sum_factors(in_features, side))


def _check_dims(dims: tuple[int, ...], out_features: int, in_features: int) -> None:
    if len(dims) < 2 or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in dims):
        raise ValueError(f"shape {list(dims)} is not a list of at least two positive integers")
    product, wanted = math.prod(dims), out_features * in_features
    if product != wanted:
        auto = list(TTShape.build(out_features, in_features).dims)
        raise ValueError(
            f"shape {list(dims)} has the product {product:,}, but the {out_features} x {in_features} matrix has "
            f"{wanted:,} entries; use 'auto' (here {auto}) or dims with that product"
        )


def _inner_ranks(r: int | Sequence[int], order: int) -> tuple[int, ...]:
    inner = (r,) * (order - 1) if isinstance(r, int) else tuple(r)
    if any(not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 for rank in inner):
        raise ValueError(f"r={r if isinstance(r, int) else list(r)}: a TT-rank is a positive integer")
    if len(inner) != order - 1:
        raise ValueError(f"r={list(inner)} has {len(inner)} ranks, but a shape of {order} dims has {order - 1} bonds")
    return inner


def _clip(dims: tuple[int, ...], inner: tuple[int, ...]) -> tuple[int, ...]:
    ranks = [1, *inner, 1]
    for bond in range(1, len(dims)):
        ranks[bond] = min(ranks[bond], ranks[bond - 1] * dims[bond - 1])
    for bond in reversed(range(1, len(dims))):
        ranks[bond] = min(ranks[bond], dims[bond] * ranks[bond + 1])
    return tuple(ranks)


def _near_equal_factors(features: int) -> tuple[int, ...]:
    """As few dims as keep their geometric mean at most 16, the largest first; a prime stays whole."""
    if not isinstance(features, int) or features < 1:
        raise ValueError(f"a matrix cannot have {features} rows or columns")
    count = 1
    while AUTO_DIM**count < features:
        count += 1
    while (factors := _smallest_sum_factors(features, count, features)) is None:
        count -= 1
    return factors


def _lowest_sum_factors(features: int, most: int) -> tuple[int, ...]:
    """The factorisation into at most ``most`` factors with the least sum, of equals the shortest; the largest first."""
    factors: tuple[int, ...] = (features,)
    for count in range(2, most + 1):
        finer = _smallest_sum_factors(features, count, features)
        if finer is None or sum(finer) == sum(factors):
            break
        factors = finer
    return factors


@lru_cache(maxsize=1024)
def _smallest_sum_factors(product: int, count: int, largest: int) -> tuple[int, ...] | None:
    """``product`` as ``count`` non-increasing factors in ``2 ... largest`` of the least sum, or None."""
    if count == 1:
        return (product,) if product <= largest else None
    best: tuple[int, ...] | None = None
    for factor in _divisors(product):
        if 1 < factor < product and factor <= largest and factor**count >= product:
            # no others sum to less than equal ones, and the sum grows with the distance of this factor from the root
            least = factor + (count - 1) * (product / factor) ** (1 / (count - 1))
            if best is not None and least * (1 - 1e-12) >= sum(best):
                break
            rest = _smallest_sum_factors(product // factor, count - 1, factor)
            if rest is not None and (best is None or factor + sum(rest) < sum(best)):
                best = (factor, *rest)
    return best


@lru_cache(maxsize=1024)
def _divisors(number: int) -> tuple[int, ...]:
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return tuple(sorted({*small, *(number // k for k in small)}))
