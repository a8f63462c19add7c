"""A loss is a mean over all rows or tokens: the same however the rows are divided into batches."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from tests.conftest import BAD, GOOD, PLAIN, write_jsonl
from ttlora.finetune.base import load_base
from ttlora.finetune.data import Split
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.measure import outputs_of
from ttlora.finetune.objectives import objective_of
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.finetune.tasks import Task
from ttlora.finetune.trainer import TaskTrainer, computing

KINDS = {
    "classes": {"text_column": "text"},
    "numbers": {"text_column": "text", "label_column": "number"},
    "choices by a head": {"text_column": "text", "label_kind": "choice", "choice_columns": "good,bad"},
    "classes by a prompt": {"text_column": "text", "scoring": "prompt", "answers": "0=dull 1='great and lovely film'"},
    "choices by a prompt": {
        "text_column": "text",
        "label_kind": "choice",
        "choice_columns": "good,bad",
        "scoring": "prompt",
    },
    "generation": {"text_column": "text", "label_column": "answer", "label_kind": "generation", "max_new_tokens": 2},
    "text": {"text_column": "text", "label_kind": "text"},
    "preference": {"text_column": "text", "label_kind": "preference", "choice_columns": "good,bad"},
}


def rows_of_many_lengths(count: int) -> list[dict]:
    return [
        {
            "text": " ".join(PLAIN[: 1 + number % 9]),
            "label": number % 2,
            "number": number + 0.5,
            "good": GOOD[number % 5],
            "bad": " ".join(BAD[: 1 + number % 4]),
            "answer": " ".join(GOOD[: 1 + number * number % 5]),
        }
        for number in range(count)
    ]


def recipe_for(model, tmp_path, kind, batch_size, **keys):
    rows = write_jsonl(tmp_path / "rows.jsonl", rows_of_many_lengths(21))
    files = {"train": str(rows), "validation": str(rows), "output": str(tmp_path / f"out-{batch_size}")}
    # a rate at which nothing is learned, so that the batches of the training make no difference
    rates = {"learning_rate": 1e-30, "adapter_dtype": "float32"}
    common = {"epochs": 1, "threads": 1, "max_length": 24, "batch_size": batch_size}
    return Recipe(model=str(model), task="file", **files, **rates, **common, **KINDS[kind], **keys)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_loss_does_not_depend_on_the_batch_size(kind, llama32, tmp_path):
    losses = {}
    for batch_size in (1, 8):
        recipe = recipe_for(llama32, tmp_path, kind, batch_size)
        record = train(recipe, quiet=True)
        lines = [json.loads(line) for line in (tmp_path / f"out-{batch_size}" / "log.jsonl").read_text().splitlines()]
        in_training = next(line["validation_loss"] for line in lines if "validation_loss" in line)
        again = FinishedRun.load(recipe.output).evaluate().validation_loss
        losses[batch_size] = [in_training, record.validation_loss, again]
    expected = losses[1][0]
    assert expected > 0.01
    for found in losses.values():
        assert found == pytest.approx([expected] * 3, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_the_same_alone_and_in_a_batch(side, llama, tmp_path):
    """GPT-2 counts positions from the first token of a batch's row, so that padding in front would move them."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=40, vocab_size=24, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((llama / file).read_bytes())
    base = load_base(str(tmp_path), Task("file", ("text",), labels=("a", "b")))
    base.tokenizer.padding_side = side
    texts = [("film",), ("the film was a story about house and its people",), ("the film",)]
    places = ["line 1", "line 2", "line 3"]
    recipe = Recipe(model="m", task="file", output="o", batch_size=3)
    objective = objective_of(Task("file", ("text",), labels=("a", "b")), base, recipe)
    together = outputs_of(objective, Split(texts, [0] * 3, places))
    for row, text in enumerate(texts):
        alone = outputs_of(objective, Split([text], [0], places[:1]))
        assert alone[0] == pytest.approx(together[row], abs=1e-5)
    assert abs(together[0] - together[1]).max() > 1e-3


def test_a_process_that_sees_several_gpus_uses_one(bert, tmp_path):
    base = load_base(str(bert), task := Task("file", ("text",), labels=("a", "b")))
    objective = objective_of(task, base, Recipe(model=str(bert), task="file", output="o"))
    arguments = TrainingArguments(str(tmp_path), **computing(objective))
    arguments._n_gpu = 2
    assert TaskTrainer(objective, arguments).args.n_gpu == 1
