import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ttlora import BottleneckConfig
from ttlora.tensor_train import TensorTrain
from ttlora.tuners.bottleneck import BottleneckLinear
from ttlora.tuners.bottleneck.projection import TrainLinear

RANDOM = {"init_weights": False}


@pytest.fixture
def x():
    return torch.randn(5, 3, 16)


def make(dtype=torch.float32, **config):
    base = nn.Linear(16, 24).to(dtype).requires_grad_(False)
    return BottleneckLinear(base, "default", BottleneckConfig(**{"r": 6, **config}), "dense")


def matrix(projection):
    """The dense weight of a projection."""
    if isinstance(projection, nn.Linear):
        return projection.weight
    update = projection.update
    train = update.acting_train(projection.cores)
    assert isinstance(train, TensorTrain)
    return train.to_matrix()


@pytest.mark.parametrize("tt_rank", [None, 3])
@pytest.mark.parametrize(
    ("name", "function"), [("gelu", F.gelu), ("relu", F.relu), ("silu", F.silu), ("tanh", torch.tanh)]
)
def test_the_formula(x, tt_rank, name, function):
    layer = make(tt_rank=tt_rank, non_linearity=name, scale=0.7, **RANDOM)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    for bias in (down.bias, up.bias):
        nn.init.normal_(bias)
    h = layer.base_layer(x)
    expected = h + 0.7 * (function(h @ matrix(down).T + down.bias) @ matrix(up).T + up.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("tt_rank", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_start_changes_no_bit_and_a_random_one_does(x, tt_rank, dtype):
    x = x.to(dtype)
    layer = make(dtype, tt_rank=tt_rank)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer = make(dtype, tt_rank=tt_rank, **RANDOM)
    y, h = layer(x), layer.base_layer(x)
    assert y.dtype == dtype
    assert (y - h).float().std() > 0.02


@pytest.mark.parametrize("tt_rank", [None, 3])
def test_down_starts_as_wide_whatever_it_is_made_of(tt_rank):
    torch.manual_seed(0)
    layer = BottleneckLinear(nn.Linear(2, 256), "default", BottleneckConfig(r=64, tt_rank=tt_rank), "dense")
    down = layer.bottleneck_down["default"](torch.randn(200, 256))
    assert 0.15 < down.std() < 0.8


@pytest.mark.parametrize("tt_rank", [None, 3])
def test_every_projection_gets_its_gradient(x, tt_rank):
    layer = make(tt_rank=tt_rank, **RANDOM)
    layer(x).square().sum().backward()
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"bottleneck_down", "bottleneck_up"}
    assert len(trained) == 4
    assert all(p.grad.count_nonzero() > 0 for p in trained.values())
    # from the zero start, up moves first
    layer = make(tt_rank=tt_rank)
    layer(x).square().sum().backward()
    assert layer.bottleneck_up["default"].bias.grad.count_nonzero() > 0


def test_a_train_is_one_vector_and_a_bias():
    layer = make(r=8, tt_rank=3, shape=[4, 6, 8])
    up = layer.bottleneck_up["default"]
    assert isinstance(up, TrainLinear)
    assert {name: tuple(p.shape) for name, p in up.named_parameters()} == {
        "cores": (1 * 4 * 3 + 3 * 6 * 3 + 3 * 8 * 1,),
        "bias": (24,),
    }


def test_several_active_adapters_add_up(x):
    layer = make(**RANDOM)
    layer.update_layer("other", BottleneckConfig(r=4, tt_rank=2, scale=3.0, **RANDOM), "dense")
    h = layer.base_layer(x)
    changes = []
    for names in (["default"], ["other"], ["default", "other"]):
        layer.set_adapter(names)
        changes.append(layer(x) - h)
    torch.testing.assert_close(changes[0] + changes[1], changes[2])
    assert (changes[0] - changes[1]).norm() > 0.1


def test_autocast_and_float32_adapters_in_a_half_precision_model(x):
    layer = make(tt_rank=3, **RANDOM)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x)
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    layer.base_layer.to(torch.bfloat16)
    got = layer(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)


def test_a_quantised_base(x):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = bitsandbytes.nn.Linear4bit(16, 24, compute_dtype=torch.float32).to("cpu")
    layer = BottleneckLinear(base, "default", BottleneckConfig(r=6, **RANDOM), "dense")
    assert (layer(x) - base(x)).std() > 0.02
    assert all(p.is_floating_point() for p in layer.bottleneck_up.parameters())


def test_copies_are_independent(x):
    layer = make(tt_rank=3, **RANDOM)
    expected = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), expected)
        nn.init.zeros_(copied.bottleneck_up["default"].cores)
        assert not torch.equal(copied(x), expected)
    assert torch.equal(layer(x), expected)
