import copy
import importlib
import json
import pickle

import peft
import pytest
from peft import PeftConfig, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from torch import nn

import ttlora
from ttlora import TTLoraConfig
from ttlora.compat import add_peft_type
from ttlora.tensor_train import TTShape
from ttlora.tuners.tt_lora import resolve_update, saved_update
from ttlora.tuners.tt_lora.config import write_shapes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"r": 0}, "r=0 "),
        ({"r": -3}, "r=-3 "),
        ({"r": 2.5}, "r=2.5 "),
        ({"r": True}, "r=True "),
        ({"r": []}, r"r=\[\] "),
        ({"r": [4, 0]}, r"r=\[4, 0\] "),
        ({"r": "5"}, "r='5' "),
        ({"r": 2**31}, "r=2147483648 "),
        ({"rank_pattern": {"q": 0}}, "r=0 "),
        ({"rank_pattern": None}, "rank_pattern=None "),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern has '\('"),
        ({"shape": "automatic"}, "shape='automatic' "),
        ({"shape": [4, 0]}, r"shape=\[4, 0\] "),
        ({"shape": [4, 2.0]}, r"shape=\[4, 2.0\] "),
        ({"shape": [1] * 1000}, "1,000 dims"),
        ({"shape_pattern": {"q": 16}}, "shape=16 "),
        ({"shape_pattern": ["q"]}, r"shape_pattern=\['q'\] "),
        ({"alpha": float("nan")}, "alpha=nan "),
        ({"alpha": "4"}, "alpha='4' "),
        ({"alpha_pattern": {"q": None}}, "alpha=None "),
        ({"scaling": "r/alpha"}, "scaling='r/alpha' "),
        ({"dropout": 1.0}, "dropout=1.0 "),
        ({"dropout": -0.1}, "dropout=-0.1 "),
        ({"init_weights": "gaussian"}, "init_weights='gaussian' "),
        ({"core_size": 0}, "core_size=0 "),
        ({"core_size": "odd"}, "core_size='odd' "),
        ({"core_size": float("inf")}, "core_size=inf "),
        ({"bias": "lora_only"}, "bias='lora_only' "),
        ({"weight_sizes": {"q": [4]}}, r"\[4\]"),
        ({"target_modules": "q.*", "layers_to_transform": [0]}, "layers_to_transform "),
        ({"target_modules": "q.*", "layers_pattern": "h"}, "layers_pattern "),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "layers_to_transform, which is missing"),
        ({"task_type": "POETRY"}, "POETRY"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        TTLoraConfig(**wrong)
    assert "\n" not in str(error.value)


def test_the_first_layer_is_a_layer():
    assert TTLoraConfig(target_modules=["q"], layers_to_transform=0, layers_pattern="h").layers_to_transform == 0


def test_the_config_survives_its_file(tmp_path):
    config = TTLoraConfig(
        r=[2, 3, 2], alpha=1.5, shape=[4, 4, 4, 4], shape_pattern={"v": [2, 4, 16]}, rank_pattern={"v": 2},
        alpha_pattern={"v": 7}, scaling="alpha/sqrt(r)", dropout=0.1, init_weights="paper", target_modules=["q", "v"],
        exclude_modules=["k"], modules_to_save=["head"], bias="all", task_type="SEQ_CLS",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert TTLoraConfig.from_pretrained(tmp_path) == config
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert get_peft_config(config.to_dict()) == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "TTLORA"


def test_patterns_take_names_and_regular_expressions():
    config = TTLoraConfig(
        r=3,
        alpha=2,
        shape=[4, 4, 4, 4],
        rank_pattern={"layers.1.q": 2, r".*\.v": 1},
        shape_pattern={"layers.0.q": "auto", "k": [16, 16]},
        alpha_pattern={"^layers.1.q": 8},
    )

    def shape(name):
        found = resolve_update(config, name, 16, 16)
        return list(found.shape.dims), max(found.shape.ranks), found.scale

    auto = list(TTShape.build(16, 16).dims)
    assert shape("layers.0.q") == (auto, 3, 2)
    assert shape("layers.1.q") == ([4, 4, 4, 4], 2, 8)
    assert shape("model.layers.1.q") == ([4, 4, 4, 4], 2, 2)
    assert shape("layers.11.q") == ([4, 4, 4, 4], 3, 2)
    assert shape("layers.1.v") == ([4, 4, 4, 4], 1, 2)
    assert shape("layers.1.k") == ([16, 16], 3, 2)


def test_the_three_scalings():
    def scale(scaling):
        config = TTLoraConfig(alpha=6, scaling=scaling, shape=[4, 4, 4, 4], r=[4, 9, 3])
        return resolve_update(config, "q", 16, 16).scale

    assert (scale("alpha"), scale("alpha/r"), scale("alpha/sqrt(r)")) == (6, 6 / 9, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shape": [16, 15]}, r"layer.q: shape \[16, 15\] has the product 240, .* 16 x 16 .* 256"),
        ({"shape": [4, 4, 16], "r": [2]}, r"layer.q: r=\[2\] has 1 ranks"),
        ({"weight_sizes": {"q": [16, 32]}}, "layer.q is 16 x 16, but this adapter .* 16 x 32"),
        # what it would take is said, and nothing is taken
        ({"shape": [16, *[1] * 200, 16], "r": 10**9}, "51,712 parameters"),
    ],
)
def test_a_shape_that_does_not_fit_names_the_module(config, message):
    with pytest.raises(ValueError, match=message):
        resolve_update(TTLoraConfig(**config), "layer.q", 16, 16)


def test_an_absurd_shape_is_refused_before_it_takes_memory():
    layer = nn.Linear(2**14, 2**14, device="meta")
    config = TTLoraConfig(target_modules=["0"], shape=[2**14, *[1] * 250, 2**14], r=2**30)
    with pytest.raises(ValueError, match="67,645,734,912 parameters"):
        get_peft_model(nn.Sequential(layer), config)


class TestWrittenShapes:
    def write(self, config, **sizes):
        sizes = {name.replace("__", "."): list(size) for name, size in sizes.items()}
        shapes = {name: TTShape.build(rows, columns, r=config.r) for name, (rows, columns) in sizes.items()}
        write_shapes(config, shapes, sizes, dict.fromkeys(shapes, "linear"))
        return shapes

    def test_one_shape_for_all(self):
        config = TTLoraConfig()
        self.write(config, a__q=(16, 16), b__q=(16, 16))
        assert config.shape == list(TTShape.build(16, 16).dims)
        assert config.shape_pattern == {}
        assert config.weight_sizes == {"q": [16, 16]}

    def test_shapes_by_the_last_part_of_the_name(self):
        config = TTLoraConfig()
        self.write(config, a__q=(16, 16), a__v=(8, 16), b__q=(16, 16), b__v=(8, 16))
        assert config.weight_sizes == {"q": [16, 16], "v": [8, 16]}
        assert config.shape_pattern.keys() == {"q", "v"}

    def test_shapes_by_the_whole_name_where_the_last_part_does_not_tell(self):
        config = TTLoraConfig()
        shapes = self.write(config, l__0__q=(16, 16), l__1__q=(8, 16), l__10__q=(32, 16), v=(4, 4), l__0__v=(4, 4))
        for name, shape in shapes.items():
            assert resolve_update(config, name, shape.out_features, shape.in_features).shape == shape
        with pytest.raises(ValueError, match="was made for a model in which it is 8 x 16"):
            resolve_update(config, "l.1.q", 16, 16)

    def test_a_name_that_another_one_ends_with(self, tmp_path):
        config = TTLoraConfig()
        shapes = self.write(config, fc=(16, 16), layer__fc=(8, 16), v=(4, 4))
        # as saved, in the order of the alphabet
        config.save_pretrained(tmp_path)
        saved = TTLoraConfig.from_pretrained(tmp_path)
        assert {name: saved_update(saved, name).shape for name in shapes} == shapes

    def test_shapes_that_were_given_stay_as_they_are(self):
        config = TTLoraConfig(shape=[4, 4, 16], shape_pattern={"v": [8, 16]})
        self.write(config, q=(16, 16), v=(8, 16))
        assert (config.shape, config.shape_pattern) == ([4, 4, 16], {"v": [8, 16]})


def test_one_config_serves_models_of_different_sizes(tmp_path):
    config = TTLoraConfig(target_modules=["0"])
    models = [get_peft_model(nn.Sequential(nn.Linear(n, 24)), config) for n in (16, 40, 16)]
    for n, model in zip((16, 40, 16), models, strict=True):
        layer = model.base_model.model[0]
        assert layer.ttlora_update["default"].shape == TTShape.build(24, n, r=config.r)
        model.save_pretrained(tmp_path / str(n))
        saved = TTLoraConfig.from_pretrained(tmp_path / str(n))
        assert saved.shape == list(TTShape.build(24, n).dims)
        assert saved.weight_sizes == {"0": [24, n]}


class TestRegistration:
    def test_peft_knows_the_method(self):
        assert PEFT_TYPE_TO_CONFIG_MAPPING["TTLORA"] is TTLoraConfig
        assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("TTLORA")] is ttlora.TTLoraModel

    def test_the_type_is_a_real_member(self):
        member = TTLoraConfig().peft_type
        assert isinstance(member, PeftType)
        assert member is PeftType("TTLORA") is PeftType["TTLORA"] is PeftType.TTLORA  # type: ignore[attr-defined]
        assert member == "TTLORA"
        assert (member.name, member.value) == ("TTLORA", "TTLORA")
        assert list(PeftType).count(member) == 1
        assert copy.deepcopy(member) is pickle.loads(pickle.dumps(member)) is member
        assert json.dumps(member) == '"TTLORA"'

    def test_adding_it_again_changes_nothing(self):
        members = list(PeftType)
        assert add_peft_type("TTLORA") is PeftType("TTLORA")
        assert add_peft_type("LORA") is PeftType.LORA
        assert list(PeftType) == members

    def test_importing_again_registers_nothing_twice(self):
        before = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
        importlib.reload(importlib.import_module("ttlora.tuners.tt_lora"))
        importlib.reload(ttlora)
        assert before == PEFT_TYPE_TO_CONFIG_MAPPING
        assert peft.PeftType is PeftType
