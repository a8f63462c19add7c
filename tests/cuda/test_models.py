"""Whole models on the GPU: adapters beside each other, quantised bases, recomputed activations, compiled steps."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.cuda.devices import GPU, NEEDS_GPUS
from tests.ecosystem.conftest import cores_of, logits, train
from tests.ecosystem.test_compiled import output_and_gradients
from tests.tuners.tt_lora.test_model import layers_of, relative
from ttlora import TTLoraConfig
from ttlora.finetune.quantized import quantized

RANDOM = {"init_weights": False}
# of rows as long as a block that bitsandbytes quantises
SIZES = {"vocab_size": 24, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def model(device, ids):
    """A small causal model, built anew with the same weights each time."""

    def build(dtype=torch.float32, **sizes):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes})).to(device, dtype).eval()

    return build


def gradients(model, ids):
    model.zero_grad()
    model.train()(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_as_the_base_trains_and_comes_back(model, dtype, device, tmp_path):
    base = logits(model(dtype))
    adapted = get_peft_model(model(dtype), TTLoraConfig())
    assert torch.equal(logits(adapted), base)
    losses = train(adapted)
    assert losses[-1] < losses[0] - 0.05
    assert {(c.device.type, c.dtype) for c in cores_of(adapted).values()} == {(device, torch.float32)}
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model(dtype), tmp_path)
    assert {p.device.type for p in loaded.parameters()} == {device}
    torch.testing.assert_close(logits(loaded), expected)
    merged = adapted.merge_and_unload(safe_merge=True)
    assert relative(logits(merged).float(), expected.float()) < (1e-4 if dtype == torch.float32 else 2e-2)


def test_what_a_gpu_says_is_what_the_cpu_says(model, ids):
    adapted = get_peft_model(model(), TTLoraConfig(**RANDOM))
    on_gpu = gradients(adapted, ids)
    on_cpu = gradients(adapted.cpu(), ids.cpu())
    assert on_gpu.keys() == on_cpu.keys()
    for name, gradient in on_cpu.items():
        assert relative(on_gpu[name].cpu(), gradient) < 1e-3, name


def test_two_adapters_and_a_mixed_batch(model, ids):
    adapted = get_peft_model(model(), TTLoraConfig(**RANDOM), adapter_name="first")
    adapted.add_adapter("second", TTLoraConfig(r=5, alpha=9, **RANDOM))
    adapted.add_adapter("third", TTLoraConfig(**RANDOM))
    alone = {}
    for name in ("first", "second", "third"):
        adapted.set_adapter(name)
        alone[name] = logits(adapted)
    with adapted.disable_adapter():
        alone["__base__"] = logits(adapted)
    assert relative(alone["first"], alone["second"]) > 1e-3
    # of different shapes, and of one shape, which are stacked
    for names in (["second", "__base__", "first", "second"], ["third", "first", "first", "third"]):
        with torch.no_grad():
            mixed = adapted.eval()(ids, adapter_names=names).logits
        expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
        torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_change_no_gradient(model, ids, reentrant):
    plain = get_peft_model(model(torch.bfloat16), TTLoraConfig(**RANDOM))
    again = copy.deepcopy(plain)
    again.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again.enable_input_require_grads()
    expected, got = gradients(plain, ids), gradients(again, ids)
    assert all(relative(got[name], gradient) < 1e-2 for name, gradient in expected.items())


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_bases(model, device, bits, tmp_path):
    layers = pytest.importorskip("bitsandbytes.nn")
    model().save_pretrained(tmp_path / "base")
    options = {**quantized(bits, torch.bfloat16, ()), "device_map": {"": device}}

    def load():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
        for layer in loaded.modules():
            if isinstance(layer, layers.Linear4bit):
                # on some processors bitsandbytes would pack weights anew, and learn nothing of them
                layer.support_avx512bf16_for_cpu = False
        return loaded

    adapted = get_peft_model(load(), TTLoraConfig())
    kind = {"4bit": layers.Linear4bit, "8bit": layers.Linear8bitLt}[bits]
    assert all(type(layer.base_layer) is kind for layer in layers_of(adapted).values())
    torch.testing.assert_close(logits(adapted), logits(load()))
    losses = train(adapted)
    assert losses[-1] < losses[0] - 0.05
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(load(), tmp_path / "adapter")), expected)
    base, merged = logits(load()), adapted.merge_and_unload(safe_merge=True)
    assert not layers_of(merged)
    assert relative(logits(merged).float(), expected.float()) < 0.6 * relative(base.float(), expected.float())


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_compiled_step_is_one_graph_with_the_same_gradients(model, device, ids):
    adapted = get_peft_model(model(num_hidden_layers=1), TTLoraConfig(**RANDOM)).train()
    try:
        backend = "inductor" if device == "cuda" else "aot_eager"
        compiled = torch.compile(adapted, backend=backend, fullgraph=True)
        got, found = output_and_gradients(compiled, adapted, ids)
    finally:
        torch._dynamo.reset()
    expected, plain = output_and_gradients(adapted, adapted, ids)
    assert relative(got, expected) < 1e-3
    assert all(relative(found[name], gradient) < 1e-2 for name, gradient in plain.items())


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPUS)])
def test_the_replicas_of_data_parallel(model, ids):
    adapted = get_peft_model(model(), TTLoraConfig(**RANDOM))
    expected = logits(adapted)
    torch.testing.assert_close(logits(nn.DataParallel(adapted)), expected, rtol=1e-4, atol=1e-4)
