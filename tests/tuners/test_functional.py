"""`torch.func` with adapted layers: the same gradients as `backward`, row by row and model by model."""

import pytest
import torch
from peft import get_peft_model
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

from ttlora import TTLoraConfig
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig

CONFIGS = {
    "aligned": TTLoraConfig(target_modules=["0", "2"], r=2, init_weights=False),
    "plain": TTLoraConfig(target_modules=["0", "2"], r=2, core_size=None, init_weights=False),
    "unaligned": TTLoraConfig(target_modules=["0"], shape=[4, 6, 16], r=2, init_weights=False),
    "loretta-rep": LorettaRepConfig(target_modules=["0", "2"], r=2, tt_rank=2, init_weights=False),
    "loretta-adp": BottleneckConfig(target_modules=["0", "2"], r=2, tt_rank=2, init_weights=False),
    "meta-tt": MetaTTConfig(target_modules=["0", "2"], r=2, init_weights=False),
    "lorta": LortaConfig(target_modules=["0", "2"], r=2, head_dim=4, init_weights=False),
}


@pytest.fixture(params=CONFIGS)
def model(mlp, request):
    return get_peft_model(mlp(dtype=torch.float64), CONFIGS[request.param]).to(torch.float64).eval()


@pytest.fixture
def trained(model):
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture
def x():
    return torch.randn(3, 16, dtype=torch.float64)


def loss_of(model):
    return lambda trained, x: functional_call(model, trained, (x,)).square().sum()


def test_gradients_are_those_of_backward(model, trained, x):
    model(x).square().sum().backward()
    expected = {name: model.get_parameter(name).grad for name in trained}
    torch.testing.assert_close(grad(loss_of(model))(trained, x), expected)
    by_row = vmap(grad(loss_of(model)), (None, 0))(trained, x)
    torch.testing.assert_close({name: rows.sum(0) for name, rows in by_row.items()}, expected)
    leaf = x.clone().requires_grad_()
    model(leaf).square().sum().backward()
    torch.testing.assert_close(grad(lambda x: model(x).square().sum())(x), leaf.grad)


def test_rows_and_models_at_once(model, trained, x):
    with torch.no_grad():
        torch.testing.assert_close(vmap(model)(x), model(x))
        doubled = {name: 2 * weight for name, weight in trained.items()}
        stacked = {name: torch.stack([trained[name], doubled[name]]) for name in trained}
        expected = torch.stack([functional_call(model, each, (x,)) for each in (trained, doubled)])
        torch.testing.assert_close(vmap(lambda each: functional_call(model, each, (x,)))(stacked), expected)


def test_forwards_and_backwards_agree(model, trained, x):
    def outputs(trained):
        return functional_call(model, trained, (x,))

    torch.testing.assert_close(jacfwd(outputs)(trained), jacrev(outputs)(trained))


@pytest.mark.parametrize("core_size", [0.02, None])
def test_second_derivatives_are_those_of_plain_trains_alone(mlp, x, core_size):
    config = TTLoraConfig(target_modules=["2"], shape=[2, 4, 4, 6], r=2, core_size=core_size, init_weights=False)
    model = get_peft_model(mlp(dtype=torch.float64), config).to(torch.float64).eval()
    ((name, cores),) = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]

    def loss(cores):
        return functional_call(model, {name: cores}, (x,)).square().sum()

    H, step = hessian(loss)(cores), 1e-4
    directions = torch.eye(len(cores), dtype=torch.float64)[:3] * step
    differences = [
        (loss(cores + a + b) - loss(cores + a - b) - loss(cores - a + b) + loss(cores - a - b)).item() / (4 * step**2)
        for a in directions
        for b in directions
    ]
    agrees = torch.allclose(H[:3, :3].flatten(), torch.tensor(differences, dtype=torch.float64), rtol=1e-3, atol=1e-5)
    assert agrees == (core_size is None)
