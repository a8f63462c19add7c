import copy
import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ttlora import TTLoraConfig
from ttlora.tensor_train.linear import low_rank_linear
from ttlora.tuners.tt_lora import TTLoraLayer
from ttlora.tuners.tt_lora import linear as layer_module

KAPPA = 1 / math.sqrt(3)


def adapted(base, **config):
    """The layer that takes the place of ``base``."""
    config = {"init_weights": False, **config}
    return get_peft_model(nn.Sequential(base), TTLoraConfig(target_modules=["0"], **config)).base_model.model[0]


def acting_cores(layer, cores, adapter="default"):
    """``g_i θ_i``: the cores whose product is the update, but for α and κ."""
    update = layer.ttlora_update[adapter]
    pieces = torch.split(cores, list(update.shape.core_parameters))
    return [
        piece.view(core) * gain
        for piece, core, gain in zip(pieces, update.shape.core_shapes, update.gains, strict=True)
    ]  # fmt: skip


def dense(layer, adapter="default", cores=None):
    """The update in float64, from the definition: entry by entry the product of slices of the acting cores."""
    cores = layer.ttlora_cores[adapter].detach().double() if cores is None else cores
    product = cores.new_ones(1, 1)
    for core in acting_cores(layer, cores, adapter):
        product = torch.tensordot(product, core, dims=1)
    update = layer.ttlora_update[adapter]
    return (
        update.scale
        * (1 if update.core_size is None else KAPPA)
        * product.reshape(layer.out_features, layer.in_features)
    )


BASES = {
    "linear": lambda: nn.Linear(16, 24),
    "without a bias": lambda: nn.Linear(16, 24, bias=False),
    "Conv1D": lambda: Conv1D(24, 16),
}
CONFIGS = {
    "default": {},
    "two cores": {"shape": [24, 16], "r": 7},
    "unaligned": {"shape": [4, 16, 6], "r": 4},
    "ones": {"shape": [1, 24, 1, 4, 4, 1], "r": 3},
    "ranks": {"shape": [4, 6, 4, 4], "r": [2, 5, 3]},
    "clipped": {"shape": [4, 6, 4, 4], "r": 1000},
    "no core size": {"core_size": None},
    "scaled": {"alpha": 0.5, "scaling": "alpha/sqrt(r)"},
    "negative": {"alpha": -3},
    "paper": {"init_weights": "paper"},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("config", CONFIGS)
class TestAgainstTheDenseUpdate:
    def test_delta_weight(self, base, config):
        layer = adapted(BASES[base](), **CONFIGS[config])
        expected = dense(layer)
        assert expected.norm() > 0
        expected = expected.T if base == "Conv1D" else expected
        delta = layer.get_delta_weight("default")
        assert delta.shape == layer.get_base_layer().weight.shape
        torch.testing.assert_close(delta.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    def test_output_and_gradients(self, base, config):
        layer = adapted(BASES[base]().double(), **CONFIGS[config])
        # gradients as they are
        layer.ttlora_update["default"] = replace(layer.ttlora_update["default"], core_size=None)
        cores = layer.ttlora_cores["default"]
        x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
        reference = layer.base_layer(x) + F.linear(x, dense(layer, cores=cores))
        y = layer(x)
        torch.testing.assert_close(y, reference)
        direction = torch.randn_like(y)
        got = torch.autograd.grad(y, (x, cores), direction)
        for ours, theirs in zip(got, torch.autograd.grad(reference, (x, cores), direction), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_merge_and_unmerge(self, base, config):
        layer = adapted(BASES[base](), **CONFIGS[config])
        x = torch.randn(5, 16)
        before, weight = layer(x), layer.get_base_layer().weight.detach().clone()
        layer.merge()
        assert layer.merged
        assert not torch.equal(layer.get_base_layer().weight, weight)
        assert (layer(x) - before).norm() <= 1e-5 * before.norm()
        assert torch.equal(layer(x), layer.base_layer(x))
        layer.unmerge()
        assert not layer.merged
        torch.testing.assert_close(layer.get_base_layer().weight, weight)


def test_the_leading_cores_run_over_the_rows_of_the_weight():
    layer = adapted(nn.Linear(4, 6), shape=[6, 4], r=1, core_size=None, alpha=1)
    rows, columns = torch.randn(6), torch.randn(4)
    layer.ttlora_cores["default"].data = torch.cat([rows, columns])
    torch.testing.assert_close(layer.get_delta_weight("default"), torch.outer(rows, columns))


def test_the_papers_best_shape_for_roberta():
    layer = adapted(nn.Linear(768, 768), shape=[64, 16, 9, 64], r=4)
    assert layer.ttlora_update["default"].shape.boundary is None
    assert layer.ttlora_cores["default"].numel() == 912
    x = torch.randn(2, 768)
    expected = layer.base_layer(x) + F.linear(x, dense(layer).float())
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dims", [(16,), (5, 16), (2, 3, 16), (2, 1, 3, 16), (0, 16), (2, 0, 16)])
def test_inputs_of_any_order(base, dims):
    if base == "Conv1D" and 0 in dims:
        pytest.skip("the base layer itself refuses it")
    layer = adapted(BASES[base]())
    x = torch.randn(dims)
    y = layer(x)
    assert y.shape == (*dims[:-1], 24)
    torch.testing.assert_close(y, layer.base_layer(x) + F.linear(x, dense(layer).float()))
    y.sum().backward()
    assert layer.ttlora_cores["default"].grad.shape == layer.ttlora_cores["default"].shape


def test_an_input_that_does_not_lie_in_one_piece():
    layer = adapted(nn.Linear(16, 24))
    x = torch.randn(16, 5, 6).permute(2, 1, 0)[::2]
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_update_leaves_every_bit(base, dtype):
    layer = adapted(BASES[base]().to(dtype), init_weights=True)
    for x in (torch.randn(5, 16, dtype=dtype), torch.randn(2, 3, 16, dtype=dtype)):
        assert torch.equal(layer(x), layer.base_layer(x))
    assert torch.count_nonzero(layer.get_delta_weight("default")) == 0


class TestOnePass:
    """A plain frozen layer is computed together with its update; all else calls the base layer."""

    @pytest.fixture
    def passes(self, monkeypatch):
        calls = []
        fused = low_rank_linear
        monkeypatch.setattr(layer_module, "low_rank_linear", lambda *a: calls.append(1) or fused(*a))
        return calls

    def test_a_plain_layer(self, passes):
        adapted(nn.Linear(16, 24))(torch.randn(5, 16))
        assert passes

    @pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
    def test_hooks_on_the_base_layer_are_called(self, kind, passes):
        layer, called = adapted(nn.Linear(16, 24)), []
        getattr(layer.base_layer, f"register_{kind}_hook")(lambda *_: called.append(kind))
        layer(torch.randn(5, 16, requires_grad=True)).sum().backward()
        assert called == [kind]
        assert not passes

    def test_what_a_hook_returns_counts(self):
        layer = adapted(nn.Linear(16, 24))
        x = torch.randn(5, 16)
        update = layer(x) - layer.base_layer(x)
        layer.base_layer.register_forward_hook(lambda *_: torch.zeros(5, 24))
        torch.testing.assert_close(layer(x), update)

    def test_a_forward_that_was_put_in_its_place_is_called(self, passes):
        layer = adapted(nn.Linear(16, 24))
        layer.base_layer.forward = lambda x: torch.zeros(5, 24)
        torch.testing.assert_close(layer(x := torch.randn(5, 16)), F.linear(x, dense(layer).float()))
        assert not passes

    def test_a_base_layer_that_trains_gets_its_gradient(self, passes):
        layer = adapted(nn.Linear(16, 24), bias="all")
        layer(torch.randn(5, 16)).sum().backward()
        assert layer.base_layer.bias.grad is not None
        layer.base_layer.bias.requires_grad_(False)
        layer.base_layer.weight.requires_grad_(True)
        layer(torch.randn(5, 16)).sum().backward()
        assert layer.base_layer.weight.grad is not None
        assert not passes


class TestDropout:
    def test_it_drops_in_training_only(self):
        layer = adapted(nn.Linear(16, 24), dropout=0.5).eval()
        x = torch.randn(200, 16)
        expected = layer.base_layer(x) + F.linear(x, dense(layer).float())
        torch.testing.assert_close(layer(x), expected)
        layer.train()
        assert not torch.equal(layer(x), layer(x))
        mean = torch.stack([layer(x) for _ in range(300)]).mean(0)
        assert (mean - expected).norm() < 0.1 * (expected - layer.base_layer(x)).norm()

    def test_it_leaves_the_base_layers_input_alone(self):
        layer = adapted(nn.Linear(16, 24), dropout=0.99, init_weights=True).train()
        x = torch.randn(5, 16)
        assert torch.equal(layer(x), layer.base_layer(x))


class TestSafeMerge:
    def test_values_that_are_not_finite_are_refused(self):
        layer = adapted(nn.Linear(16, 24))
        layer.ttlora_cores["default"].data[3] = float("nan")
        weight = layer.base_layer.weight.detach().clone()
        with pytest.raises(ValueError, match=r"NaNs detected in the merged weights.* adapter default") as error:
            layer.merge(safe_merge=True)
        assert "\n" not in str(error.value)
        assert torch.equal(layer.base_layer.weight, weight)
        assert not layer.merged

    def test_finite_values_are_merged_alike(self):
        layers = [copy.deepcopy(layer) for layer in [adapted(nn.Linear(16, 24))] * 2]
        layers[0].merge()
        layers[1].merge(safe_merge=True)
        assert torch.equal(layers[0].base_layer.weight, layers[1].base_layer.weight)


def test_merging_twice_and_unmerging_an_unmerged_layer_do_nothing_but_warn():
    layer = adapted(nn.Linear(16, 24))
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
    layer.merge()
    weight = layer.base_layer.weight.clone()
    with pytest.warns(UserWarning, match="already merged"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, weight)


def test_disabling_a_merged_layer_unmerges_it():
    layer = adapted(nn.Linear(16, 24))
    x = torch.randn(5, 16)
    base = layer.base_layer(x)
    layer.merge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), base)
    assert not layer.merged


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
    def test_half_precision_bases(self, dtype, autocast_adapter_dtype):
        net = nn.Sequential(nn.Linear(64, 64)).to(dtype)
        model = get_peft_model(
            net,
            TTLoraConfig(target_modules=["0"], init_weights=False),
            autocast_adapter_dtype=autocast_adapter_dtype,
        )
        layer = model.base_model.model[0]
        cores = layer.ttlora_cores["default"]
        assert cores.dtype == (torch.float32 if autocast_adapter_dtype else dtype)
        x = torch.randn(8, 64, dtype=dtype)
        y = layer(x)
        expected = layer.base_layer(x).double() + F.linear(x.double(), dense(layer))
        assert y.dtype == dtype
        assert (y.double() - expected).norm() < 2 * torch.finfo(dtype).eps * expected.norm()
        y.sum().backward()
        assert cores.grad.dtype == cores.dtype
        layer.merge()
        assert layer.base_layer.weight.dtype == dtype
        assert (layer(x).double() - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()

    # [16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16] is the paper's shape for LLaMA-3
    @pytest.mark.parametrize("shape", ["auto", [16, 4, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16], [64, 4, 16, 256, 16]])
    def test_float16_holds_both_factors_of_a_long_train(self, shape):
        base = nn.Linear(4096, 4096, bias=False, device="meta").to_empty(device="cpu").half()
        base.weight.data.zero_()
        layer = adapted(base, shape=shape, r=10)
        for factor in layer.factors("default"):
            half = factor.half()
            assert half.isfinite().all()
            assert (half.float() - factor).norm() < 1e-3 * factor.norm()
        y = layer(torch.randn(4, 4096, dtype=torch.float16))
        assert y.isfinite().all()
        assert y.count_nonzero() > 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_gradients_of_half_precision_cores_do_not_overflow(self, dtype):
        net = nn.Sequential(nn.Linear(256, 256)).to(dtype)
        config = TTLoraConfig(target_modules=["0"], init_weights=False, shape=[4] * 8, alpha=16)
        layer = get_peft_model(net, config, autocast_adapter_dtype=False).base_model.model[0]
        (1000 * layer(torch.randn(64, 256, dtype=dtype)).float().square().mean()).backward()
        assert layer.ttlora_cores["default"].grad.isfinite().all()

    @pytest.mark.parametrize("base", BASES)
    def test_autocast(self, base):
        layer = adapted(BASES[base]())
        x = torch.randn(200, 16)
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            A, B = layer.factors("default")
            delta = layer.get_delta_weight("default")
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert A.dtype == B.dtype == delta.dtype == torch.float32
        assert torch.equal(delta, layer.get_delta_weight("default"))
        assert (y - expected).norm() < 0.02 * expected.norm()
        y.float().sum().backward()
        assert layer.ttlora_cores["default"].grad.dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("bias", [True, False])
    def test_under_autocast_one_pass_is_what_two_are(self, dtype, bias):
        layer = adapted(nn.Linear(16, 24, bias=bias).to(dtype))
        dy = torch.randn(5, 24, dtype=torch.bfloat16)
        found = []
        for forward in (layer, lambda x: TTLoraLayer._adapted_forward(layer, x, ["default"])):
            x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = forward(x)
            y.backward(dy)
            found.append((y.detach(), x.grad, layer.ttlora_cores["default"].grad))
            layer.zero_grad()
        for one_pass, two in zip(*found, strict=True):
            assert one_pass.dtype == two.dtype
            assert (one_pass - two).norm() < 0.01 * two.norm()

    def test_what_autocast_does_not_cast_stays(self):
        layer = adapted(nn.Linear(16, 24).double())
        x = torch.randn(5, 16, dtype=torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert (y - layer(x)).norm() < 0.02 * y.norm()

    def test_double_precision_stays(self):
        layer = adapted(nn.Linear(16, 24).double())
        x = torch.randn(5, 16, dtype=torch.float64)
        expected = layer.base_layer(x) + F.linear(x, dense(layer))
        assert layer.ttlora_cores["default"].dtype == torch.float64
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)

    def test_torchs_default_dtype_may_be_a_half(self):
        torch.set_default_dtype(torch.bfloat16)
        try:
            layer = adapted(nn.Linear(16, 24))
            assert layer(torch.randn(5, 16)).dtype == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)

    @pytest.mark.parametrize("base", BASES)
    def test_the_meta_device(self, base):
        layer = adapted(BASES[base]().to("meta"))
        assert layer.ttlora_cores["default"].is_meta
        assert layer(torch.empty(5, 16, device="meta")).shape == (5, 24)
        assert layer.get_delta_weight("default").is_meta


class TestGradientsOfCoresWithGains:
    """Cores are trained at one small size; SGD moves what acts as if it were not so."""

    @pytest.fixture(params=["auto", [4, 6, 2, 2, 4], [4, 16, 6]])
    def layer(self, request):
        return adapted(nn.Linear(16, 24).double(), shape=request.param, r=3, alpha=1.5)

    def true_gradient(self, layer, x, target):
        cores = layer.ttlora_cores["default"].detach().clone().requires_grad_()
        loss = F.mse_loss(layer.base_layer(x) + F.linear(x, dense(layer, cores=cores)), target)
        return torch.autograd.grad(loss, cores)[0]

    def test_the_delivered_gradient_is_the_true_one_over_the_gains_squared(self, layer):
        x, target = torch.randn(7, 16).double(), torch.randn(7, 24).double()
        F.mse_loss(layer(x), target).backward()
        update = layer.ttlora_update["default"]
        shape = update.shape
        delivered = torch.split(layer.ttlora_cores["default"].grad, list(shape.core_parameters))
        true = torch.split(self.true_gradient(layer, x, target), list(shape.core_parameters))
        assert max(update.gains) > 2
        for got, wanted, g in zip(delivered, true, update.gains, strict=True):
            torch.testing.assert_close(got, wanted / g**2)

    def test_a_step_of_sgd_moves_the_acting_cores_as_without_gains(self, layer):
        x, target = torch.randn(7, 16).double(), torch.randn(7, 24).double()
        parameter = layer.ttlora_cores["default"]
        # the acting cores as parameters of their own
        acting = [core.detach().clone().requires_grad_() for core in acting_cores(layer, parameter)]
        product = parameter.new_ones(1, 1)
        for core in acting:
            product = torch.tensordot(product, core, dims=1)
        update = layer.ttlora_update["default"].scale * KAPPA * product.reshape(24, 16)
        F.mse_loss(layer.base_layer(x) + F.linear(x, update), target).backward()

        F.mse_loss(layer(x), target).backward()
        torch.optim.SGD([parameter], lr=0.1).step()
        for moved, core in zip(acting_cores(layer, parameter), acting, strict=True):
            torch.testing.assert_close(moved, core - 0.1 * core.grad)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_cores_are_fetched(place, tmp_path):
    net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    model = get_peft_model(net, TTLoraConfig(target_modules=["0", "2"], init_weights=False))
    x = torch.randn(5, 16)
    expected = model(x).detach()
    if place == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    for _ in range(2):
        assert all(parameter.is_meta for parameter in model.parameters())
        torch.testing.assert_close(model(x), expected)
    if place == "cpu":
        model.merge_adapter()
        assert all(parameter.is_meta for parameter in model.parameters())
        torch.testing.assert_close(model(x), expected)


def test_copies_are_independent():
    layer = adapted(nn.Linear(16, 24), dropout=0.1).eval()
    x = torch.randn(5, 16)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), layer(x))
        copied.ttlora_cores["default"].data.zero_()
        assert not torch.equal(copied(x), layer(x))


def test_it_says_what_it_is():
    layer = adapted(nn.Linear(16, 24))
    assert isinstance(layer, TTLoraLayer)
    assert repr(layer).startswith("ttlora.TTLoraLinear(")
    assert (layer.in_features, layer.out_features) == (16, 24)
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 10),
    reason="torch up to 2.10 cannot trace a frozen dataclass with computed fields",
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_it_compiles_in_one_piece():
    net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    model = get_peft_model(net, TTLoraConfig(target_modules=["0", "2"], init_weights=False, r=3))
    x = torch.randn(5, 16)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    for layer in (model.base_model.model[0], model.base_model.model[2]):
        assert layer.ttlora_cores["default"].grad.count_nonzero() > 0
