import json

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from torch import nn

from ttlora import BottleneckConfig, BottleneckModel
from ttlora.tuners.bottleneck.config import resolve_trains, write_shape


def dims(config, outputs=768, name="layer.dense"):
    """The dims of `down` and `up`."""
    return [list(update.shape.dims) for update in resolve_trains(config, name, outputs)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"r": 0}, "r=0 "),
        ({"r": 2.5}, "r=2.5 "),
        ({"r": True}, "r=True "),
        ({"r": 2**31}, "r=2147483648 "),
        ({"tt_rank": 0}, "tt_rank=0 "),
        ({"tt_rank": [5]}, r"tt_rank=\[5\] "),
        ({"shape": "automatic"}, "'automatic'"),
        ({"shape": [4, 0]}, r"\[4, 0\]"),
        ({"shape": {"768": [4, "a"]}}, r"\[4, 'a'\]"),
        ({"shape": None}, "shape has None"),
        ({"shape": [1] * 1000}, "1,000 dims"),
        ({"core_size": 0}, "core_size=0 "),
        ({"non_linearity": "softmax"}, "non_linearity='softmax' is not one of gelu, relu, silu, tanh"),
        ({"scale": float("nan")}, "scale=nan "),
        ({"scale": "learned"}, "scale='learned' "),
        ({"init_weights": "paper"}, "init_weights='paper' "),
        ({"train_layer_norms": 1}, "train_layer_norms=1 "),
        ({"target_modules": "q.*", "layers_to_transform": [0]}, "layers_to_transform "),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "layers_to_transform, which is missing"),
        ({"task_type": "POETRY"}, "POETRY"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        BottleneckConfig(**wrong)
    assert "\n" not in str(error.value)


def test_peft_knows_the_method(tmp_path):
    assert peft.utils.PeftType("BOTTLENECK") is PeftType["BOTTLENECK"]
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("BOTTLENECK")] is BottleneckConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("BOTTLENECK")] is BottleneckModel
    config = BottleneckConfig(
        r=64, tt_rank=5, shape={768: [8, 8, 12, 8, 8]}, core_size=None, non_linearity="relu", scale=2.0,
        init_weights=False, train_layer_norms=False, target_modules=["dense"], exclude_modules=["pooler"],
        layers_to_transform=[0], layers_pattern="layer", modules_to_save=["head"], task_type="SEQ_CLS",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert BottleneckConfig.from_pretrained(tmp_path) == config
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert get_peft_config(config.to_dict()) == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"


class TestShapes:
    def test_dense_projections_have_none(self):
        assert resolve_trains(BottleneckConfig(), "dense", 768) is None

    def test_auto_is_lorettas_own_for_768_outputs(self):
        assert dims(BottleneckConfig(r=64, tt_rank=5)) == [[8, 8, 12, 8, 8][::-1], [8, 8, 12, 8, 8]]

    def test_down_has_the_dims_backwards(self):
        config = BottleneckConfig(r=64, tt_rank=5, shape=[16, 16, 16, 4, 4, 4])
        assert dims(config, 4096) == [[4, 4, 4, 16, 16, 16], [16, 16, 16, 4, 4, 4]]
        down, up = resolve_trains(config, "down_proj", 4096)
        assert (down.shape.out_features, down.shape.in_features) == (64, 4096)
        assert (up.shape.out_features, up.shape.in_features) == (4096, 64)
        # both split between rows and columns, and neither bond is wider than it can be
        assert (down.shape.boundary, up.shape.boundary) == (3, 3)
        assert down.shape.ranks == up.shape.ranks[::-1] == (1, 4, 5, 5, 5, 5, 1)

    def test_dims_by_number_of_outputs(self):
        config = BottleneckConfig(r=4, tt_rank=2, shape={24: [2, 12, 4], 40: "auto"})
        assert dims(config, 24)[1] == [2, 12, 4]
        assert dims(config, 40)[1][-1] == 4
        with pytest.raises(ValueError, match=r"layer.dense has 768 outputs, but shape has dims for 24, 40 alone"):
            dims(config, 768)

    @pytest.mark.parametrize(
        ("config", "outputs", "message"),
        [
            ({"r": 97}, 24, "layer.dense: r=97 is more than 4 times its 24 outputs"),
            ({"tt_rank": 5, "shape": [8, 8, 12, 8, 7]}, 768, r"layer.dense: shape .* the 768 x 8 matrix"),
            # what it would take is said, and nothing is taken
            ({"tt_rank": 10**9, "shape": [768, *[1] * 200, 8]}, 768, "19,008 parameters for .* of 6,144 entries"),
        ],
    )
    def test_what_does_not_fit_names_the_module(self, config, outputs, message):
        with pytest.raises(ValueError, match=message):
            resolve_trains(BottleneckConfig(**config), "layer.dense", outputs)

    def test_an_absurd_size_is_refused_before_it_takes_memory(self):
        layer = nn.Linear(2**14, 2**14, device="meta")
        for config in ({"r": 2**30}, {"r": 2**15, "tt_rank": 2**30, "shape": [2**14, *[1] * 200, 2**15]}):
            with pytest.raises(ValueError, match=r"0: .* lower"):
                get_peft_model(nn.Sequential(layer), BottleneckConfig(target_modules=["0"], **config))


class TestWrittenShape:
    def test_one_shape_for_all(self):
        config = BottleneckConfig(tt_rank=5)
        write_shape(config, {768: (8, 8, 12, 8)})
        assert config.shape == [8, 8, 12, 8]

    def test_a_shape_for_each_number_of_outputs(self):
        config = BottleneckConfig(tt_rank=5)
        write_shape(config, {24: (4, 6, 8), 40: (5, 8, 8)})
        assert config.shape == {"24": [4, 6, 8], "40": [5, 8, 8]}

    def test_what_was_asked_for_stays(self):
        config = BottleneckConfig(tt_rank=5, shape=[4, 6, 8])
        write_shape(config, {24: (24, 8)})
        assert config.shape == [4, 6, 8]

    def test_in_the_adapters_config_and_not_in_the_one_given(self, mlp):
        given = BottleneckConfig(tt_rank=2, r=4, target_modules=["0", "2"])
        model = get_peft_model(mlp(), given)
        assert model.peft_config["default"].shape == {"24": dims(given, 24)[1], "8": dims(given, 8)[1]}
        assert given.shape == "auto"
        # so that it serves for a model of other sizes
        other = get_peft_model(nn.Sequential(nn.Linear(16, 30), nn.Linear(30, 36), nn.Linear(36, 6)), given)
        assert other(torch.ones(1, 16)).shape == (1, 6)

    def test_not_for_dense_projections(self, mlp):
        model = get_peft_model(mlp(), BottleneckConfig(r=4, target_modules=["0", "2"]))
        assert model.peft_config["default"].shape == "auto"
