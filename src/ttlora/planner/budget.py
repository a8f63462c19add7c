"""The largest adapter within a size: its TT-rank and its number of cores vary."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace
from math import isqrt

from ttlora.errors import UserError
from ttlora.planner.matrices import BYTES_16BIT, MatrixPlan
from ttlora.tensor_train import TTShape

Matrices = tuple[MatrixPlan, ...]


def fit_budget(matrices: Matrices, budget: int, r: int | None, vary_dims: bool) -> Matrices:
    """Change ranks and dims so that the adapter is as large as the budget allows.

    Of all numbers of cores and ranks the largest adapter that fits is taken. Dims are split down to primes only where
    nothing else fits, since the longest trains are the slowest to learn.

    Args:
        matrices: The plan to start from.
        budget: Bytes of the parameters at 16 bit each.
        r: The TT-rank to keep; None for the highest that fits, which for a budget beyond full rank is the lowest that
            loses nothing.
        vary_dims: Whether dims may be split.

    Raises:
        UserError: Not even the smallest such adapter fits.
    """
    levels = list(_ever_finer(matrices)) if vary_dims else [matrices]
    sized = [_with_rank(level, r) if r else _with_highest_rank(level, budget) for level in levels]
    fitting = [level for level in sized if _bytes(level) <= budget]
    if not fitting:
        smallest = min(_bytes(level) for level in sized)
        kept = (f" of TT-rank {r}" if r else "") + ("" if vary_dims else " of this shape")
        raise UserError(
            f"`budget` is {budget:,}, and too small: the smallest adapter{kept} takes {smallest:,} bytes in 16 bit; "
            "allow that much, or adapt fewer modules with `targets`"
        )
    return max((level for level in fitting if level is not sized[-1]), key=_bytes, default=fitting[-1])


def _ever_finer(matrices: Matrices) -> Iterator[Matrices]:
    """The matrices as they are, then with the largest dims split, again and again, down to prime dims.

    A dim is split in its place, so that an aligned shape stays aligned.
    """
    while True:
        yield matrices
        largest = max((k for matrix in matrices for k in matrix.dims if _divisor_near_root(k) > 1), default=None)
        if largest is None:
            return
        matrices = tuple(_rebuild(matrix, _split(matrix.dims, largest), 1) for matrix in matrices)


def _split(dims: list[int], largest: int) -> list[int]:
    """Split each dim of this size into two near-equal ones, the larger towards the boundary, as in "auto"."""
    result: list[int] = []
    for index, k in enumerate(dims):
        if k == largest:
            divisor = _divisor_near_root(k)
            pair = (k // divisor, divisor)
            result.extend(reversed(pair) if 2 * index < len(dims) else pair)
        else:
            result.append(k)
    return result


def _divisor_near_root(k: int) -> int:
    return next(divisor for divisor in range(isqrt(k), 0, -1) if k % divisor == 0)


def _with_highest_rank(matrices: Matrices, budget: int) -> Matrices:
    """The highest TT-rank that fits the budget, or 1."""

    def cost(r: int) -> int:
        return _bytes(_with_rank(matrices, r))

    # An unfolding's rank is at most its shorter side, which is at most the root of the number of entries.
    ranks = range(1, 1 + max(isqrt(matrix.shape.out_features * matrix.shape.in_features) for matrix in matrices))
    fitting = max(bisect_right(ranks, budget, key=cost), 1)
    return _with_rank(matrices, ranks[bisect_left(ranks, cost(fitting), key=cost)])


def _with_rank(matrices: Matrices, r: int) -> Matrices:
    return tuple(_rebuild(matrix, matrix.dims, r) for matrix in matrices)


def _rebuild(matrix: MatrixPlan, dims: list[int], r: int) -> MatrixPlan:
    rows, columns, experts = matrix.shape.out_features, matrix.shape.in_features, matrix.experts
    if experts == 1:
        return replace(matrix, shape=TTShape.build(rows, columns, dims, r))
    return replace(matrix, shape=TTShape.build_experts(experts, rows // experts, columns, dims, r))


def _bytes(matrices: Matrices) -> int:
    return BYTES_16BIT * sum(matrix.total_parameters for matrix in matrices)
