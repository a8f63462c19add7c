"""accelerate's hooks: what lies elsewhere is brought when a layer is called, and goes again."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.ecosystem.conftest import logits, train
from ttlora import TTLoraConfig

CPU = torch.device("cpu")


@pytest.fixture
def load(llama):
    return lambda **options: AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, **options)


@pytest.fixture
def adapter(load, random_update, tmp_path):
    """A saved adapter, and what the model says with it."""
    model = get_peft_model(load(), random_update())
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(model)


def test_a_model_with_its_adapter_is_offloaded(load, adapter):
    folder, expected = adapter
    model = PeftModel.from_pretrained(load(), folder)
    cpu_offload(model, execution_device=CPU)
    for _ in range(2):
        assert all(parameter.is_meta for parameter in model.parameters())
        torch.testing.assert_close(logits(model), expected)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(load()))


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_dispatched_model(load, adapter, place, tmp_path):
    folder, expected = adapter
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": place, "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    base = dispatch_model(load(), places, main_device="cpu", offload_dir=str(tmp_path / "disk"), force_hooks=True)
    model = PeftModel.from_pretrained(base, folder, offload_folder=str(tmp_path / "adapter-disk"))
    torch.testing.assert_close(logits(model), expected)


def test_it_trains_while_the_base_layers_are_offloaded(load):
    def adapted():
        torch.manual_seed(0)
        return get_peft_model(load(), TTLoraConfig())

    model = adapted()
    for name, module in model.named_modules():
        if name.endswith("base_layer"):
            cpu_offload(module, execution_device=CPU)
            assert module.weight.is_meta
    assert train(model) == pytest.approx(train(adapted()), abs=1e-4)


def test_hooks_of_base_layers_are_respected(load, random_update):
    model = get_peft_model(load(), random_update())
    called = []

    class Note(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            called.append("before")
            return args, kwargs

        def post_forward(self, module, output):
            called.append("after")
            return output + 1

    plain = logits(model)
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    add_hook_to_module(layer.base_layer, Note())
    assert not torch.allclose(logits(model), plain)
    assert called == ["before", "after"]


def test_a_model_that_is_made_on_the_meta_device_takes_its_weights_later(load, random_update):
    full = get_peft_model(load(), random_update())
    config = load().config
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(empty, random_update())
    assert all(p.is_meta for p in model.parameters())
    model.load_state_dict(full.state_dict(), assign=True)
    assert not any(p.is_meta for p in model.parameters())
    model.base_model.model.model.rotary_emb = load().model.rotary_emb  # computed, never saved
    assert torch.equal(logits(model), logits(full))
