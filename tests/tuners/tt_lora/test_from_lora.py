"""LoRA's configs and options, where TT-LoRA's are wanted."""

import copy
import pickle

import pytest
from peft import LoraConfig, get_peft_model

from ttlora import TTLoraConfig


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("lora_alpha", 16, "write alpha=4"),
        ("lora_dropout", 0.1, "write dropout"),
        ("use_rslora", True, r"write scaling='alpha/sqrt\(r\)'"),
        ("init_lora_weights", True, "write init_weights"),
        ("use_dora", True, "leave it out"),
    ],
)
def test_an_option_of_lora_is_refused_with_what_to_write(name, value, written):
    with pytest.raises(TypeError, match=f"{name} is an option of LoRA.*{written}"):
        TTLoraConfig(**{name: value})


def test_an_option_of_nobody_is_refused_as_python_does():
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank'"):
        TTLoraConfig(rank=5)


def test_what_lora_adapts_is_adapted(architectures):
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=16,
        lora_alpha=32,
        lora_dropout=0.1,
        use_rslora=True,
        bias="lora_only",
        target_modules=["query", "dense"],
        exclude_modules=["pooler.dense"],
        layers_to_transform=[0],
        modules_to_save=["classifier"],
    )
    before = copy.deepcopy(lora)
    config = TTLoraConfig.from_lora(lora, alpha=3)
    assert lora == before
    assert (config.r, config.alpha, config.scaling) == (2, 3, "alpha/sqrt(r)")
    assert (config.dropout, config.bias) == (0.1, "ttlora_only")

    def adapted(method):
        model = get_peft_model(architectures["bert"].build(), method)
        parameters = {name for name, p in model.named_parameters() if p.requires_grad and "ora_" not in name}
        return model.base_model.targeted_module_names, parameters

    assert adapted(config) == adapted(lora)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"trainable_token_indices": [0]}, {"layer_replication": [(0, 2)]}]
)
def test_what_only_lora_has_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is LoRA's alone"):
        TTLoraConfig.from_lora(LoraConfig(**options))


def test_configs_are_copied_and_pickled():
    config = TTLoraConfig(r=3)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
