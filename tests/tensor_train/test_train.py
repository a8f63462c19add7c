import pytest
import tensorly
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train as tensorly_tt_svd

from tests.tensor_train.strategies import trains
from ttlora.tensor_train import TensorTrain, TTShape


def dense(train: TensorTrain) -> torch.Tensor:
    """The matrix of a train by TensorLy."""
    tensor = tensorly.tt_to_tensor([core.numpy() for core in train.cores])
    return torch.as_tensor(tensor).reshape(train.shape.out_features, train.shape.in_features)


def random_train(*arguments, dtype=torch.float64):
    shape = TTShape.build(*arguments)
    return TensorTrain(shape, torch.randn(shape.parameters, dtype=dtype))


@given(trains())
def test_to_matrix_is_tensorlys(train):
    torch.testing.assert_close(train.to_matrix(), dense(train))


@given(trains())
def test_factors_multiply_to_the_matrix(train):
    A, B = train.factors()
    assert A.shape == (train.shape.factor_rank, train.shape.in_features)
    assert B.shape == (train.shape.out_features, train.shape.factor_rank)
    torch.testing.assert_close(B @ A, dense(train))


@given(trains(largest=16))
def test_gradients_of_the_flat_vector_are_those_of_the_dense_contraction(train):
    weight = torch.randn(train.shape.out_features, train.shape.in_features, dtype=torch.float64)
    flat = train.flat.clone().requires_grad_()
    (TensorTrain(train.shape, flat).to_matrix() * weight).sum().backward()
    # the update is multilinear: along any direction of one core the derivative is a difference of two updates
    direction = torch.zeros_like(train.flat)
    first = train.shape.core_parameters[0]
    direction[:first] = torch.randn(first, dtype=torch.float64)
    moved = TensorTrain(train.shape, train.flat + direction)
    expected = ((dense(moved) - dense(train)) * weight).sum()
    torch.testing.assert_close((flat.grad * direction).sum(), expected)


@given(trains())
def test_norm_is_the_frobenius_norm(train):
    torch.testing.assert_close(train.norm(), torch.linalg.matrix_norm(dense(train)))


@given(trains())
def test_tt_svd_of_a_train_finds_it_again_with_no_more_parameters(train):
    found = TensorTrain.from_matrix(dense(train), train.shape.dims, train.shape.ranks[1:-1])
    torch.testing.assert_close(dense(found), dense(train))
    assert all(a <= b for a, b in zip(found.shape.ranks, train.shape.ranks, strict=True))


def test_tt_svd_is_tensorlys_where_ranks_bind():
    matrix = torch.randn(24, 36, dtype=torch.float64)
    ours = TensorTrain.from_matrix(matrix, [4, 6, 6, 6], 3)
    theirs = tensorly_tt_svd(matrix.numpy().reshape(4, 6, 6, 6), rank=[1, 3, 3, 3, 1])
    expected = torch.as_tensor(tensorly.tt_to_tensor(theirs)).reshape(24, 36)
    torch.testing.assert_close(ours.to_matrix(), expected)


@given(trains(), st.floats(0.0, 0.9))
def test_rounding_stays_within_the_tolerance(train, tolerance):
    rounded = train.round(tolerance=tolerance)
    matrix = dense(train)
    assert (dense(rounded) - matrix).norm() <= (tolerance + 1e-9) * matrix.norm()
    assert all(a <= b for a, b in zip(rounded.shape.ranks, train.shape.ranks, strict=True))


@given(trains(), st.integers(1, 4))
def test_rounding_to_ranks_is_as_good_as_tt_svd_of_the_dense_matrix(train, r):
    matrix = dense(train)
    rounded, best = train.round(r), TensorTrain.from_matrix(matrix, train.shape.dims, r)
    assert max(rounded.shape.ranks) <= r
    error, expected = (dense(rounded) - matrix).norm(), (dense(best) - matrix).norm()
    torch.testing.assert_close(error, expected, atol=1e-7 * float(matrix.norm()) + 1e-12, rtol=1e-6)


def test_rounding_removes_ranks_that_a_train_does_not_need():
    train = random_train(48, 36, [6, 8, 6, 6], 2)
    doubled = [core.clone() for core in train.cores]
    for index, core in enumerate(train.cores):
        left = core if index == 0 else torch.cat([core, torch.zeros_like(core)], 0)
        doubled[index] = left if index == len(doubled) - 1 else torch.cat([left, torch.zeros_like(left)], 2)
    wide = TensorTrain.from_cores(48, 36, doubled)
    assert wide.shape.ranks == (1, 4, 4, 4, 1)
    rounded = wide.round(tolerance=1e-12)
    assert rounded.shape.ranks == (1, 2, 2, 2, 1)
    torch.testing.assert_close(dense(rounded), dense(train))


def test_the_papers_unaligned_shape_has_rank_24_and_exact_factors():
    train = random_train(768, 768, [64, 16, 9, 64], 4)
    assert train.shape.parameters == 912
    matrix = train.to_matrix()
    torch.testing.assert_close(matrix, dense(train))
    assert torch.linalg.matrix_rank(matrix) == 24
    assert train.shape.factor_rank == 48


def test_fused_in_proj_of_the_paper_splits_at_its_rows():
    train = random_train(2304, 768, [64, 36, 12, 64], 5)
    assert train.shape.factor_rank == torch.linalg.matrix_rank(train.to_matrix()) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_keep_the_dtype(dtype):
    train = random_train(32, 64, [4, 8, 8, 8], 3, dtype=dtype)
    assert all(factor.dtype == dtype for factor in train.factors())


def test_cores_are_views_of_the_flat_vector():
    train = random_train(6, 8, [2, 3, 8], 2)
    for core in train.cores:
        core.zero_()
    assert not train.flat.any()


def test_a_flat_vector_of_another_length_is_refused():
    shape = TTShape.build(6, 8, [6, 8], 2)
    with pytest.raises(ValueError, match=r"28 entries, not \[27\]"):
        TensorTrain(shape, torch.zeros(27))


def test_cores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not form a train"):
        TensorTrain.from_cores(2, 2, [torch.zeros(1, 2, 3), torch.zeros(2, 2, 1)])
    with pytest.raises(ValueError, match="do not form a train"):
        TensorTrain.from_cores(2, 2, [torch.zeros(1, 2, 2), torch.zeros(2, 2, 2)])


@settings(max_examples=20)
@given(trains())
def test_no_step_needs_the_dense_matrix_but_to_matrix(train):
    A, B = train.factors()
    x = torch.randn(5, train.shape.in_features, dtype=torch.float64)
    torch.testing.assert_close(x @ A.T @ B.T, x @ dense(train).T)


@given(trains(), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_from_factors_is_their_exact_product(train, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, train.shape.in_features, dtype=torch.float64, generator=generator)
    B = torch.randn(train.shape.out_features, rank, dtype=torch.float64, generator=generator)
    found = TensorTrain.from_factors(A, B, train.shape.dims)
    assert found.shape.dims == train.shape.dims
    torch.testing.assert_close(found.to_matrix(), B @ A, atol=1e-10, rtol=1e-8)
    if found.shape.boundary not in (None, 0, found.shape.order):
        assert found.shape.ranks[found.shape.boundary] <= rank


@given(trains(), st.integers(0, 2**32 - 1))
def test_the_sum_of_two_trains_is_exact(train, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = TTShape.build(train.shape.out_features, train.shape.in_features, train.shape.dims, 3)
    other = TensorTrain(shape, torch.randn(shape.parameters, dtype=torch.float64, generator=generator))
    both = train + other
    inner = zip(both.shape.ranks[1:-1], train.shape.ranks[1:-1], shape.ranks[1:-1], strict=True)
    assert all(found == one + two for found, one, two in inner)
    torch.testing.assert_close(both.to_matrix(), train.to_matrix() + other.to_matrix(), atol=1e-10, rtol=1e-8)


def test_trains_of_other_dims_have_no_sum():
    shapes = TTShape.build(4, 6, [4, 6]), TTShape.build(4, 6, [2, 2, 6])
    one, two = (TensorTrain(shape, torch.ones(shape.parameters)) for shape in shapes)
    with pytest.raises(ValueError, match=r"over \[4, 6\] for 4 x 6 and one over \[2, 2, 6\] for 4 x 6 have no sum"):
        _ = one + two


@given(trains(), st.data())
def test_orthogonalising_changes_no_entry(train, data):
    center = data.draw(st.integers(0, train.shape.order - 1))
    found = train.orthogonalised(center)
    torch.testing.assert_close(found.to_matrix(), train.to_matrix(), atol=1e-10, rtol=1e-8)
    for index, core in enumerate(found.cores):
        unfolding = core.flatten(0, 1) if index < center else core.flatten(1).T
        if index != center:
            torch.testing.assert_close(unfolding.T @ unfolding, torch.eye(unfolding.shape[1], dtype=core.dtype))


@given(trains(), st.floats(0.01, 0.9))
def test_rounded_ranks_are_ranks_that_unfoldings_can_have(train, tolerance):
    shape = train.round(tolerance=tolerance).shape
    assert TTShape.build(shape.out_features, shape.in_features, shape.dims, shape.ranks[1:-1]) == shape


@given(trains(), st.floats(1e-9, 1e-3))
def test_the_norm_of_a_small_difference_keeps_its_digits(train, step):
    assume(train.norm() > 0)
    other = TensorTrain(train.shape, train.flat.clone())
    other.flat[: train.shape.core_parameters[0]] *= 1 + step
    assert (other - train).norm().item() == pytest.approx(step * train.norm().item(), rel=1e-4)
