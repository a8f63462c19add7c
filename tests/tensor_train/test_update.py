import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tensor_train.strategies import shapes, trains
from ttlora.tensor_train import TensorTrain, TTShape, Update, even_core_size
from ttlora.tensor_train.start import random_update, zero_update
from ttlora.tensor_train.update import LORA_ROW_NORM

LLAMA = TTShape.build(4096, 4096, [16] * 6, 5)
EXAMPLE = TTShape.build(24, 36, [4, 6, 6, 6], 3)
SIZES = st.sampled_from([None, 0.05, 1.0])


def spread(update):
    """Each entry's gain."""
    return torch.cat(
        [
            torch.full((n,), g, dtype=torch.float64)
            for n, g in zip(update.shape.core_parameters, update.gains, strict=True)
        ]
    )


@given(trains(), SIZES)
def test_factors_are_the_scaled_train(train, core_size):
    update = Update(train.shape, 3.0, core_size)
    row_norm = 1 if core_size is None else LORA_ROW_NORM
    dense = 3.0 * row_norm * TensorTrain(train.shape, train.flat * spread(update)).to_matrix()
    A, B = update.factors(train.flat)
    torch.testing.assert_close(B @ A, dense)
    torch.testing.assert_close(update.acting_train(train.flat).to_matrix(), dense)


@given(trains(), SIZES)
def test_gradients_are_those_of_the_acting_cores_over_their_gains(train, core_size):
    update, weight = Update(train.shape, 3.0, core_size), torch.randn(24, 36)
    weight = torch.randn(train.shape.out_features, train.shape.in_features, dtype=torch.float64)
    flat = train.flat.clone().requires_grad_()
    A, B = update.factors(flat)
    ((B @ A) * weight).sum().backward()

    acting = (train.flat * spread(update)).requires_grad_()
    row_norm = 1 if core_size is None else LORA_ROW_NORM
    (3.0 * row_norm * TensorTrain(train.shape, acting).to_matrix() * weight).sum().backward()
    torch.testing.assert_close(flat.grad, acting.grad / spread(update), rtol=1e-6, atol=1e-9 * acting.grad.norm())


def test_second_derivatives():
    update = Update(EXAMPLE, 2.0, None)
    flat = torch.randn(EXAMPLE.parameters, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda entries: update.factors(entries), (flat,))


def test_a_step_of_sgd_moves_the_acting_cores_as_if_there_were_no_gains():
    update = Update(LLAMA, core_size=0.05)
    assert math.prod(update.gains) > 1000
    gain = spread(update).float()
    x, y = torch.randn(8, 4096), torch.randn(8, 4096)

    def gradient(flat, A, B):
        return torch.autograd.grad((x @ A.T @ B.T - y).square().mean(), flat)[0]

    flat = random_update(update).requires_grad_()
    acting = (flat.detach() * gain).requires_grad_()
    without_gains = gradient(acting, *Update(LLAMA, LORA_ROW_NORM).factors(acting))
    torch.testing.assert_close(gain * gradient(flat, *update.factors(flat)), without_gains, rtol=1e-3, atol=1e-7)


def test_without_gains_the_update_is_the_plain_train():
    update = Update(EXAMPLE)
    assert update.gains == (1.0,) * 4
    flat = torch.randn(EXAMPLE.parameters)
    torch.testing.assert_close(update.acting_train(flat).flat, flat)


@given(shapes(), st.integers(1, 4))
def test_stacked_adapters_have_their_own_factors(shape, count):
    update = Update(shape, 2.0, 0.05)
    stacked = torch.randn(count, shape.parameters, dtype=torch.float64)
    A, B = update.factors(stacked)
    for index, flat in enumerate(stacked):
        torch.testing.assert_close((A[index], B[index]), update.factors(flat))


@given(trains(), SIZES)
def test_entries_of_a_train_have_its_matrix_as_their_update(train, core_size):
    update = Update(train.shape, 3.0, core_size)
    found = update.acting_train(update.entries_of(train)).to_matrix()
    dense = train.to_matrix()
    torch.testing.assert_close(found, dense, rtol=1e-8, atol=1e-9 * float(dense.norm()))


def test_entries_of_a_train_have_the_size_of_a_fresh_start():
    update = Update(TTShape.build(64, 64, [8, 8, 8, 8], 5), 4.0, 0.02)
    train = TensorTrain(update.shape, torch.randn(update.shape.parameters))
    fresh = TensorTrain(update.shape, zero_update(update)).cores
    for index, core in enumerate(TensorTrain(update.shape, update.entries_of(train)).cores):
        if index != update.zero_core:
            assert core.square().mean().sqrt() == pytest.approx(fresh[index].square().mean().sqrt().item(), rel=1e-4)


def test_entries_need_a_scale_and_the_shape():
    train = TensorTrain(EXAMPLE, torch.randn(EXAMPLE.parameters))
    with pytest.raises(ValueError, match="scale of 0"):
        Update(EXAMPLE, 0.0).entries_of(train)
    with pytest.raises(ValueError, match="is none of"):
        Update(LLAMA).entries_of(train)


@given(shapes())
def test_an_even_core_size_turns_every_train_alike(shape):
    update = Update(shape, core_size=even_core_size(shape))
    turn = 0.0
    for index, (gain, (left, k, right)) in enumerate(zip(update.gains, shape.core_shapes, strict=True)):
        if index != update.zero_core:
            # the unfolding that starts orthonormal, and the step of all entries that changes it most
            sizes = (left * k, right) if index < update.zero_core else (left, k * right)
            turn += torch.linalg.matrix_norm(torch.full(sizes, 1e-3 * gain, dtype=torch.float64), 2).item()
    assert turn == pytest.approx(1e-3 * 3 * math.sqrt(5) / 0.02)


@pytest.mark.parametrize(
    ("dims", "r", "size"),
    [
        ([16, 24, 24, 16], 5, 0.02),
        ([384, 384], 5, 0.02 / 3),
        ([16, 24, 24, 16], 20, 0.0371847),
        ([4, 96, 384], 1, 0.0059628),
    ],
)
def test_even_core_sizes_stay_what_saved_adapters_were_trained_with(dims, r, size):
    assert even_core_size(TTShape.build(384, 384, dims, r)) == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize("dims", [[4, 4, 4, 4], [8, 4, 8]])
def test_the_gradient_is_the_derivative_over_the_squared_gains(dims):
    shape = TTShape.build(16, 16, dims, 3)
    plain, balanced = Update(shape), Update(shape, core_size=0.02)
    flat = torch.randn(shape.parameters, dtype=torch.float64)
    direction = torch.randn(16, 16, dtype=torch.float64)

    def loss(flat):
        A, B = balanced.factors(flat)
        return ((B @ A) * direction).sum()

    leaf = flat.clone().requires_grad_()
    loss(leaf).backward()
    steps = 1e-6 * torch.eye(shape.parameters, dtype=torch.float64)
    derivative = torch.stack([(loss(flat + step) - loss(flat - step)) / 2e-6 for step in steps])
    gains = torch.tensor(balanced.gains, dtype=torch.float64).repeat_interleave(torch.tensor(shape.core_parameters))
    torch.testing.assert_close(leaf.grad, derivative / gains**2, rtol=1e-4, atol=1e-6)
    assert plain.gains == (1.0,) * shape.order
