"""What a model says to rows, and how good that is."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from ttlora.finetune.base import Base
from ttlora.finetune.data import Split, collator, tokenise
from ttlora.finetune.metrics import measure_metrics
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task

Rows = list[dict[str, Any]]


def labelled_rows(split: Split, base: Base, recipe: Recipe, by_length: bool = False) -> Rows:
    """A split as token ids with labels.

    Args:
        split: Texts and labels.
        base: The model whose tokenizer is used.
        recipe: Says how many tokens a row may have.
        by_length: Sort the rows by their length, so that batches need little padding.
    """
    rows = tokenise(split.texts, base.tokenizer, base.longest_input(recipe.max_length))
    rows = [{**row, "labels": label} for row, label in zip(rows, split.labels, strict=True)]
    return sorted(rows, key=lambda row: len(row["input_ids"])) if by_length else rows


def measure(base: Base, split: Split, task: Task, recipe: Recipe) -> tuple[dict[str, float], float]:
    """The task's metrics and the mean loss on a split."""
    output = _predict(base, labelled_rows(split, base, recipe, by_length=True), recipe, metrics_of(task))
    values = {name: output.metrics[f"test_{name}"] for name in task.metrics}
    return values, output.metrics["test_loss"]


def predict(base: Base, texts: Sequence[tuple[str, ...]], recipe: Recipe) -> np.ndarray:
    """The model's outputs, one row a text: class probabilities, or a number.

    Args:
        base: A trained model.
        texts: One or two texts a row.
        recipe: Says how many tokens a row may have, and how many rows a batch has.
    """
    rows = tokenise(texts, base.tokenizer, base.longest_input(recipe.max_length))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    logits = torch.from_numpy(_predict(base, [rows[row] for row in order], recipe, None).predictions)
    outputs = logits if base.model.config.problem_type == "regression" else logits.softmax(-1)
    return outputs[np.argsort(order)].numpy()


def metrics_of(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """What turns a model's outputs into the task's metrics."""

    def compute(outputs: EvalPrediction) -> dict[str, float]:
        logits = outputs.predictions
        predictions = logits.reshape(-1) if task.kind == "regression" else logits.argmax(-1)
        return measure_metrics(task.metrics, outputs.label_ids, predictions)

    return compute


def only_logits(outputs: Any, _: Any) -> Any:
    """The logits out of what a model returns; encoder-decoders add whole hidden states."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def computing(base: Base, recipe: Recipe) -> dict[str, Any]:
    """Trainer's settings that say how a model computes, alike in training and in measuring."""
    return {
        "per_device_eval_batch_size": recipe.batch_size,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": base.model.dtype == torch.bfloat16,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "label_names": ["labels"],
        "disable_tqdm": True,
        "report_to": [],
        "seed": recipe.seed,
    }


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with so many CPU threads; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _predict(base: Base, rows: Rows, recipe: Recipe, compute_metrics: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its output folder, even where it writes nothing
        trainer = Trainer(
            base.model,
            TrainingArguments(folder, **computing(base, recipe)),
            data_collator=collator(base.tokenizer),
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=only_logits,
        )
        return trainer.predict(rows)
