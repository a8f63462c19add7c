import math

import pytest
import torch
from hypothesis import given
from strategies import shapes

from ttlora.tensor_train import TensorTrain, TTShape
from ttlora.tensor_train.start import (
    LORA_ROW_NORM,
    balance,
    gains,
    gaussian_update,
    random_update,
    update_scale,
    zero_core,
    zero_update,
)

LLAMA = TTShape.build(4096, 4096, [16] * 6, 5)


@given(shapes())
def test_zero_update_is_exactly_zero_and_only_one_core_is(shape):
    train = TensorTrain(shape, zero_update(shape, 0.05))
    assert not train.to_matrix().any()
    assert [index for index, core in enumerate(train.cores) if not core.any()] == [zero_core(shape)]


@given(shapes())
def test_entries_start_at_the_size_asked_for(shape):
    for index, core in enumerate(TensorTrain(shape, zero_update(shape, 0.05)).cores):
        if index != zero_core(shape):
            assert core.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-4)


@given(shapes())
def test_acting_cores_are_orthonormal(shape):
    train, z = TensorTrain(shape, zero_update(shape, 0.05)), zero_core(shape)
    for index, (core, gain) in enumerate(zip(train.cores, gains(shape, 0.05), strict=True)):
        unfolding = core.flatten(0, 1) if index < z else core.flatten(1).T
        if index != z:
            gram = (gain * unfolding).T @ (gain * unfolding)
            torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "shape", [LLAMA, TTShape.build(384, 384), TTShape.build(192, 576), TTShape.build(768, 768, [12, 8, 8, 8, 8, 12], 8)]
)
def test_adams_first_step_moves_the_update_as_far_as_loras(shape):
    # Adam moves every entry of the one core that has a gradient, the zero core, by the learning rate
    learning_rate, r = 1e-3, shape.factor_rank
    flat = zero_update(shape, 0.05)
    core = TensorTrain(shape, flat).cores[zero_core(shape)]
    core.copy_(learning_rate * torch.randn_like(core).sign())
    moved = TensorTrain(shape, flat).norm() * update_scale(shape, 0.05)
    # LoRA: B's m x r entries move by the learning rate, A's rows have the norm 1/√3
    lora = learning_rate * math.sqrt(shape.out_features * r) * LORA_ROW_NORM
    assert moved.item() == pytest.approx(lora, rel=1e-3)


def test_gradients_are_those_of_the_acting_cores_over_their_gains():
    shape = TTShape.build(24, 36, [4, 6, 6, 6], 3)
    weight = torch.randn(24, 36)
    flat = random_update(shape, 0.05).requires_grad_()
    (update_scale(shape, 0.05) * TensorTrain(shape, balance(flat, shape, 0.05)).to_matrix() * weight).sum().backward()

    gain = torch.cat([torch.full((n,), g) for n, g in zip(shape.core_sizes, gains(shape, 0.05), strict=True)])
    acting = (flat.detach() * gain).requires_grad_()
    (LORA_ROW_NORM * TensorTrain(shape, acting).to_matrix() * weight).sum().backward()
    torch.testing.assert_close(flat.grad, acting.grad / gain)


def test_a_step_of_sgd_moves_the_acting_cores_as_if_there_were_no_gains():
    shape, epsilon = LLAMA, 0.05
    assert math.prod(gains(shape, epsilon)) > 1000
    gain = torch.cat([torch.full((n,), g) for n, g in zip(shape.core_sizes, gains(shape, epsilon), strict=True)])
    x, y = torch.randn(8, 4096), torch.randn(8, 4096)

    def gradient(flat, cores, scale):
        A, B = TensorTrain(shape, cores).factors()
        return torch.autograd.grad((scale * x @ A.T @ B.T - y).square().mean(), flat)[0]

    flat = random_update(shape, epsilon).requires_grad_()
    through_gains = gradient(flat, balance(flat, shape, epsilon), update_scale(shape, epsilon))
    acting = (flat.detach() * gain).requires_grad_()
    without_gains = gradient(acting, acting, LORA_ROW_NORM)
    torch.testing.assert_close(gain * through_gains, without_gains, rtol=1e-3, atol=1e-7)


def test_without_gains_the_update_is_the_plain_train():
    shape = TTShape.build(24, 36, [4, 6, 6, 6], 3)
    assert gains(shape, None) == (1.0,) * 4
    assert update_scale(shape, None) == 1.0
    flat = torch.ones(shape.parameters, requires_grad=True)
    assert balance(flat, shape, None) is flat


def test_random_update_changes_the_layer():
    shape = TTShape.build(24, 36)
    assert TensorTrain(shape, random_update(shape, 0.05)).to_matrix().abs().min() > 0


def test_gaussian_update_is_the_tt_svd_of_a_gaussian():
    shape = TTShape.build(24, 36, [4, 6, 6, 6], 100)
    assert max(shape.ranks) == 24
    torch.manual_seed(0)
    full = TensorTrain(shape, gaussian_update(shape, 0.02)).to_matrix()
    torch.manual_seed(0)
    torch.testing.assert_close(full, torch.randn(24, 36) * 0.02)


def test_starts_differ_from_call_to_call_and_follow_the_callers_seed():
    torch.manual_seed(3)
    first, second = zero_update(LLAMA, 0.05), zero_update(LLAMA, 0.05)
    torch.manual_seed(3)
    assert not torch.equal(first, second)
    assert torch.equal(zero_update(LLAMA, 0.05), first)
