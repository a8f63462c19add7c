import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from ttlora.tensor_train.linear import low_rank_linear


def operands(batch, out_features, in_features, r, bias=True):
    x = torch.randn(*batch, in_features, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_features, in_features, dtype=torch.float64)
    b = torch.randn(out_features, dtype=torch.float64) if bias else None
    A = torch.randn(r, in_features, dtype=torch.float64, requires_grad=True)
    B = torch.randn(out_features, r, dtype=torch.float64, requires_grad=True)
    return x, weight, b, A, B


# from 28 rows on the updated weight is formed
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3), (2, 1, 3), (28,), (3, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_layer_with_the_updated_weight(batch, bias):
    x, weight, b, A, B = operands(batch, 7, 4, 2, bias)
    y, expected = low_rank_linear(x, weight, b, A, B), F.linear(x, weight + B @ A, b)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        torch.testing.assert_close(low_rank_linear(x, weight, b, A, B), expected.detach())
    gradient = torch.randn_like(expected)
    ours = torch.autograd.grad(y, (x, A, B), gradient)
    theirs = torch.autograd.grad(expected, (x, A, B), gradient)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("rows", [3, 20])
def test_gradients_are_numerically_right(rows):
    x, weight, b, A, B = operands((rows,), 4, 5, 2)
    assert gradcheck(lambda x, A, B: low_rank_linear(x, weight, b, A, B), (x, A, B))
    assert gradgradcheck(lambda x, A, B: low_rank_linear(x, weight, b, A, B), (x, A, B))


def test_the_output_may_be_changed_in_place():
    x, weight, b, A, B = operands((2, 3), 4, 5, 2)
    y = low_rank_linear(x, weight, b, A, B).transpose(0, 1)
    y *= 2
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 2 * (weight + B @ A).sum(0).expand(2, 3, 5))


@pytest.mark.parametrize("wanted", ["x", "A", "B"])
def test_only_the_gradients_that_are_needed(wanted):
    x, weight, b, A, B = operands((3,), 4, 5, 2)
    for name, tensor in {"x": x, "A": A, "B": B}.items():
        tensor.requires_grad_(name == wanted)
    low_rank_linear(x, weight, b, A, B).sum().backward()
    assert [t.grad is not None for t in (x, A, B)] == [name == wanted for name in "xAB"]


def test_inputs_that_do_not_lie_in_one_piece():
    x, weight, b, A, B = operands((6, 3), 4, 5, 2)
    strided = x.detach().transpose(0, 1)[:, ::2].requires_grad_()
    y = low_rank_linear(strided, weight, b, A, B)
    torch.testing.assert_close(y, F.linear(strided, weight + B @ A, b))
    y.transpose(0, 1).square().sum().backward()
    assert strided.grad.shape == strided.shape


def test_half_precision_keeps_small_updates_however_many_rows():
    weight, signs = torch.ones(4, 4, dtype=torch.bfloat16), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.bfloat16)
    A, B = 1e-3 * signs[None], torch.ones(4, 1, dtype=torch.bfloat16)
    assert torch.equal(weight + B @ A, weight)
    x = signs.repeat(64, 1)
    assert (F.linear(x, weight) == 0).all()
    for learns in (True, False):
        with torch.set_grad_enabled(learns):
            assert (low_rank_linear(x, weight, None, A, B) > 3e-3).all()
