"""One vector a group in the file, and a config that says the rest."""

import json
import re
import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from tests.tuners.shared.methods import layers_of, logits, random_model, relative
from ttlora.adapters.base_model import load_base_of
from ttlora.adapters.merge import merge_adapter
from ttlora.adapters.read import read_adapter
from ttlora.errors import UserError


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_logits_are_the_same_to_the_bit(architectures, kind, variant, low_cpu_mem_usage, tmp_path):
    some = architectures[kind]
    model = random_model(some, variant)
    expected = logits(model, some.inputs)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        loaded = PeftModel.from_pretrained(some.build(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        result = loaded.load_adapter(tmp_path, "again", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(logits(loaded, some.inputs), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.set_adapter("again")
    assert torch.equal(logits(loaded, some.inputs), expected)


def test_the_folder_holds_one_vector_a_group(architectures, make, tmp_path):
    llama = architectures["llama"]
    model = random_model(llama, make)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    path = r"base_model\.model\.model\.layers\.0\.self_attn\.[qv]_proj\.(meta_tt_train|lorta_factors)\.entries"
    assert all(re.fullmatch(path, key) for key in tensors)
    assert sum(map(torch.Tensor.numel, tensors.values())) == model.get_nb_trainable_parameters()[0]
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["weight_sizes"] == {
        f"model.layers.{layer}.self_attn.{name}": [size, 24]
        for layer in (0, 1)
        for name, size in (("q_proj", 24), ("v_proj", 12))
    }


def test_more_than_ten_layers(variant, tmp_path):
    """PEFT sorts a config, by which layer 10 comes before layer 2."""
    sizes = {"num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    config = BertConfig(hidden_size=8, max_position_embeddings=8, **sizes)

    def build():
        torch.manual_seed(0)
        return BertForSequenceClassification(config)

    inputs = {"input_ids": torch.arange(6)[None]}
    model = get_peft_model(build(), variant(init_weights=False, r=2))
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    assert torch.equal(logits(loaded, inputs), expected)
    deltas = {name: layer.get_delta_weight("default") for name, layer in layers_of(model).items()}
    for name, (A, B) in _factors_of(tmp_path).items():
        torch.testing.assert_close(B @ A, deltas[name])


def _factors_of(folder):
    adapter = read_adapter(folder)
    return {
        module: update.factors(adapter.entries(name))
        for name, updates in adapter.config.saved_groups().items()
        for module, update in updates.items()
    }


def test_state_dicts(bert, make):
    model, other = random_model(bert, make), random_model(bert, make, "other")
    expected = logits(model, bert.inputs)
    assert relative(logits(other, bert.inputs), expected) > 1e-3
    state = get_peft_model_state_dict(model)
    assert len(state) == 1
    result: Any = set_peft_model_state_dict(other, state, adapter_name="other")
    assert not result.unexpected_keys
    assert torch.equal(logits(other, bert.inputs), expected)


@pytest.mark.parametrize("name", ["0", "entries", "query", "weight"])
def test_adapters_may_be_called_as_parts_of_the_model_are(bert, make, name, tmp_path):
    model = random_model(bert, make)
    expected = logits(model, bert.inputs)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert.build(), tmp_path, adapter_name=name)
    assert torch.equal(logits(loaded, bert.inputs), expected)
    loaded.save_pretrained(tmp_path / "again", selected_adapters=[name])
    again = load_file(tmp_path / "again" / name / "adapter_model.safetensors")
    assert again.keys() == load_file(tmp_path / "adapter_model.safetensors").keys()


def test_adapters_of_different_shapes_side_by_side(bert, make, tmp_path):
    expected = {}
    for name, options in {"one": {}, "two": {"r": 3, "alpha": 9.0, "target_modules": ["key", "query"]}}.items():
        model = random_model(bert, make, **options)
        expected[name] = logits(model, bert.inputs)
        model.save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(bert.build(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert torch.equal(logits(model, bert.inputs), expected[name])


def test_training_goes_on_from_what_was_saved(bert, make, tmp_path):
    model = random_model(bert, make, task_type="SEQ_CLS", dropout=0.1)
    expected = logits(model, bert.inputs)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(bert.build(), tmp_path, is_trainable=True)
    assert torch.equal(logits(again, bert.inputs), expected)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == names
    assert any("classifier" in name for name in names)


def test_transformers_own_adapters(architectures, make, tmp_path):
    llama = architectures["llama"]
    llama.build().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.add_adapter(make(init_weights=False))
    expected = logits(model, llama.inputs)
    assert relative(logits(llama.build(), llama.inputs), expected) > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(loaded, llama.inputs), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(llama.build(), tmp_path / "adapter"), llama.inputs), expected)
    loaded.disable_adapters()
    assert torch.equal(logits(loaded, llama.inputs), logits(llama.build(), llama.inputs))


def test_a_model_without_a_wrapper(bert, make):
    model = random_model(bert, make)
    state = get_peft_model_state_dict(model)
    for given in (None, state):
        injected = inject_adapter_in_model(make(init_weights=False), bert.build(), state_dict=given)
        set_peft_model_state_dict(injected, state)
        torch.testing.assert_close(logits(injected, bert.inputs), logits(model, bert.inputs))


class TestWhatCannotBeLoaded:
    @pytest.fixture
    def saved(self, bert, make, tmp_path):
        random_model(bert, make).save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (
                "roberta",
                r"bert.encoder.layer.0.attention.self.query is no target, but this adapter was made for .* 24 x",
            ),
            ("llama", "the model has none of the modules that it adapts: query, value"),
        ],
    )
    def test_an_adapter_of_another_model(self, saved, architectures, kind, message):
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(architectures[kind].build(), saved)

    def test_a_model_with_more_layers(self, saved, bert):
        config = BertConfig(**{**bert.config.to_dict(), "num_hidden_layers": 3})
        with pytest.raises(
            ValueError, match=r"layer.2.attention.self.query is 24 x 24, but this adapter was .* is none"
        ):
            PeftModel.from_pretrained(BertForSequenceClassification(config), saved)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"r": 5}, r"the entries of 'bert.encoder.*query' have the sizes \[\d+\], but r=5 in the config has"),
            ({"weight_sizes": {}}, "the config does not say what it adapts"),
            ({"weight_sizes": {"a.0.b": [24, 24]}}, "query' has entries, and in the config they are those of a.0.b"),
            ({"weight_sizes": {"a": [1, 2, 3]}}, "weight_sizes="),
            ({"r": 2**30}, "is damaged|is no config"),
        ],
    )
    def test_a_config_that_was_changed(self, saved, changes, message):
        path = saved / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        with pytest.raises(UserError, match=message) as error:
            read_adapter(saved)
        assert "\n" not in str(error.value)


def test_the_commands_read_and_merge_it(bert, make, tmp_path):
    model = random_model(bert, make, task_type="SEQ_CLS")
    expected = logits(model, bert.inputs)
    bert.build().save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert list(adapter.modules) == ["bert.encoder.layer.0.attention.self.query"]
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in adapter.others} == {"classifier"}
    base, random = load_base_of(adapter, str(tmp_path / "base"), local_files_only=True)
    assert not random
    torch.testing.assert_close(logits(merge_adapter(adapter, base), bert.inputs), expected)
