import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from ttlora import LorettaRepConfig
from ttlora.adapters.base_model import load_base_of
from ttlora.adapters.merge import merge_adapter
from ttlora.adapters.read import read_adapter
from ttlora.tensor_train import TTShape
from ttlora.tensor_train import shape as shape_module

RANDOM = {"init_weights": False}


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def trained(architecture, **config):
    model = get_peft_model(architecture.build(), LorettaRepConfig(**{**RANDOM, **config}))
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"r": 3, "tt_rank": 2, "alpha": 5, "core_size": None, "train_layer_norms": False},
        {"shape": {"24": [4, 4, 3, 4]}, "task_type": "SEQ_CLS", "dropout": 0.1, "r": 8},
    ],
)
def test_logits_are_the_same_to_the_bit(architectures, config, tmp_path):
    bert = architectures["bert"]
    model = trained(bert, **config)
    expected = logits(model, bert.inputs)
    model.save_pretrained(tmp_path)
    assert not torch.equal(logits(bert.build(), bert.inputs), expected)
    loaded = PeftModel.from_pretrained(bert.build(), tmp_path)
    assert torch.equal(logits(loaded, bert.inputs), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    again = PeftModel.from_pretrained(bert.build(), tmp_path, is_trainable=True)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == names


def test_the_folder_holds_one_vector_a_layer_and_the_norms(architectures, tmp_path):
    bert = architectures["bert"]
    trained(bert).save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
    cores = {key for key in keys if key.endswith((".query.loretta_rep_cores", ".value.loretta_rep_cores"))}
    assert len(cores) == bert.queries_and_values
    # weight and bias of one norm behind the embeddings and two in each layer
    assert {key.rpartition(".")[2] for key in keys - cores} == {"weight", "bias"}
    assert len(keys - cores) == 2 * (1 + 2 * 2)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["shape"] == {"24": list(TTShape.build(24, 8).dims)}
    assert saved["weight_sizes"] == {"query": [24, 24], "value": [24, 24]}


def test_a_later_choice_of_auto_changes_no_saved_adapter(architectures, tmp_path, monkeypatch):
    llama = architectures["llama"]
    model = trained(llama)
    expected = logits(model, llama.inputs)
    model.save_pretrained(tmp_path)

    build = TTShape.build

    def choose_otherwise(out_features, in_features, dims="auto", r=5):
        return build(out_features, in_features, [out_features, in_features] if dims == "auto" else dims, r)

    monkeypatch.setattr(shape_module.TTShape, "build", choose_otherwise)
    assert len(get_peft_model(llama.build(), LorettaRepConfig()).peft_config["default"].shape["24"]) == 2
    assert torch.equal(logits(PeftModel.from_pretrained(llama.build(), tmp_path), llama.inputs), expected)


def test_adapters_of_different_shapes_side_by_side(architectures, tmp_path):
    bert, expected = architectures["bert"], {}
    for name, config in {"one": {}, "two": {"r": 3, "tt_rank": 2, "alpha": 9}}.items():
        model = trained(bert, **config)
        expected[name] = logits(model, bert.inputs)
        model.save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(bert.build(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert torch.equal(logits(model, bert.inputs), expected[name])


def test_transformers_own_adapters(architectures, tmp_path):
    llama = architectures["llama"]
    llama.build().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.add_adapter(LorettaRepConfig(**RANDOM))
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    expected = logits(model, llama.inputs)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(loaded, llama.inputs), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(llama.build(), tmp_path / "adapter"), llama.inputs), expected)
    loaded.disable_adapters()
    assert torch.equal(logits(loaded, llama.inputs), logits(llama.build(), llama.inputs))


class TestWhatCannotBeLoaded:
    @pytest.fixture
    def saved(self, mlp, tmp_path):
        get_peft_model(mlp(), LorettaRepConfig(target_modules=["0", "2"], r=4)).save_pretrained(tmp_path)
        return tmp_path

    def test_an_adapter_of_a_model_of_other_sizes(self, saved):
        other = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8))
        with pytest.raises(ValueError, match=r"0 is 48 x 16, but this adapter was made for a model .* 24 x 16"):
            PeftModel.from_pretrained(other, saved)

    @pytest.mark.parametrize("wrong", [{"r": 10**12}, {"tt_rank": -1}, {"shape": [0]}, {"weight_sizes": 1}])
    def test_a_config_of_nonsense(self, saved, mlp, wrong):
        edit_config(saved, **wrong)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PeftModel.from_pretrained(mlp(), saved)

    def test_a_shape_that_would_fill_the_memory(self, saved, mlp):
        edit_config(saved, shape={"24": [24, *[1] * 200, 4]}, tt_rank=2**30)
        with pytest.raises(ValueError, match=r"takes 3,[0-9,]+ parameters for a factor of 96 entries"):
            PeftModel.from_pretrained(mlp(), saved)


def test_the_commands_read_and_merge_it(architectures, tmp_path):
    bert = architectures["bert"]
    model = trained(bert, task_type="SEQ_CLS", r=4)
    expected = logits(model, bert.inputs)
    bert.build().save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert len(adapter.modules) == bert.queries_and_values
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in adapter.others} == {"LayerNorm", "classifier"}
    base, random = load_base_of(adapter, str(tmp_path / "base"), local_files_only=True)
    assert not random
    torch.testing.assert_close(logits(merge_adapter(adapter, base), bert.inputs), expected)
