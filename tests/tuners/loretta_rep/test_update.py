import math

import pytest
import torch

from ttlora import LorettaRepConfig
from ttlora.tensor_train import TensorTrain
from ttlora.tuners.loretta_rep.config import resolve_factors


def resolved(out_features=24, in_features=12, **config):
    return resolve_factors(LorettaRepConfig(**{"r": 4, "tt_rank": 3, **config}), "q", out_features, in_features)


@pytest.mark.parametrize("shape", ["auto", {"24": [2, 6, 2, 4], 12: [3, 4, 4]}, {"24": [4, 4, 3, 2]}])
def test_the_factors_are_the_matrices_of_two_trains(shape):
    update = resolved(shape=shape, core_size=None, alpha=6)
    flat = torch.randn(update.parameters, dtype=torch.float64)
    A, B = update.factors(flat)
    of_rows, of_columns = flat.split([update.rows.shape.parameters, update.columns.shape.parameters])
    torch.testing.assert_close(B, 6 / 4 * TensorTrain(update.rows.shape, of_rows).to_matrix())
    torch.testing.assert_close(A, TensorTrain(update.columns.shape, of_columns).to_matrix().T)
    assert (A.shape, B.shape) == ((4, 12), (24, 4))


def test_their_gradients():
    update = resolved(core_size=None)
    flat = torch.randn(update.parameters, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(update.factors, flat, fast_mode=True)
    assert torch.autograd.gradgradcheck(update.factors, flat, fast_mode=True)


def test_stacked_adapters():
    update = resolved()
    flat = torch.stack([update.start(zero=False) for _ in range(2)])
    A, B = update.factors(flat)
    for index in range(2):
        torch.testing.assert_close((A[index], B[index]), update.factors(flat[index]))


@pytest.mark.parametrize("shape", ["auto", {"24": [4, 4, 3, 2], "12": [3, 4, 4]}])
def test_the_start(shape):
    update = resolved(shape=shape)
    A, B = update.factors(update.start(zero=True))
    assert not B.any()
    # LoRA's rows have the length 1/√3
    assert A.square().sum(1).mean().sqrt().item() == pytest.approx(1 / math.sqrt(3), rel=1e-5)
    A, B = update.factors(update.start(zero=False))
    assert B.norm() > 0.1
    assert A.norm() > 0.1


def test_ranks_are_clipped_to_what_a_factor_can_have():
    update = resolved(r=2, tt_rank=64, shape={"24": [24, 2], "12": [12, 2]})
    assert update.parameters == 24 * 2 + 2 * 2 + 12 * 2 + 2 * 2
