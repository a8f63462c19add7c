import math

import pytest
import torch
from hypothesis import given

from tests.tensor_train.strategies import shapes
from ttlora.tensor_train import TensorTrain, TTShape, Update
from ttlora.tensor_train.start import gaussian_update, random_update, zero_update
from ttlora.tensor_train.update import LORA_ROW_NORM

LLAMA = TTShape.build(4096, 4096, [16] * 6, 5)


@given(shapes())
def test_zero_update_is_exactly_zero_and_only_one_core_is(shape):
    update = Update(shape, core_size=0.05)
    train = TensorTrain(shape, zero_update(update))
    assert not train.to_matrix().any()
    assert [index for index, core in enumerate(train.cores) if not core.any()] == [update.zero_core]


@given(shapes())
def test_entries_start_at_the_size_asked_for(shape):
    update = Update(shape, core_size=0.05)
    for index, core in enumerate(TensorTrain(shape, zero_update(update)).cores):
        if index != update.zero_core:
            assert core.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-4)


@given(shapes())
def test_acting_cores_are_orthonormal(shape):
    update = Update(shape, core_size=0.05)
    train, z = TensorTrain(shape, zero_update(update)), update.zero_core
    for index, (core, gain) in enumerate(zip(train.cores, update.gains, strict=True)):
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
    update = Update(shape, core_size=0.05)
    flat = zero_update(update)
    core = TensorTrain(shape, flat).cores[update.zero_core]
    core.copy_(learning_rate * torch.randn_like(core).sign())
    moved = update.acting_train(flat).norm()
    # LoRA: B's m x r entries move by the learning rate, A's rows have the norm 1/√3
    lora = learning_rate * math.sqrt(shape.out_features * r) * LORA_ROW_NORM
    assert moved.item() == pytest.approx(lora, rel=1e-3)


def test_random_update_changes_the_layer():
    shape = TTShape.build(24, 36)
    assert TensorTrain(shape, random_update(Update(shape, core_size=0.05))).to_matrix().abs().min() > 0


def test_gaussian_update_is_the_tt_svd_of_a_gaussian():
    shape = TTShape.build(24, 36, [4, 6, 6, 6], 100)
    assert max(shape.ranks) == 24
    torch.manual_seed(0)
    full = TensorTrain(shape, gaussian_update(shape, 0.02)).to_matrix()
    torch.manual_seed(0)
    torch.testing.assert_close(full, torch.randn(24, 36) * 0.02)


def test_starts_differ_from_call_to_call_and_follow_the_callers_seed():
    torch.manual_seed(3)
    first, second = zero_update(Update(LLAMA, core_size=0.05)), zero_update(Update(LLAMA, core_size=0.05))
    torch.manual_seed(3)
    assert not torch.equal(first, second)
    assert torch.equal(zero_update(Update(LLAMA, core_size=0.05)), first)
