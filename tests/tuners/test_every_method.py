"""What PEFT promises of every method, for all of ours."""

import copy
from collections.abc import Mapping

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from ttlora import BottleneckConfig, LorettaRepConfig, LortaConfig, MetaTTConfig, TTLoraConfig

CONFIGS = {
    "tt-lora": TTLoraConfig(),
    "dota": TTLoraConfig(init_weights="dota"),
    "loretta-rep": LorettaRepConfig(),
    "bottleneck": BottleneckConfig(tt_rank=2),
    "meta-tt": MetaTTConfig(),
    "lorta": LortaConfig(),
}
HEADS = {
    "TOKEN_CLS": (BertForTokenClassification, "classifier"),
    "QUESTION_ANS": (BertForQuestionAnswering, "qa_outputs"),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return copy.deepcopy(CONFIGS[request.param])


@pytest.fixture(params=HEADS)
def task(request):
    return request.param


def bert(task):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
    return HEADS[task][0](BertConfig(hidden_size=16, **sizes)).eval()


def trained_heads(model, task):
    return {name for name, p in model.named_parameters() if p.requires_grad and HEADS[task][1] in name}


def test_heads_that_peft_names_when_the_adapter_is_in(config, task, tmp_path):
    """PEFT writes the names of such a head into the user's config, after it has put the adapter in."""
    config.task_type = task
    x = torch.arange(10).view(2, 5)
    model = get_peft_model(bert(task), config)
    assert len(trained_heads(model, task)) == 2
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in trained_heads(model, task):
                p.add_(1.0)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(bert(task), tmp_path).eval()
        assert torch.equal(again(x)[0], model.eval()(x)[0])
        assert not torch.allclose(bert(task)(x)[0], model(x)[0])
    # another model of the same config, and a further adapter in it
    other = get_peft_model(bert(task), config)
    other.add_adapter("second", config)
    assert len(trained_heads(other, task)) == 2
    assert HEADS[task][1] in other.peft_config["second"].modules_to_save


def test_a_deleted_adapter_leaves_nothing_behind(config):
    config.target_modules = ["0", "1"]
    # two layers of one size, which share what trains in some methods
    model = get_peft_model(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)), config, adapter_name="gone")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    by_name = [
        value
        for layer in layers
        for attribute in dir(layer)
        if not attribute.startswith("_") and hasattr(value := getattr(layer, attribute), "keys")
    ]
    # an adapter's parts are looked for in whatever is like a dict, which a class is not
    assert not any(isinstance(value, type) for value in by_name)
    holding = [value for value in by_name if "gone" in value]
    assert len(holding) >= 2 * len(layers)
    model.delete_adapter("gone")
    assert not any("gone" in value for value in holding)
    assert not any("gone" in name for name in model.state_dict())


def test_views_of_entries_are_mappings():
    """What is shared is looked up when it is asked for, also after a cast has put another parameter in its place."""
    model = get_peft_model(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)), MetaTTConfig(target_modules=["0", "1"]))
    first, second = (layer.cores for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    assert isinstance(first, Mapping)
    assert dict(first) == {"default": second["default"]}
    model.double()
    assert first["default"].dtype == torch.float64
    model.delete_adapter("default")
    assert not first
    assert "default" not in second
