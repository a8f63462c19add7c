"""DoTA's start and the update that is measured from it."""

import itertools

import pytest
import torch
from hypothesis import given

from tests.tensor_train.strategies import shapes
from ttlora.tensor_train import TensorTrain, TTShape, Update
from ttlora.tensor_train.difference import Difference
from ttlora.tensor_train.start import leading_vectors, pretrained_update

SQUARE = TTShape.build(24, 36, [4, 6, 6, 6], 3)


def decaying(rows, columns, decay=0.9):
    """A matrix with the singular values 1, decay, decay², ..., as pretrained weights have them."""
    U, V = (torch.linalg.qr(torch.randn(size, min(rows, columns), dtype=torch.float64)).Q for size in (rows, columns))
    return (U * decay ** torch.arange(U.shape[1])) @ V.mT


def both(now, start):
    return torch.cat([now, start])


@given(shapes())
def test_it_comes_as_near_to_the_weight_as_a_dense_tt_svd(shape):
    weight = torch.randn(shape.out_features, shape.in_features, dtype=torch.float64)
    update = Update(shape, scale=3.0)
    train = update.acting_train(pretrained_update(update, weight))
    best = TensorTrain.from_matrix(weight, shape.dims, shape.ranks[1:-1])
    error, least = ((weight - found.to_matrix()).norm() for found in (train, best))
    assert error <= least * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize(("decay", "lost"), [(0.5, 1e-9), (0.9, 1e-3), (0.99, 0.02)])
def test_many_rows_are_cut_by_a_randomised_range_finder(decay, lost):
    matrix = decaying(600, 700, decay)
    vectors = leading_vectors(matrix, 6)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(6, dtype=torch.float64))
    kept, most = (vectors.mT @ matrix).norm(), torch.linalg.svdvals(matrix)[:6].norm()
    assert (1 - lost) * most <= kept <= (1 + 1e-9) * most


def test_it_is_the_same_each_time_and_leaves_the_global_seed_alone():
    matrix = torch.randn(300, 280)
    torch.manual_seed(1)
    first, drawn = leading_vectors(matrix, 4), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, leading_vectors(matrix, 4))


@pytest.mark.parametrize("core_size", [None, 0.05])
def test_all_acting_cores_but_the_zero_core_are_orthonormal(core_size):
    update = Update(SQUARE, 4.0, core_size)
    cores = TensorTrain(SQUARE, pretrained_update(update, torch.randn(24, 36))).cores
    for index, (core, gain) in enumerate(zip(cores, update.gains, strict=True)):
        unfolding = gain * (core.flatten(0, 1) if index < update.zero_core else core.flatten(1).mT)
        if index != update.zero_core:
            torch.testing.assert_close(unfolding.mT @ unfolding, torch.eye(unfolding.shape[1]))


@pytest.mark.parametrize("weight", [torch.zeros(24, 36), torch.ones(24, 36)])
def test_weights_of_low_rank_have_a_start(weight):
    update = Update(SQUARE)
    torch.testing.assert_close(update.acting_train(pretrained_update(update, weight)).to_matrix(), weight)


def test_a_weight_that_is_not_finite_has_none():
    with pytest.raises(ValueError, match="not finite"):
        pretrained_update(Update(SQUARE), torch.full((24, 36), torch.nan))


@given(shapes())
def test_a_difference_is_zero_to_the_last_bit_at_its_start(shape):
    start = torch.randn(shape.parameters)
    for core_size, dtype in itertools.product((None, 0.05), (None, torch.bfloat16)):
        A, B = Difference(shape, 2.0, core_size).factors(both(start, start), dtype)
        assert not (B @ A).any()
        assert not (B @ (A @ torch.randn(shape.in_features, 3, dtype=A.dtype))).any()


@given(shapes())
def test_a_difference_is_the_dense_difference_of_two_trains(shape):
    now, start = torch.randn(2, shape.parameters, dtype=torch.float64)
    update = Difference(shape, 2.0)
    wanted = 2 * (TensorTrain(shape, now).to_matrix() - TensorTrain(shape, start).to_matrix())
    A, B = update.factors(both(now, start))
    assert len(A) == 2 * Update(shape).factors(now)[0].shape[0]
    torch.testing.assert_close(B @ A, wanted)
    torch.testing.assert_close(update.acting_train(both(now, start)).to_matrix(), wanted)


@pytest.mark.parametrize("core_size", [None, 0.05])
@pytest.mark.parametrize("dims", [[4, 6, 6, 6], [8, 9, 12]])
def test_its_gradient_is_that_of_the_trained_train(dims, core_size):
    shape = TTShape.build(24, 36, dims, 3)
    now, start = torch.randn(2, shape.parameters, dtype=torch.float64)
    given = torch.randn(24, 36, dtype=torch.float64)
    gradients = []
    for update, held in ((Update(shape, 2.0, core_size), []), (Difference(shape, 2.0, core_size), [start])):
        entries = now.clone().requires_grad_()
        A, B = update.factors(torch.cat([entries, *held]))
        gradients += torch.autograd.grad((given * (B @ A)).sum(), entries)
    torch.testing.assert_close(*gradients)


def test_half_precision_rounds_what_was_learned_and_not_what_was_there():
    start = 10 * torch.randn(SQUARE.parameters)
    now = start + 1e-3 * torch.randn(SQUARE.parameters)
    update = Difference(SQUARE)
    exact, rounded = (
        factors[1].double() @ factors[0].double()
        for factors in (update.factors(both(now, start).double()), update.factors(both(now, start), torch.bfloat16))
    )
    assert (rounded - exact).norm() < 0.01 * exact.norm()


def test_stacked_differences_are_those_one_by_one():
    entries = torch.randn(3, 2 * SQUARE.parameters)
    A, B = Difference(SQUARE).factors(entries)
    for index, single in enumerate(entries):
        torch.testing.assert_close((A[index], B[index]), Difference(SQUARE).factors(single))
    start = entries[:, : SQUARE.parameters]
    A, B = Difference(SQUARE).factors(torch.cat([start, start], 1))
    assert not (B @ A).any()
