"""Weighted sums of adapters."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from ttlora import TTLoraConfig
from ttlora.tuners.tt_lora import TTLoraLayer


def network(*names, **settings):
    """A model with an adapter of each name, no update of which is zero."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 8))
    config = {"target_modules": ["0", "1"], "init_weights": False, **settings}
    model = get_peft_model(plain, TTLoraConfig(**config), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, TTLoraConfig(**config))
    return model.double()


def deltas(model, adapter):
    return [
        layer.get_delta_weight(adapter)
        for layer in model.modules()
        if isinstance(layer, TTLoraLayer) and adapter in layer.ttlora_cores
    ]


@pytest.mark.parametrize(
    "settings", [{}, {"core_size": None}, {"scaling": "alpha/r"}, {"r": 40}, {"shape": "auto", "r": 2}]
)
def test_it_is_the_exact_sum(settings):
    model = network("a", "b", "c", **settings)
    errors = model.base_model.add_weighted_adapter(["a", "b", "c"], [0.5, -2.0, 1.0], "sum")
    assert errors.keys() == {"0", "1"}
    assert max(errors.values()) < 1e-7
    for total, a, b, c in zip(*(deltas(model, name) for name in ("sum", "a", "b", "c")), strict=True):
        torch.testing.assert_close(total, 0.5 * a - 2 * b + c)


def test_ranks_add_up():
    model = network("a", "b", r=2, shape=[24, 16], shape_pattern={"1": [16, 24]})
    model.base_model.add_weighted_adapter(["a", "b"], [1, 1], "sum")
    assert model.base_model.model[0].ttlora_update["sum"].shape.ranks == (1, 4, 1)
    assert model.active_adapter == "a"


def test_adapters_of_different_ranks_and_targets():
    model = network("a", r=2)
    model.add_adapter("b", TTLoraConfig(target_modules=["1", "2"], r=3, init_weights=False))
    model.double().base_model.add_weighted_adapter(["a", "b"], [2.0, 1.0], "sum")
    (a0, a1), (b1, b2), found = deltas(model, "a"), deltas(model, "b"), deltas(model, "sum")
    for total, wanted in zip(found, (2 * a0, 2 * a1 + b1, b2), strict=True):
        torch.testing.assert_close(total, wanted)


def test_rounding_to_a_rank_reports_the_error():
    model = network("a", "b", r=4)
    errors = model.base_model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "small", r=3)
    for error, small, a, b in zip(errors.values(), *(deltas(model, name) for name in ("small", "a", "b")), strict=True):
        exact = a + b
        assert 1e-3 < error < 1
        assert ((small - exact).norm() / exact.norm()).item() == pytest.approx(error, rel=1e-5)
    assert all(
        max(layer.ttlora_update["small"].shape.ranks) == 3
        for layer in model.modules()
        if isinstance(layer, TTLoraLayer)
    )


def test_rounding_to_an_error():
    model = network("a", "b", r=4)
    # an adapter and a faint other one: the sum is nearly of the first one's ranks
    errors = model.base_model.add_weighted_adapter(["a", "b"], [1.0, 1e-4], "sum", tolerance=0.01)
    assert 0 < max(errors.values()) < 0.01
    first = next(layer for layer in model.modules() if isinstance(layer, TTLoraLayer))
    assert first.ttlora_update["sum"].shape.parameters <= first.ttlora_update["a"].shape.parameters


def test_an_adapter_less_itself_is_zero():
    model = network("a", "b")
    for layer in model.modules():
        if isinstance(layer, TTLoraLayer):
            layer.ttlora_cores["b"].data.copy_(layer.ttlora_cores["a"])
    model.base_model.add_weighted_adapter(["a", "b"], [1.0, -1.0], "nothing")
    assert all(delta.abs().max() < 1e-12 for delta in deltas(model, "nothing"))


def test_the_sum_saves_loads_and_trains(tmp_path):
    model = network("a", "b")
    model.base_model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "sum", tolerance=1e-3)
    model.set_adapter("sum")
    x = torch.randn(5, 16, dtype=torch.float64)
    expected = model(x)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    fresh = network("other").unload()
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "sum").double()
    torch.testing.assert_close(loaded(x), expected)
    optimizer = torch.optim.Adam((weight for weight in model.parameters() if weight.requires_grad), 1e-3)
    model(x).square().mean().backward()
    optimizer.step()
    assert model(x).square().mean() < expected.square().mean()


def test_experts():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    settings = {"target_modules": [], "target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
    model = get_peft_model(MixtralForCausalLM(config), TTLoraConfig(init_weights=False, **settings), "a")
    model.add_adapter("b", TTLoraConfig(init_weights=False, r=2, **settings))
    model.base_model.add_weighted_adapter(["a", "b"], [1.0, 2.0], "sum")
    model.base_model.add_weighted_adapter(["a", "b"], [1.0, 2.0], "small", r=4)
    for total, small, a, b in zip(*(deltas(model, name) for name in ("sum", "small", "a", "b")), strict=True):
        torch.testing.assert_close(total, a + 2 * b, rtol=1e-4, atol=1e-4)
        assert 0 < (small - total).norm() < total.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "x"], [1, 1], "sum"), "there is no adapter 'x': there are a, b"),
        ((["a", "b"], [1], "sum"), r"1 weights for the adapters \['a', 'b'\]"),
        (([], [], "sum"), "0 weights"),
        ((["a", "a"], [1, 1], "sum"), "one is needed for each"),
        ((["a", "b"], [1, 1], "b"), "there is an adapter 'b' already"),
    ],
)
def test_wrong_use(arguments, message):
    with pytest.raises(ValueError, match=message):
        network("a", "b").base_model.add_weighted_adapter(*arguments)


def test_what_has_no_sum():
    model = network("a", shape=[24, 16], shape_pattern={"1": [16, 24]})
    model.add_adapter("b", TTLoraConfig(target_modules=["0"], shape=[4, 6, 16]))
    with pytest.raises(ValueError, match="have no sum"):
        model.base_model.add_weighted_adapter(["a", "b"], [1, 1], "sum")
    with_head = network("a", modules_to_save=["2"])
    with pytest.raises(ValueError, match="modules_to_save have no sum"):
        with_head.base_model.add_weighted_adapter(["a"], [1], "sum")
    assert list(with_head.peft_config) == ["a"]
