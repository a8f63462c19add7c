"""DoTA's start is made where the weight lies, and changes nothing there."""

import pytest
import torch
from torch import nn

from tests.tuners.tt_lora.test_layer import adapted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [[64, 8, 8, 64], [512, 512]])
def test_a_start_from_the_weight_leaves_every_bit(device, dtype, shape):
    base = nn.Linear(512, 512).to(device, dtype)
    x = torch.randn(4, 128, 512, device=device, dtype=dtype)
    expected = base(x)
    layer = adapted(base, init_weights="dota", shape=shape, r=6)
    assert layer.ttlora_start["default"].device.type == device
    assert torch.equal(layer(x), expected)
    start = -layer.get_delta_weight("default")
    assert not start.any()
    with torch.no_grad():
        layer.ttlora_cores["default"].zero_()
    kept = -layer.get_delta_weight("default").double()
    weight = base.weight.double()
    # the projection of the weight: what is left is orthogonal to it
    torch.testing.assert_close((weight - kept).norm() ** 2, weight.norm() ** 2 - kept.norm() ** 2, rtol=1e-2, atol=0)
    assert kept.norm() > 0.05 * weight.norm()
