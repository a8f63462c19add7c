import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tensor_train.strategies import shapes
from ttlora.tensor_train import TTShape, aligned_dims


# Parameter counts a matrix, checked by arithmetic against the paper (Tables I, II and IV; Section III-B).
@pytest.mark.parametrize(
    ("out_features", "in_features", "dims", "r", "parameters"),
    [
        (2304, 768, [64, 36, 12, 64], 5, 1840),
        (768, 768, [64, 16, 9, 64], 4, 912),
        (4096, 4096, [16] * 6, 5, 1760),
        (4096, 4096, [16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16], 10, 3520),
        (1024, 4096, [16, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16], 10, 3120),
        (2304, 768, [12, 8, 8, 3, 8, 8, 12], 5, 995),
    ],
)
def test_parameters_are_the_papers(out_features, in_features, dims, r, parameters):
    assert TTShape.build(out_features, in_features, dims, r).parameters == parameters


@pytest.mark.parametrize(
    ("out_features", "in_features", "dims"),
    [
        (4096, 4096, (16, 16, 16, 16, 16, 16)),
        (384, 384, (6, 8, 8, 8, 8, 6)),
        (768, 768, (8, 8, 12, 12, 8, 8)),
        (1024, 4096, (8, 8, 16, 16, 16, 16)),
        (12288, 11008, (8, 8, 12, 16, 43, 8, 8, 4)),
        (50257, 768, (29, 1733, 12, 8, 8)),
        (97, 89, (97, 89)),
        (1, 7, (1, 7)),
        (1, 1, (1, 1)),
    ],
)
def test_auto_gives_near_equal_dims_with_the_largest_at_the_boundary(out_features, in_features, dims):
    assert TTShape.build(out_features, in_features).dims == dims


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 16))
def test_auto_serves_any_size_and_is_aligned(out_features, in_features, r):
    shape = TTShape.build(out_features, in_features, "auto", r)
    assert math.prod(shape.dims) == out_features * in_features
    assert shape.boundary is not None
    assert math.prod(shape.dims[: shape.boundary]) == out_features
    assert shape.factor_rank <= r


@pytest.mark.parametrize(
    ("out_features", "in_features", "side", "dims"),
    [
        (4096, 4096, 1, (4096, 4096)),
        (4096, 4096, 3, (16,) * 6),
        (4096, 4096, 6, (4,) * 12),
        (4096, 4096, 12, (4,) * 12),
        (192, 576, 2, (12, 16, 24, 24)),
        (97, 24, 5, (97, 4, 3, 2)),
        (1, 8, 2, (1, 4, 2)),
    ],
)
def test_dims_by_the_number_of_cores(out_features, in_features, side, dims):
    assert aligned_dims(out_features, in_features, side) == dims


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 8))
def test_more_cores_have_fewer_parameters_or_are_not_there(out_features, in_features, side):
    fewer, more = aligned_dims(out_features, in_features, side), aligned_dims(out_features, in_features, side + 1)
    assert TTShape.build(out_features, in_features, fewer).boundary is not None
    assert more == fewer or (len(more) > len(fewer) and sum(more) < sum(fewer))
    assert len(more) <= 2 * (side + 1)


@given(shapes())
def test_ranks_are_clipped_to_what_neighbouring_cores_allow(shape):
    for bond in range(1, shape.order):
        assert 1 <= shape.ranks[bond] <= shape.ranks[bond - 1] * shape.dims[bond - 1]
        assert shape.ranks[bond] <= shape.dims[bond] * shape.ranks[bond + 1]
    assert shape.ranks[0] == shape.ranks[-1] == 1
    assert shape.parameters == sum(a * k * b for a, k, b in shape.core_shapes)


@given(shapes())
def test_span_parts_rows_from_columns(shape):
    i, j = shape.span
    assert shape.out_features % math.prod(shape.dims[:i]) == 0
    assert shape.in_features % math.prod(shape.dims[j:]) == 0
    assert (i == j) == (shape.boundary is not None)


def test_boundary_is_the_bond_between_rows_and_columns():
    assert TTShape.build(2304, 768, [64, 36, 12, 64], 5).boundary == 2
    assert TTShape.build(4, 4, [4, 1, 1, 4], [4, 2, 3]).boundary == 1
    assert TTShape.build(768, 768, [64, 16, 9, 64], 4).boundary is None


@pytest.mark.parametrize(
    ("dims", "r", "message"),
    [
        ([16, 16, 16], 5, r"shape \[16, 16, 16\] has the product 4,096, but the 768 x 768 matrix has 589,824 entries"),
        ([768, 767], 5, r"product 589,056.*589,824 entries; use 'auto' \(here \[8, 8, 12, 12, 8, 8\]\)"),
        ([589824], 5, "at least two positive integers"),
        ([768, -768], 5, "at least two positive integers"),
        ([768.0, 768], 5, "at least two positive integers"),
        ([768, 768], 0, "r=0: a TT-rank is a positive integer"),
        ([768, 768], [5, 5], r"r=\[5, 5\] has 2 ranks, but a shape of 2 dims has 1 bonds"),
    ],
)
def test_wrong_shapes_and_ranks_are_refused(dims, r, message):
    with pytest.raises(ValueError, match=message):
        TTShape.build(768, 768, dims, r)


class TestExperts:
    def test_the_index_is_a_mode_at_the_boundary_and_costs_its_matrices_alone(self):
        one, many = TTShape.build(96, 64, r=5), TTShape.build_experts(8, 96, 64, r=5)
        assert one.boundary is not None
        assert many.dims == (*one.dims[: one.boundary], 8, *one.dims[one.boundary :])
        assert (many.out_features, many.in_features) == (768, 64)
        assert many.boundary == one.boundary + 1
        assert many.parameters == one.parameters + 8 * 5 * 5

    def test_ranks_by_bond(self):
        shape = TTShape.build_experts(4, 16, 16, [4, 4, 4, 4], [2, 3, 4])
        assert shape.ranks == (1, 2, 3, 3, 4, 1)

    def test_one_row_or_one_column(self):
        assert TTShape.build_experts(4, 1, 6, [2, 3], 5).dims == (4, 2, 3)
        assert TTShape.build_experts(4, 6, 1, [2, 3], 5).dims == (2, 3, 4)

    def test_a_dim_over_rows_and_columns_is_refused(self):
        with pytest.raises(ValueError, match=r"shape \[4, 9, 4\] has a dim that runs over rows and columns"):
            TTShape.build_experts(4, 12, 12, [4, 9, 4])
