"""An adapter that does not fit leaves the model as it was."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from ttlora import TTLoraConfig
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.second = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.norm.weight.requires_grad_(False)

    def forward(self, x):
        x = self.first(x)
        return self.norm(self.second(self.attention(x, x, x)[0]))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().eval()


def state(model):
    """Every module and every parameter, and whether it trains."""
    return dict(model.named_modules()), {name: weight.requires_grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, BottleneckConfig, MetaTTConfig, LortaConfig])
def test_the_first_adapter(model, config):
    before = state(model)
    with pytest.raises(TypeError, match="norm"):
        get_peft_model(model, config(r=2, target_modules=["first", "second", "norm"]))
    assert state(model) == before

    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    adapted = get_peft_model(model, config(r=2, target_modules=["first", "second"]))
    assert all("base_layer.base_layer" not in name for name, _ in adapted.named_modules())
    with adapted.disable_adapter():
        unadapted = adapted(x)
    assert torch.equal(unadapted, adapted.unload()(x))


def test_layers_of_every_kind(model):
    model.experts = nn.ParameterDict({"weight": torch.zeros(2, 6, 4)})
    before = state(model)
    config = TTLoraConfig(
        target_modules=["first", "attention"], target_parameters=["experts.weight"], dropout=0.1, init_weights=False
    )
    with pytest.raises(ValueError, match="no place for dropout"):
        get_peft_model(model, config)
    assert state(model) == before


def test_a_further_adapter(model):
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    adapted = get_peft_model(model, TTLoraConfig(target_modules=["first"], init_weights=False)).eval()
    before, y = state(adapted), adapted(x)
    misfit = TTLoraConfig(target_modules=["first", "attention", "second"], shape_pattern={"second": [3, 5]})
    with pytest.raises(ValueError, match="second"):
        adapted.add_adapter("other", misfit)
    assert state(adapted) == before
    assert list(adapted.peft_config) == ["default"]
    assert torch.equal(adapted(x), y)

    adapted.add_adapter("other", TTLoraConfig(target_modules=["first", "second"]))
    adapted.set_adapter("other")
    assert sorted(name for name, _ in adapted.named_modules() if name.endswith(".base_layer")) == [
        "base_model.model.first.base_layer",
        "base_model.model.second.base_layer",
    ]
