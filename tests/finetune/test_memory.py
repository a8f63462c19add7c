"""Training in little memory: parts of a batch, activations computed again, quantised bases, and what is refused."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.finetune.test_losses import KINDS, recipe_for
from ttlora.errors import RunError, UserError
from ttlora.finetune import quantized
from ttlora.finetune.base import load_base
from ttlora.finetune.data import load_data
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.methods import find_method
from ttlora.finetune.run import train
from ttlora.finetune.trainer import TaskTrainer

LEARNS = {"learning_rate": 0.01, "epochs": 2}


def losses(recipe) -> list[float]:
    train(recipe, quiet=True)
    with open(f"{recipe.output}/log.jsonl", encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    return [entry[name] for entry in entries for name in ("loss", "validation_loss") if name in entry]


def recipe_of(llama32, tmp_path, name, kind="classes", **keys):
    return replace(recipe_for(llama32, tmp_path, kind, 8), **{**LEARNS, "output": str(tmp_path / name), **keys})


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_once_change_no_loss(kind, llama32, tmp_path):
    """Also where rows have different numbers of tokens, and the last batches are not full."""
    whole = losses(recipe_of(llama32, tmp_path, "whole", kind))
    assert len(whole) > 4
    assert losses(recipe_of(llama32, tmp_path, "parts", kind, rows_at_once=2)) == pytest.approx(whole, rel=1e-5)


def test_gradient_accumulation_says_the_same_in_another_way(llama32, tmp_path):
    parts = losses(recipe_of(llama32, tmp_path, "parts", rows_at_once=2))
    assert losses(recipe_of(llama32, tmp_path, "four", gradient_accumulation=4)) == parts


def test_activations_that_are_computed_again_change_no_loss(llama32, tmp_path):
    whole = losses(recipe_of(llama32, tmp_path, "whole", "text"))
    again = losses(recipe_of(llama32, tmp_path, "again", "text", gradient_checkpointing=True))
    assert again == pytest.approx(whole, rel=1e-6)


class TestRowsThatFit:
    @pytest.fixture
    def tight(self, monkeypatch):
        """Memory for a few rows alone."""

        def limit(most: int):
            original = TaskTrainer.training_step

            def step(self, model, inputs, *options):
                if len(inputs["labels"]) > most:
                    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
                return original(self, model, inputs, *options)

            monkeypatch.setattr(TaskTrainer, "training_step", step)

        return limit

    def test_are_found_by_halving(self, llama32, tmp_path, tight, capsys):
        expected = losses(recipe_of(llama32, tmp_path, "expected", rows_at_once=2))
        tight(3)
        recipe = recipe_of(llama32, tmp_path, "found", rows_at_once="auto")
        train(recipe)
        told = capsys.readouterr().err
        assert "memory ran out: going on with 4 rows at once\n" in told
        assert "memory ran out: going on with 2 rows at once\n" in told
        assert "with 1 rows" not in told
        with open(f"{recipe.output}/log.jsonl", encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
        found = [entry[name] for entry in entries for name in ("loss", "validation_loss") if name in entry]
        assert found == expected

    def test_may_be_none(self, llama32, tmp_path, tight):
        tight(0)
        with pytest.raises(RunError, match="out of memory"):
            train(recipe_of(llama32, tmp_path, "none", rows_at_once="auto"), quiet=True)

    def test_are_not_looked_for_unasked(self, llama32, tmp_path, tight, capsys):
        tight(3)
        with pytest.raises(RunError, match="out of memory: set `rows_at_once` to auto"):
            train(recipe_of(llama32, tmp_path, "unasked"))
        assert "going on" not in capsys.readouterr().err


class TestQuantized:
    @pytest.mark.parametrize(("bits", "kind"), [("4bit", "classes"), ("8bit", "text")])
    def test_trains_and_is_measured_again(self, wide, tmp_path, capsys, bits, kind):
        pytest.importorskip("bitsandbytes")
        recipe = recipe_of(wide, tmp_path, "out", kind, quantize=bits, dtype="float32")
        whole = sum(weight.numel() for weight in LlamaForCausalLM.from_pretrained(wide).parameters())
        record = train(recipe)
        frozen = whole - (0 if kind == "text" else LlamaForCausalLM.from_pretrained(wide).lm_head.weight.numel())
        assert f"{frozen:,} are frozen" in capsys.readouterr().err
        finished = FinishedRun.load(recipe.output)
        kinds = {type(module).__name__ for module in finished.objective.base.model.modules()}
        assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in kinds
        assert finished.evaluate().validation_loss == pytest.approx(record.validation_loss, rel=1e-5)

    def test_gradients_after_an_inference(self, wide, tmp_path):
        """Some processors pack the weights when they infer, and pass no gradient through them then."""
        pytest.importorskip("bitsandbytes")
        recipe = recipe_of(wide, tmp_path, "out", "text", quantize="4bit", dtype="float32")
        method = find_method(recipe.method)
        recipe = method.complete(recipe)
        model = method.adapt(load_base(recipe.model, load_data(recipe).task, form=method.form(recipe)), recipe).model
        ids = torch.arange(8)[None]

        def norm() -> float:
            model.train()
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            return sum(weight.grad.norm().item() for weight in model.parameters() if weight.grad is not None)

        before = norm()
        with torch.no_grad():
            model.eval()(input_ids=ids)
        assert norm() == pytest.approx(before, rel=1e-5)
        assert before > 0

    def test_needs_a_library(self, wide, tmp_path, monkeypatch):
        found = importlib.util.find_spec
        hidden = ("bitsandbytes", "torchao")
        monkeypatch.setattr(quantized, "find_spec", lambda name: None if name in hidden else found(name))
        with pytest.raises(UserError, match="`quantize` 4bit needs bitsandbytes, which is not installed"):
            train(recipe_of(wide, tmp_path, "out", quantize="4bit"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("method", ["full", "head", "bitfit"])
    def test_needs_a_method_with_an_adapter(self, wide, tmp_path, method):
        with pytest.raises(UserError, match=f"`quantize` is 4bit, and method {method} trains"):
            train(recipe_of(wide, tmp_path, "out", quantize="4bit", method=method))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rows_at_once": 3}, "`rows_at_once` is 3, and does not divide `batch_size` 8"),
        ({"gradient_accumulation": 5}, "`gradient_accumulation` is 5, and does not divide `batch_size` 8"),
        ({"gradient_accumulation": 2, "rows_at_once": 4}, "say the same in two ways"),
        ({"rows_at_once": "most"}, "`rows_at_once` is 'most', and has to be a whole number or auto"),
        ({"rows_at_once": 0}, "`rows_at_once` is 0, and has to be at least 1"),
        ({"optimizer": "adamw_torhc"}, "`optimizer` is 'adamw_torhc'.*did you mean adamw_torch\\?"),
        ({"optimizer": "lomo"}, "`optimizer` lomo cannot be used: .*lomo"),
        ({"attention": "flash"}, "model .* cannot be loaded for classification: .*flash"),
        ({"method": "full", "dtype": "bfloat16"}, "`dtype` is bfloat16, and method full needs float32"),
        (
            {"method": "prefix", "gradient_checkpointing": True},
            "`gradient_checkpointing` does not go with method",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(llama32, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        train(recipe_of(llama32, tmp_path, "out", **keys), quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_held_in_the_dtype(llama, tmp_path, dtype):
    recipe = recipe_of(llama, tmp_path, "out", dtype=dtype, optimizer="adafactor", scheduler="cosine", epochs=1)
    train(recipe, quiet=True)
    model = FinishedRun.load(recipe.output).objective.base.model
    assert model.dtype == getattr(torch, dtype)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert find_method("full").form(recipe).dtype == getattr(torch, dtype)
