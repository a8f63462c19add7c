"""What a model says to rows, and how good that is."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.data import Prompted, Split
from ttlora.finetune.metrics import TEXT_METRICS, measure_metrics, measure_texts, measure_tokens
from ttlora.finetune.objectives import Objective, Rows, objective_of, prompt_ids
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task


class TaskTrainer(Trainer):
    """Trainer with a task's own batches, loss and outputs.

    Its losses, in training with accumulated batches and in measuring, are means over all items that the objective
    counts, where Trainer takes the mean of the batches' means.

    Args:
        objective: How the task is put to the model.
        model: The model.
        arguments: As for `Trainer`.
        keywords: As for `Trainer`.
    """

    def __init__(self, objective: Objective, model: Any, arguments: TrainingArguments, **keywords: Any) -> None:
        self.objective = objective
        # Where one process sees several GPUs, Trainer would put the model into DataParallel, whose replicas get rows of
        # a batch that are divided without regard to the choices and answers of one row.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        super().__init__(model, arguments, data_collator=objective.collate, **keywords)
        self.model_accepts_loss_kwargs = True
        self.measured_loss, self.measured_items = 0.0, 0

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return sum(self.objective.items(batch) for batch in batch_samples)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """The objective's loss; of one of several accumulated batches, its share in the mean over their items."""
        loss, outputs = self.objective.compute(model, inputs)
        if num_items_in_batch is not None and self.current_gradient_accumulation_steps > 1:
            loss = loss * (self.objective.items(inputs) / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Loss, outputs and labels of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.objective.compute(model, inputs)
        items = self.objective.items(inputs)
        self.measured_loss += loss.item() * items
        self.measured_items += items
        return loss.detach(), outputs.detach(), inputs["labels"]

    def evaluation_loop(self, *options: Any, metric_key_prefix: str = "eval", **keywords: Any) -> Any:
        """Outputs and metrics; the loss is that of all rows together."""
        self.measured_loss, self.measured_items = 0.0, 0
        output = super().evaluation_loop(*options, metric_key_prefix=metric_key_prefix, **keywords)
        output.metrics[f"{metric_key_prefix}_loss"] = self.measured_loss / max(self.measured_items, 1)
        return output


def by_length(rows: Rows) -> list[int]:
    """The order in which rows of like lengths are beside each other, so that batches need little padding."""

    def length(index: int) -> int:
        ids = rows[index]["input_ids"]
        return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)

    return sorted(range(len(rows)), key=length)


def measure(base: Base, split: Split, task: Task, recipe: Recipe) -> tuple[dict[str, float], float]:
    """The task's metrics and the mean loss on a split."""
    objective = objective_of(task, base, recipe.max_length)
    rows, _ = objective.encode(split)
    output = _predict(base, objective, [rows[index] for index in by_length(rows)], recipe, metrics_of(task))
    values = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
    if generated := [name for name in task.metrics if name in TEXT_METRICS]:
        answers = [given.answers[0] for given in split.inputs if isinstance(given, Prompted)]
        values |= measure_texts(generated, answers, generate(base, split, recipe))
    return {name: values[name] for name in task.metrics}, values["loss"]


def predict(base: Base, split: Split, task: Task, recipe: Recipe) -> np.ndarray:
    """The model's outputs, one row an input: probabilities of classes, choices or answers, or a number.

    Args:
        base: A trained model.
        split: What is put to it; labels are not looked at.
        task: The task that it was trained on.
        recipe: Says how many tokens a row may have, and how many rows a batch has.
    """
    objective = objective_of(task, base, recipe.max_length)
    rows, _ = objective.encode(split)
    order = by_length(rows)
    outputs = torch.from_numpy(_predict(base, objective, [rows[row] for row in order], recipe, None).predictions)
    if task.kind == "classification" and not task.is_causal:
        outputs = outputs.softmax(-1)
    return outputs[np.argsort(order)].numpy()


def generate(base: Base, split: Split, recipe: Recipe) -> list[str]:
    """What a causal model writes after each prompt, always taking the likeliest token.

    Args:
        base: A trained model.
        split: Prompts; answers are not looked at.
        recipe: Says how many tokens prompt and answer may have, and how many rows a batch has.
    """
    tokenizer, longest = base.tokenizer, longest_prompt(base, recipe)
    prompts = []
    for given, place in zip(split.inputs, split.places, strict=True):
        ids = prompt_ids(given, base, place)
        prompts.append([*ids[:1], *ids[len(ids) - longest + 1 :]] if len(ids) > longest else ids)
    written = [""] * len(prompts)
    model = base.model.eval()
    # PEFT drops the positions of rows with virtual tokens, so that padding would change them
    for chosen in _batches([len(ids) for ids in prompts], recipe.batch_size, like_lengths=base.virtual_tokens > 0):
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


def longest_prompt(base: Base, recipe: Recipe) -> int:
    """How many tokens a prompt may have, so that the model has room for the answer too.

    Raises:
        UserError: There is no room for a prompt.
    """
    room = base.longest_input(recipe.max_length + recipe.max_new_tokens) - recipe.max_new_tokens
    if room < 1:
        raise UserError(
            f"--max-new-tokens is {recipe.max_new_tokens}, and model {base.name} takes {room + recipe.max_new_tokens} "
            "tokens, prompt and answer together: lower it"
        )
    return room


def _batches(lengths: Sequence[int], size: int, like_lengths: bool) -> Iterator[list[int]]:
    """The indices of rows by their length, in batches; with `like_lengths` each has rows of one length."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == size or (batch and like_lengths and lengths[batch[0]] != lengths[index]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def metrics_of(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """What turns a model's outputs into the task's metrics; those of generated texts are not among them."""

    def compute(outputs: EvalPrediction) -> dict[str, float]:
        values = outputs.predictions
        if task.kind in ("generation", "text"):
            return measure_tokens(values)
        predictions = values.reshape(-1) if task.kind == "regression" else values.argmax(-1)
        return measure_metrics(task.metrics, outputs.label_ids, predictions)

    return compute


def computing(base: Base, recipe: Recipe) -> dict[str, Any]:
    """Trainer's settings that say how a model computes, alike in training and in measuring."""
    return {
        "per_device_eval_batch_size": recipe.batch_size,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": base.model.dtype == torch.bfloat16,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "label_names": ["labels"],
        # the objective makes of a batch what the model takes
        "remove_unused_columns": False,
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


def _predict(base: Base, objective: Objective, rows: Rows, recipe: Recipe, compute_metrics: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its output folder, even where it writes nothing
        trainer = TaskTrainer(
            objective,
            base.model,
            TrainingArguments(folder, **computing(base, recipe)),
            compute_metrics=compute_metrics,
        )
        return trainer.predict(rows)
