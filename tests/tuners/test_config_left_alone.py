"""What is resolved for a model lives in the model and in what is saved: the user's config stays as it was."""

import copy

import pytest
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertModel, MixtralConfig, MixtralForCausalLM

from ttlora import BottleneckConfig, LorettaRepConfig, LortaConfig, MetaTTConfig, TTLoraConfig

CONFIGS = {
    "tt-lora": TTLoraConfig(),
    "tt-lora, dims by module": TTLoraConfig(shape_pattern={"dense": "auto"}, rank_pattern={"value": 3}),
    "tt-lora, all linear": TTLoraConfig(target_modules="all-linear"),
    "loretta-rep": LorettaRepConfig(),
    "bottleneck": BottleneckConfig(tt_rank=2),
    "meta-tt": MetaTTConfig(),
    "lorta": LortaConfig(),
}
# PEFT writes these itself, for every method
BY_PEFT = ("auto_mapping", "base_model_name_or_path", "inference_mode")


def bert(width: int) -> BertModel:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 2 * width, "vocab_size": 20}
    return BertModel(BertConfig(hidden_size=width, **sizes))


def fields(config) -> dict:
    return {name: value for name, value in copy.deepcopy(config.to_dict()).items() if name not in BY_PEFT}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_models_of_one_config(name, tmp_path):
    config = copy.deepcopy(CONFIGS[name])
    before = fields(config)
    for width in (32, 48, 32):
        model = get_peft_model(bert(width), config)
        assert fields(config) == before
        model.add_adapter("second", config)
        assert fields(config) == before
        model.save_pretrained(tmp_path / str(width))
        assert fields(config) == before
        again = PeftModel.from_pretrained(bert(width), tmp_path / str(width))
        assert fields(again.peft_config["default"]) == fields(model.peft_config["default"]) != before


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_that_an_adapter_is_loaded_with(name, tmp_path):
    """It says what that adapter is, and PEFT keeps it."""
    config = copy.deepcopy(CONFIGS[name])
    model = get_peft_model(bert(32), config)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert(32), tmp_path, config=config)
    assert again.peft_config["default"] is config
    assert config.inference_mode
    assert fields(config) == fields(model.peft_config["default"])


def test_names_of_experts():
    config = TTLoraConfig(target_modules=["q_proj", "w1", "w2", "w3"])
    before = fields(config)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=20, num_key_value_heads=2, num_local_experts=2, **sizes))
    adapted = get_peft_model(model, config)
    assert fields(config) == before
    assert adapted.peft_config["default"].target_parameters
