"""A layer on the GPU against the dense update, in every precision."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F

from tests.tuners.tt_lora.test_layer import adapted, dense
from tests.tuners.tt_lora.test_model import relative
from ttlora import TTLoraConfig
from ttlora.tuners.tt_lora import TTLoraLayer

# the weight's dtype, that of autocast, and the largest error
PRECISIONS = {
    "float32": (torch.float32, None, 1e-5),
    "bfloat16": (torch.bfloat16, None, 2e-2),
    "float16 under autocast": (torch.float32, torch.float16, 1e-2),
    "bfloat16 under autocast": (torch.bfloat16, torch.bfloat16, 2e-2),
}
SHAPES = {"aligned": [64, 8, 8, 64], "unaligned": [16, 64, 256]}


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return PRECISIONS[request.param]


def build(device, dtype, bias=True, **config):
    return adapted(nn.Linear(512, 512, bias=bias).to(device, dtype), **{"shape": SHAPES["aligned"], **config})


def both_ways(forward, layer, x, dy, autocast):
    """The output, and the gradients of the input and of the cores."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        y = forward(x)
    layer.zero_grad()
    y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, layer.ttlora_cores["default"].grad.clone()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_dense_update(device, precision, shape, bias):
    dtype, autocast, error = precision
    layer = build(device, dtype, bias, shape=SHAPES[shape], core_size=None)
    x, dy = torch.randn(2, 4, 128, 512, device=device).to(dtype)
    got = both_ways(layer, layer, x, dy, autocast)

    cores = layer.ttlora_cores["default"]
    exact = x.double().requires_grad_()
    base = layer.get_base_layer()
    weight = base.weight.double() + dense(layer, cores=cores.double())
    y = F.linear(exact, weight, base.bias.double() if bias else None)
    expected = (y, *torch.autograd.grad(y, (exact, cores), dy.double()))
    assert relative(dense(layer), base.weight) > 0.05
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.device.type == device
        assert relative(ours.double(), theirs.double()) < error


def test_the_fused_pass_is_what_autograd_makes_of_two(device, precision):
    dtype, autocast, error = precision
    layer = build(device, dtype)
    x, dy = torch.randn(2, 4, 128, 512, device=device).to(dtype)
    fused = both_ways(layer, layer, x, dy, autocast)
    two = both_ways(lambda x: TTLoraLayer._adapted_forward(layer, x, ["default"]), layer, x, dy, autocast)
    for ours, theirs in zip(fused, two, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative(ours.float(), theirs.float()) < error


def test_merged_and_unmerged_are_equal(device, precision):
    dtype, autocast, error = precision
    layer = build(device, dtype)
    x, weight = torch.randn(4, 128, 512, device=device, dtype=dtype), layer.get_base_layer().weight.clone()
    with torch.no_grad(), torch.autocast(device, autocast, enabled=autocast is not None):
        before = layer(x)
        layer.merge(safe_merge=True)
        assert layer.merged
        assert torch.equal(layer(x), layer.base_layer(x))
        assert relative(layer(x).float(), before.float()) < error
    layer.unmerge()
    assert relative(layer.get_base_layer().weight.float(), weight.float()) < error


def test_an_adapter_goes_where_the_model_goes(device):
    """Also when the model is moved after it has been adapted."""
    model = get_peft_model(nn.Sequential(nn.Linear(16, 24)), TTLoraConfig(target_modules=["0"], init_weights=False))
    x = torch.randn(5, 16)
    expected = model(x)
    model.to(device)
    assert {p.device.type for p in model.parameters()} == {device}
    torch.testing.assert_close(model(x.to(device)).cpu(), expected, rtol=1e-4, atol=1e-5)
