"""A trained model's outputs for rows, and the metrics of these."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainingArguments

from ttlora.finetune.data import Split
from ttlora.finetune.inputs import Prompted
from ttlora.finetune.metrics import TEXT_METRICS, measure_texts
from ttlora.finetune.objective import Objective
from ttlora.finetune.objectives import HeadObjective
from ttlora.finetune.stored import by_length, order_of_lengths
from ttlora.finetune.trainer import TaskTrainer, computing, metrics_of


def measure(objective: Objective, split: Split) -> tuple[dict[str, float], float]:
    """The task's metrics and the mean loss on a split."""
    task = objective.task
    rows, _ = objective.encode(split)
    output = _predict(objective, by_length(rows), metrics_of(task))
    values = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    if generated := [name for name in task.metrics if name in TEXT_METRICS]:
        answers = [given.answers[0] for given in split.inputs if isinstance(given, Prompted)]
        values |= measure_texts(generated, answers, generate(objective, split))
    return {name: values[name] for name in task.metrics}, values["loss"]


def outputs_of(objective: Objective, split: Split) -> np.ndarray:
    """The model's outputs, one row an input: probabilities of classes, choices or answers, or a number.

    Args:
        objective: How the task is put to a trained model.
        split: What is put to it; labels are not looked at.
    """
    rows, _ = objective.encode(split)
    outputs = torch.from_numpy(_predict(objective, by_length(rows), None).predictions)
    if isinstance(objective, HeadObjective) and objective.task.kind == "classification":
        outputs = outputs.softmax(-1)
    return outputs[np.argsort(order_of_lengths(rows))].numpy()


def generate(objective: Objective, split: Split) -> list[str]:
    """What a causal model writes after each prompt, always taking the likeliest token.

    Args:
        objective: How the task is put to a trained model.
        split: Prompts; answers are not looked at.
    """
    from ttlora.finetune.language import LanguageObjective  # TRL is imported for language models alone

    assert isinstance(objective, LanguageObjective)
    base, tokenizer, recipe = objective.base, objective.tokenizer, objective.recipe
    prompts = objective.prompts(split)
    written = [""] * len(prompts)
    model = base.model.eval()
    # PEFT drops the positions of rows with virtual tokens, so that padding would change them
    for chosen in batches([len(ids) for ids in prompts], recipe.batch_size, like_lengths=base.virtual_tokens > 0):
        batch = tokenizer.pad(
            {"input_ids": [prompts[index] for index in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            ids = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=recipe.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, answer in zip(chosen, answers, strict=True):
            written[index] = answer.strip()
    return written


def batches(lengths: Sequence[int], size: int, like_lengths: bool = False) -> Iterator[list[int]]:
    """The indices of rows, sorted by length, in batches; with `like_lengths` a batch has rows of one length."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == size or (batch and like_lengths and lengths[batch[0]] != lengths[index]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _predict(objective: Objective, rows: Dataset, compute_metrics: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its output folder, even where it writes nothing
        arguments = TrainingArguments(folder, **computing(objective))
        trainer = TaskTrainer(objective, arguments, compute_metrics=compute_metrics)
        return trainer.predict(rows)
