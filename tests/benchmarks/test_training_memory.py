"""The memory that a training takes, held against the bytes that are alive when it really runs."""

import json

import memory
import pytest
import step
import torch
from contestants import adapted, encoder, llama
from transformers import BertConfig, LlamaConfig

from ttlora import TTLoraConfig
from ttlora.cli.main import main
from ttlora.errors import UserError
from ttlora.planner.plan import plan

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 160}


@pytest.fixture(params=["bert", "llama"])
def model(request):
    return encoder(torch.float32, **SIZES) if request.param == "bert" else llama(torch.float32, **LLAMA)


@pytest.fixture
def folder(model, tmp_path):
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", ["default", "query and value"])
def test_it_is_what_a_real_step_takes(model, folder, adapter, checkpointing):
    is_llama = model.config.model_type == "llama"
    places = {"targets": ["q_proj", "v_proj"] if is_llama else ["query", "value"], "r": 5}
    size = {"batch_size": 6, "max_length": 40, "dtype": "float32"}
    asked = {**size, **({} if adapter == "default" else places), "gradient_checkpointing": checkpointing}
    planned = plan(folder, **asked).training
    step.contestants(model)  # which makes the backward go down to the embeddings
    # as `train` has it
    options = {} if is_llama else {"task_type": "SEQ_CLS", "modules_to_save": ["pooler", "classifier"]}
    if adapter != "default":
        options |= {"target_modules": places["targets"], "r": places["r"]}
    contestant = adapted(model, TTLoraConfig(**options))
    if checkpointing:
        contestant.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(96, (6, 40))
    labels = ids if is_llama else torch.zeros(6, dtype=torch.long)
    real = memory.peak_bytes(contestant, step.step(contestant, {"input_ids": ids, "labels": labels}))
    assert planned.gradients + planned.optimizer + planned.activations == pytest.approx(real, rel=0.1)
    learned = sum(weight.numel() for weight in contestant.parameters() if weight.requires_grad)
    assert (planned.gradients, planned.optimizer) == (4 * learned, 8 * learned)
    known = {weight.data_ptr(): weight.nbytes for weight in [*contestant.parameters(), *contestant.buffers()]}
    assert planned.weights == pytest.approx(sum(known.values()), rel=0.02)


def test_checkpointing_and_shorter_rows_take_less(folder):
    size = {"batch_size": 4, "dtype": "float32"}
    whole = plan(folder, max_length=48, **size).training
    again = plan(folder, max_length=48, gradient_checkpointing=True, **size).training
    assert again.activations < whole.activations
    assert plan(folder, max_length=24, **size).training.activations < whole.activations
    half = plan(folder, batch_size=4, max_length=48, dtype="bfloat16").training
    assert half.weights < 0.7 * whole.weights
    assert half.activations < whole.activations


@pytest.mark.parametrize(("bits", "each"), [("4bit", 0.5), ("8bit", 1.0)])
def test_quantised_weights(tmp_path, bits, each):
    config = LlamaConfig(**{**LLAMA, "hidden_size": 128, "intermediate_size": 512}, architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path)
    linear = 3 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 512 * 128)
    whole, less = (plan(tmp_path, batch_size=1, quantize=q).training for q in (None, bits))
    assert whole.weights - less.weights == pytest.approx((2 - each) * linear, rel=0.03)


def test_rows_are_no_longer_than_the_model_takes(tmp_path):
    BertConfig(**SIZES, max_position_embeddings=32, architectures=["BertForSequenceClassification"]).save_pretrained(
        tmp_path
    )
    assert plan(tmp_path, max_length=100).training.max_length == 32


def test_nothing_is_told_unasked(folder):
    assert plan(folder).training is None


@pytest.mark.parametrize(("memory", "fits"), [("1GB", True), ("1MB", False)])
def test_the_command(folder, capsys, memory, fits):
    assert main(["plan", "--model", folder, "--batch-size", "8", "--memory", memory]) == 0
    shown = capsys.readouterr().out
    assert "training in float32, 8 x 128 tokens at a time:" in shown or "training in bfloat16, 8 x 128" in shown
    assert ("which fits into" if fits else "which does not fit into") in shown
    assert main(["plan", "--model", folder, "--batch-size", "8", "--memory", memory, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["training"]
    assert told["fits"] is fits
    assert told["total"] == sum(told[name] for name in ("weights", "gradients", "optimizer", "activations"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0, and has to be at least 1"),
        ({"max_length": -1}, "`max_length` is -1"),
        ({"memory": "24"}, "`memory` is 24 bytes, in which no model trains: write 24GB"),
        ({"memory": "much"}, "`memory` 'much' is no size"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        plan("roberta-base", **keys)


def test_a_budget_plans_its_own_adapter(folder):
    small = plan(folder, budget="2KB", batch_size=2).training
    assert small.gradients < plan(folder, batch_size=2).training.gradients
