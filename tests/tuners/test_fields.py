"""Every field of every config is checked: a wrong value is named in one line, whatever it is."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from ttlora import TTLoraConfig
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig

CONFIGS = [TTLoraConfig, LorettaRepConfig, BottleneckConfig, MetaTTConfig, LortaConfig]
ALL = pytest.mark.parametrize("config", CONFIGS)
FIELDS = [(config, field.name) for config in CONFIGS for field in dataclasses.fields(config)]
# What JSON can hold and no field means.
WRONG = [
    [[["a"]]],
    [1, "a"],
    [None],
    [{}],
    {"a": {"b": 1}},
    {"(": 1},
    {"": None},
    -1,
    0.5,
    10**400,
    -(10**400),
    1e308,
    5e-324,
    math.nan,
    math.inf,
    "(",
    "x" * 10**6,
    list(range(10**5)),
    [2**62] * 3,
    {"q": [2**62, 1]},
    True,
    None,
    "",
    [],
    {},
]


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_a_value_is_taken_or_named(config, field):
    for value in WRONG:
        try:
            made = config(**{field: copy.deepcopy(value)})
        except ValueError as error:
            message = str(error)
            assert "\n" not in message
            assert len(message) < 600
            assert message.startswith(field)
        else:
            assert json.dumps(made.to_dict(), default=list)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": 5}, "target_modules=5 is not a list of names or a regular expression"),
        ({"target_modules": [["q"]]}, r"target_modules=\[\['q'\]\] is not"),
        ({"target_modules": "q("}, r"target_modules has 'q\(', which is no name and no regular expression: missing"),
        ({"exclude_modules": {"q": 1}}, "exclude_modules={'q': 1} is not"),
        ({"exclude_modules": "["}, r"exclude_modules has '\['"),
        ({"modules_to_save": "head"}, "modules_to_save='head' is not a list of names"),
        ({"modules_to_save": ["he(ad"]}, "modules_to_save has 'he"),
        ({"layers_to_transform": -1}, "layers_to_transform=-1 is not the index of a layer or a list of them"),
        ({"layers_to_transform": [0, True]}, r"layers_to_transform=\[0, True\] is not"),
        ({"layers_to_transform": "0"}, "layers_to_transform='0' is not"),
        ({"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": 3}, "layers_pattern=3 is not a list"),
        ({"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "(?P<idx>h)"}, "layers_pattern has"),
        ({"inference_mode": "yes"}, "inference_mode='yes' is not True or False"),
        ({"auto_mapping": ["a"]}, r"auto_mapping=\['a'\] is not a dict with strings for keys"),
        ({"auto_mapping": {1: "a"}}, "auto_mapping={1: 'a'} is not a dict"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path=5 is not a string or None"),
        ({"revision": []}, r"revision=\[\] is not a string or None"),
        ({"peft_version": 0.2}, "peft_version=0.2 is not a string or None"),
        ({"peft_type": "LORA"}, "peft_type='LORA' is not '"),
        ({"task_type": ["SEQ_CLS"]}, r"task_type=\['SEQ_CLS'\] is not one of SEQ_CLS"),
    ],
)
@ALL
def test_what_all_configs_have(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TTLoraConfig, {"target_parameters": 5}, "target_parameters=5 is not a list of names"),
        (TTLoraConfig, {"target_parameters": "a.b"}, "target_parameters='a.b' is not a list of names"),
        (TTLoraConfig, {"target_parameters": [5]}, r"target_parameters=\[5\] is not a list of names"),
        (TTLoraConfig, {"weight_kinds": {"q": ["linear"]}}, r"weight_kinds has \['linear'\], which is none of"),
        (TTLoraConfig, {"alpha": 10**400}, "alpha=1000.* is not a finite number"),
        (TTLoraConfig, {"rank_pattern": {"(?i)q": 3}}, r"rank_pattern has '\(\?i\)q', which is no name"),
        (TTLoraConfig, {"r": [2] * 300}, "is neither a positive integer nor a list of up to 256 of them"),
        (BottleneckConfig, {"non_linearity": ["gelu"]}, r"non_linearity=\['gelu'\] is not one of gelu, relu"),
        (BottleneckConfig, {"shape": {"many": [4, 4]}}, "shape has the key 'many', which is no number of rows or outp"),
        (BottleneckConfig, {"scale": False}, "scale=False is not a finite number"),
        (LorettaRepConfig, {"shape": {"1.5": [4, 4]}}, r"shape has the key '1\.5', which is no number of rows"),
        (LorettaRepConfig, {"weight_sizes": {5: [4, 4]}}, "weight_sizes has 5, which is no name and no regular expr"),
        (MetaTTConfig, {"shape": [4, 4]}, r"shape=\[4, 4\] is not 'auto', a dict of dims or None"),
        (MetaTTConfig, {"shape": {"24": [4, 0]}}, r"shape has \[4, 0\], and not a list of up to 256 dims"),
        (MetaTTConfig, {"ranks": {"24x24": 3}}, r"ranks={'24x24': 3} is not a dict from sizes such as '768x768'"),
        (MetaTTConfig, {"joint": 1}, "joint=1 is not True or False"),
        (LortaConfig, {"head_dim": 0}, "head_dim=0 is not a positive integer or None"),
        (LortaConfig, {"weight_sizes": {"q": [4]}}, r"weight_sizes={'q': \[4\]} is not a dict from names of modules"),
    ],
)
def test_what_one_config_has(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


@pytest.mark.parametrize("config", [TTLoraConfig, LorettaRepConfig, BottleneckConfig, MetaTTConfig])
@pytest.mark.parametrize("core_size", [True, 10**400], ids=["bool", "large"])
def test_sizes_of_cores(config, core_size):
    with pytest.raises(ValueError, match=r"core_size=(True|1000.*) is not"):
        config(core_size=core_size)


@ALL
def test_what_says_the_same(config, tmp_path):
    given = config(target_modules=("a", "b"), layers_to_transform=range(2), modules_to_save=["head"])
    assert given.target_modules == {"a", "b"}
    assert given.layers_to_transform == [0, 1]
    given.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == given


@pytest.mark.parametrize("core_size", [1e-300, 1e300, 1e-5])
def test_gains_beyond_float32_are_refused(core_size):
    model = nn.Sequential(nn.Linear(2**10, 2**10))
    for config in (
        TTLoraConfig(target_modules=["0"], shape=[2] * 20, core_size=core_size),
        LorettaRepConfig(target_modules=["0"], r=4, shape={"1024": [2] * 12}, core_size=core_size),
        BottleneckConfig(target_modules=["0"], r=4, tt_rank=4, shape=[2] * 12, core_size=core_size),
    ):
        with pytest.raises(ValueError, match=r"^0: core_size=.* more than float32 holds"):
            get_peft_model(model, config)


def test_the_largest_sizes_take_no_time():
    highly_composite = 1_396_755_360  # 1,536 divisors
    with torch.device("meta"):
        layer = nn.Linear(highly_composite, highly_composite)
    get_peft_model(nn.Sequential(layer), TTLoraConfig(target_modules=["0"]), low_cpu_mem_usage=True)


@pytest.mark.parametrize("field", ["shape_pattern", "rank_pattern", "alpha_pattern"])
def test_a_pattern_for_nothing_is_refused(mlp, field):
    value = {"shape_pattern": "auto", "rank_pattern": 2, "alpha_pattern": 1.0}[field]
    model = mlp()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(
        ValueError, match=f"the {field.split('_')[0]} of '1' belongs to no adapted module; adapted are 0, 2"
    ):
        get_peft_model(model, TTLoraConfig(target_modules=["0", "2"], **{field: {"2": value, "1": value}}))
    assert [name for name, _ in model.named_modules()] == names
    get_peft_model(model, TTLoraConfig(target_modules=["0", "2"], **{field: {"2": value}}))
