"""Trainer with a task's own batches, loss and metrics, alike in training and in measuring."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments

from ttlora.compat import use_one_gpu
from ttlora.finetune.data import Rows
from ttlora.finetune.metrics import measure_metrics, measure_tokens
from ttlora.finetune.objectives import Objective
from ttlora.finetune.processes import Processes, sum_over_processes
from ttlora.finetune.tasks import Task

# how many rows of a batch are a process's own
OWN = "own"


class TaskTrainer(Trainer):
    """Trainer with a task's own batches, loss and outputs.

    Its losses, in training with accumulated batches and in measuring, are means over all items that the objective
    counts, where Trainer takes the mean of the batches' means.

    Args:
        objective: How the task is put to its model.
        arguments: As for `Trainer`.
        keywords: As for `Trainer`.
    """

    def __init__(self, objective: Objective, arguments: TrainingArguments, **keywords: Any) -> None:
        self.objective = objective
        # Where one process sees several GPUs, Trainer would put the model into DataParallel, whose replicas get rows of
        # a batch that are divided without regard to the choices and answers of one row.
        use_one_gpu(arguments)
        super().__init__(objective.base.model, arguments, data_collator=objective.collate, **keywords)
        self.model_accepts_loss_kwargs = True
        self.measured_loss, self.measured_items = 0.0, 0

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *options: Any, **keywords: Any) -> Any:
        """Of several processes each gets whole batches, and takes its own rows of those that it learns from."""
        if self.args.world_size == 1:
            return super()._get_dataloader(dataset, description, batch_size, *options, **keywords)
        sampler_of = keywords.get("sampler_fn")
        sampler = None if sampler_of is None else sampler_of(dataset)
        collate = self._collate_own if keywords.get("is_training") else self.data_collator
        return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate)

    def _collate_own(self, rows: Rows) -> dict[str, torch.Tensor]:
        own = rows[self.args.process_index :: self.args.world_size]
        # where none is left, one row is computed for nothing: all processes have to come to the same places
        return {**self.objective.collate(own or rows[:1]), OWN: torch.tensor(len(own))}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        count = sum(self._items(batch) for batch in batch_samples)
        return count if self.args.world_size == 1 else sum_over_processes(count, self.args.device)

    def _items(self, batch: Any) -> int:
        return self.objective.items(batch) if OWN not in batch or int(batch[OWN]) else 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """The objective's loss; for one of several accumulated batches, its share in the mean over all their items."""
        processes = self.args.world_size
        loss, outputs = self.objective.compute(model, {name: of for name, of in inputs.items() if name != OWN})
        if num_items_in_batch is not None and (self.current_gradient_accumulation_steps > 1 or processes > 1):
            # the gradients of several processes are averaged
            loss = loss * (self._items(inputs) * processes / num_items_in_batch)
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
        if self.args.world_size > 1:
            # every process measures all rows by itself, so that there is nothing to gather
            self.gather_function = self.accelerator.gather_for_metrics = _alone
        output = super().evaluation_loop(*options, metric_key_prefix=metric_key_prefix, **keywords)
        output.metrics[f"{metric_key_prefix}_loss"] = self.measured_loss / max(self.measured_items, 1)
        # where those of several processes differ by rounding they would not all stop at the same place
        output.metrics.update(Processes().told(output.metrics))
        return output


def _alone(values: Any, *_: Any, **__: Any) -> Any:
    return values


def by_length(rows: Rows) -> list[int]:
    """The indices of the rows, sorted by length, so that batches need little padding."""

    def length(index: int) -> int:
        ids = rows[index]["input_ids"]
        return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)

    return sorted(range(len(rows)), key=length)


def metrics_of(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """The function that computes the task's metrics from a model's outputs, but not those of generated texts."""

    def compute(outputs: EvalPrediction) -> dict[str, float]:
        values = outputs.predictions
        if task.kind in ("generation", "text"):
            return measure_tokens(values)
        predictions = values.reshape(-1) if task.kind == "regression" else values.argmax(-1)
        return measure_metrics(task.metrics, outputs.label_ids, predictions)

    return compute


def computing(objective: Objective) -> dict[str, Any]:
    """Trainer's settings that say how a model computes, alike in training and in measuring."""
    return {
        "per_device_eval_batch_size": objective.recipe.batch_size,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": objective.base.model.dtype == torch.bfloat16,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "label_names": ["labels"],
        # the objective makes of a batch what the model takes
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": [],
        "seed": objective.recipe.seed,
    }
