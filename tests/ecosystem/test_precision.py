"""Half-precision bases, autocast and recomputed activations, in whole models that train."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.ecosystem.conftest import ATTENTION, IDS, cores_of, logits, train
from ttlora import TTLoraConfig

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def load(llama):
    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(llama, dtype=dtype)


def relative(got, expected):
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_base_trains_and_merges(load, dtype, tmp_path):
    base = logits(load(dtype))
    model = get_peft_model(load(dtype), TTLoraConfig())
    assert torch.equal(logits(model), base)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    assert {cores.dtype for cores in cores_of(model).values()} == {torch.float32}

    expected = logits(model)
    assert expected.dtype == dtype
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(load(dtype), tmp_path)), expected)
    merged = model.merge_and_unload(safe_merge=True)
    assert {p.dtype for p in merged.parameters()} == {dtype}
    assert relative(logits(merged), expected) < 0.2 * relative(base, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_trains_as_without(load, dtype):
    def losses(enabled):
        torch.manual_seed(0)
        model = get_peft_model(load(), TTLoraConfig())
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            return train(model), cores_of(model)

    (plain, _), (cast, cores) = losses(False), losses(True)
    assert cast != plain
    assert cast == pytest.approx(plain, abs=0.03)
    assert {c.dtype for c in cores.values()} == {torch.float32}


def gradients(model):
    model.zero_grad()
    model.train()(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.2}])
def test_recomputed_activations_change_no_gradient(load, random_update, reentrant, options):
    # equal to the bit: so it is at this rank, and at a rank of 2 the last bits of float32 differ
    plain = get_peft_model(load(), random_update(**ATTENTION, **options))
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # as PEFT's users do: the reentrant kind needs an input that asks for gradients
        checkpointed.enable_input_require_grads()
    calls = []
    for name, module in checkpointed.named_modules():
        if name.endswith("layers.0.self_attn"):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    expected = gradients(plain)
    torch.manual_seed(5)
    got = gradients(checkpointed)
    assert len(calls) == 2  # forward, and again for backward
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], gradient) for name, gradient in expected.items())


def test_autocast_and_recomputed_activations_together(load, random_update):
    plain = get_peft_model(load(), random_update())
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, got = gradients(plain), gradients(checkpointed)
    assert all(torch.equal(got[name], gradient) for name, gradient in expected.items())


def test_half_precision_logits_are_as_near_to_full_ones_as_loras(load, random_update):
    def error(config):
        torch.manual_seed(0)
        full = get_peft_model(load(), config)
        half = get_peft_model(load(torch.bfloat16), copy.deepcopy(config))
        half.load_state_dict(full.state_dict())
        return relative(logits(half), logits(full))

    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    assert error(random_update(**ATTENTION)) < 1.5 * error(lora)
