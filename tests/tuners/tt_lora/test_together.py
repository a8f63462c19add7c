"""Factors that are built for the whole model at once do what those do that each layer builds."""

from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from ttlora import TTLoraConfig
from ttlora.tensor_train import Update
from ttlora.tuners.tt_lora.factors import BuiltFactors, built_factors
from ttlora.tuners.tt_lora.layer import TTLoraLayer


@pytest.fixture
def model(architectures):
    config = TTLoraConfig(target_modules=["query", "value", "dense"], init_weights=False, task_type="SEQ_CLS")
    return get_peft_model(architectures["bert"].build(), config)


@pytest.fixture
def inputs(architectures):
    return architectures["bert"].inputs


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, TTLoraLayer)]


def gradients(model, logits):
    logits.square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def counted(monkeypatch):
    calls = []
    original = Update.factors

    def counting(self, flat, dtype=None):
        calls.append(flat.shape)
        return original(self, flat, dtype)

    monkeypatch.setattr(Update, "factors", counting)
    return calls


def test_one_contraction_a_shape_and_the_layers_own_results(model, inputs, monkeypatch):
    apart = model.base_model.model(**inputs).logits
    expected = gradients(model, apart)
    calls = counted(monkeypatch)
    together = model(**inputs).logits
    shapes = {layer.ttlora_update["default"] for layer in layers_of(model)}
    assert len(calls) == len(shapes) < len(layers_of(model))
    assert sum(shape[0] for shape in calls) == len(layers_of(model))
    torch.testing.assert_close(together, apart)
    found = gradients(model, together)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_nothing_is_left_behind(model, inputs):
    model(**inputs)
    with pytest.raises(ValueError, match="input_ids"):
        model()
    assert built_factors() == BuiltFactors()


def test_what_is_built_without_a_graph_is_not_learned_from(model, inputs):
    # a frozen body around a part that learns
    body = model.base_model.model.bert

    def learning(*args, original=body.encoder.forward, **kwargs):
        with torch.enable_grad():
            return original(*args, **kwargs)

    body.encoder.forward = learning
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
    hidden.sum().backward()
    assert all(layer.ttlora_cores["default"].grad is not None for layer in layers_of(body.encoder))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("shape", ["auto", [4, 9, 4, 4]])
def test_checkpoints_of_the_users_own(architectures, inputs, shape, use_reentrant):
    # of the second shape, rows and columns share a core
    config = TTLoraConfig(target_modules=["query", "value"], shape=shape, r=3, init_weights=False, task_type="SEQ_CLS")
    model = get_peft_model(architectures["bert"].build(), config)
    expected = gradients(model, model(**inputs).logits)
    for layer in model.base_model.model.bert.encoder.layer:
        original = layer.forward
        layer.forward = lambda *args, original=original, **kwargs: checkpoint(
            partial(original, **kwargs), *args, use_reentrant=use_reentrant
        )
    model.enable_input_require_grads()
    found = gradients(model, model(**inputs).logits)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_several_active_adapters(architectures, inputs):
    options = {"target_modules": ["query", "value"], "init_weights": False}
    model = get_peft_model(architectures["bert"].build(), TTLoraConfig(**options))
    model.add_adapter("other", TTLoraConfig(r=2, **options))
    model.base_model.set_adapter(["default", "other"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, model.base_model.model(**inputs).logits)
        model.base_model.set_adapter(["default"])
        alone = model(**inputs).logits
        model.base_model.set_adapter(["default", "other"])
        assert not torch.allclose(model(**inputs).logits, alone)


def test_a_mixed_batch_is_built_at_once(model, inputs, monkeypatch):
    config = TTLoraConfig(target_modules=["query", "value", "dense"], init_weights=False, task_type="SEQ_CLS")
    model.add_adapter("other", config)
    model.eval()
    expected = {}
    with torch.no_grad():
        for name in ("default", "other"):
            model.set_adapter(name)
            expected[name] = model(**inputs).logits
        calls = counted(monkeypatch)
        names = ["other", "default", "other"]
        mixed = model(**inputs, adapter_names=names).logits
        shapes = {layer.ttlora_update["default"] for layer in layers_of(model)}
        assert len(calls) == len(shapes)
        torch.testing.assert_close(mixed, torch.stack([expected[name][row] for row, name in enumerate(names)]))
        one = model(**inputs, adapter_names=["other", "__base__", "__base__"]).logits
        torch.testing.assert_close(one[0], expected["other"][0])


def test_a_generation_builds_once(architectures, monkeypatch):
    config = TTLoraConfig(init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(architectures["llama"].config), config)
    calls = counted(monkeypatch)
    ids = torch.randint(3, 60, (2, 4))
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert len(calls) == len({layer.ttlora_update["default"] for layer in layers_of(model)})
