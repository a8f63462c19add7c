"""Trainer with a task's own batches, loss and metrics, alike in training and in measuring."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from ttlora.compat import use_one_gpu
from ttlora.errors import out_of_memory
from ttlora.finetune.methods import Method, in_head
from ttlora.finetune.metrics import measure_metrics, measure_preferences, measure_tokens
from ttlora.finetune.objective import Objective
from ttlora.finetune.processes import Processes, average_gradients, sum_over_processes
from ttlora.finetune.shards import let_go
from ttlora.finetune.stored import lengths_of
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import TokenRow

# how many rows of a batch are a process's own
OWN = "own"
# Prompts and methods with few parameters learn at rates at which the dense layers of a head would be lost.
HIGHEST_HEAD_RATE = 1e-3


class TaskTrainer(Trainer):
    """Trainer with a task's own batches, loss and outputs.

    Its losses, in training with accumulated batches and in measuring, are means over all items that the objective
    counts, where Trainer takes the mean of the batches' means. Its checkpoints hold only what trains, and a head may
    have a learning rate of its own.

    Args:
        objective: How the task is put to its model.
        arguments: As for `Trainer`.
        method: Saves what trains; None: nothing is saved.
        keywords: As for `Trainer`.
    """

    def __init__(
        self, objective: Objective, arguments: TrainingArguments, method: Method | None = None, **keywords: Any
    ) -> None:
        self.objective, self.method = objective, method
        # Where one process sees several GPUs, Trainer would put the model into DataParallel, whose replicas get rows of
        # a batch that are divided without regard to the choices and answers of one row.
        use_one_gpu(arguments)
        super().__init__(objective.base.model, args=arguments, **{"data_collator": objective.collate, **keywords})
        self.model_accepts_loss_kwargs = True
        self.measured_loss, self.measured_items = 0.0, 0
        self.lacks_memory = False
        compute: Callable[[EvalPrediction], dict[str, float]] | None = keywords.get("compute_metrics")
        if self.args.world_size > 1:
            # as in evaluation: no DistributedDataParallel around it
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
            # what the processes measure is put together once, at the end
            self.gather_function = self.accelerator.gather_for_metrics = alone
            if compute is not None:
                self.compute_metrics = partial(self._metrics_of_all, compute)

    def save_model(self, *options: Any, **keywords: Any) -> None:
        """Trainer's; all processes come here, whichever of them writes."""
        let_go(self.objective.base)
        super().save_model(*options, **keywords)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:  # newer versions of transformers ask every process
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        assert self.method is not None, "only trainings save"
        self.method.save(self.model, folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # of several processes each would take up its own, and the rows would come in an order of its own
        if self.args.world_size == 1:
            super()._load_rng_state(checkpoint)

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's, with a group of its own for the head where that has another learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        heads = {id(weight) for name, weight in trained.items() if in_head(name, self.objective.base.head)}
        rate = self.objective.recipe.head_learning_rate
        if rate is None and len(heads) < len(trained):
            rate = min(optimizer.defaults["lr"], HIGHEST_HEAD_RATE)
        if rate is not None:
            for group in list(optimizer.param_groups):
                in_heads = [weight for weight in group["params"] if id(weight) in heads]
                group["params"] = [weight for weight in group["params"] if id(weight) not in heads]
                optimizer.add_param_group({**group, "params": in_heads, "lr": rate})
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """Batches of like lengths are half padding less to compute; Trainer's own would read all rows to find them."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(size, lengths=lengths_of(rows).tolist())

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *options: Any, **keywords: Any) -> Any:
        """Of several processes each takes its own rows of every batch."""
        if self.args.world_size == 1:
            return super()._get_dataloader(dataset, description, batch_size, *options, **keywords)
        if not keywords.get("is_training"):
            return DataLoader(dataset, batch_size * self.args.world_size, collate_fn=self._collate_own)
        sampler_of = keywords.get("sampler_fn")
        sampler = None if sampler_of is None else sampler_of(dataset)
        return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=self._collate_own)

    def _collate_own(self, rows: list[TokenRow]) -> dict[str, torch.Tensor]:
        own = rows[self.args.process_index :: self.args.world_size]
        # where none is left, one row is computed for nothing: all processes have to come to the same places
        return {**self.data_collator(own or rows[:1]), OWN: torch.tensor(len(own))}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        # of which the progress report tells how many there are in a second
        self.state.num_input_tokens_seen += sum(_tokens(batch) for batch in batch_samples) * self.args.world_size
        count = sum(self._items(batch) for batch in batch_samples)
        return count if self.args.world_size == 1 else sum_over_processes(count, self.args.device)

    def _items(self, batch: Any) -> int:
        return self.objective.items(batch) if is_own(batch) else 0

    def training_step(self, *options: Any, **keywords: Any) -> Any:
        """Trainer's; what several processes have computed for a step is averaged once, since what trains is small.

        Raises:
            MemoryError: One of the processes lacks memory.
        """
        if self.args.world_size == 1:
            return super().training_step(*options, **keywords)
        loss = torch.zeros((), device=self.args.device)
        if not self.lacks_memory:
            try:
                loss = super().training_step(*options, **keywords)
            except (MemoryError, RuntimeError) as error:
                # those who hold a model together wait for one another in every layer
                if self.objective.recipe.shard or not out_of_memory(error):
                    raise
                self.lacks_memory = True
        if self.accelerator.sync_gradients and average_gradients(self.objective.base.trained, self.lacks_memory):
            raise MemoryError
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """The objective's loss; for one of several accumulated batches, its share in the mean over all their items."""
        loss, outputs = self.objective.compute(model, {name: of for name, of in inputs.items() if name != OWN})
        loss = loss * self._share(inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: Any, num_items_in_batch: int | None) -> float:
        """What the mean over a batch's own items counts in the mean over those of all batches of a step."""
        processes = self.args.world_size
        if num_items_in_batch is None or (self.current_gradient_accumulation_steps == 1 and processes == 1):
            return 1.0
        # the gradients of several processes are averaged
        return self._items(inputs) * processes / num_items_in_batch

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Loss, outputs and labels of a batch."""
        inputs = self._prepare_inputs(inputs)
        own = int(inputs.pop(OWN)) if OWN in inputs else None
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.objective.compute(model, inputs)
        if own != 0:
            items = self.objective.items(inputs)
            self.measured_loss += loss.item() * items
            self.measured_items += items
        outputs = outputs.detach()[:own]
        # of tokens and of pairs, the outputs say already what is right
        labels = inputs["labels"][:own] if self.objective.is_labelled else outputs
        return loss.detach(), outputs, labels

    def evaluation_loop(self, *options: Any, metric_key_prefix: str = "eval", **keywords: Any) -> Any:
        """Outputs and metrics; the loss is that of all rows together."""
        self.measured_loss, self.measured_items = 0.0, 0
        output = super().evaluation_loop(*options, metric_key_prefix=metric_key_prefix, **keywords)
        measured = [(self.measured_loss, self.measured_items)]
        loss, items = map(sum, zip(*(gather_object(measured) if self.args.world_size > 1 else measured), strict=True))
        output.metrics[f"{metric_key_prefix}_loss"] = loss / max(items, 1)
        # where those of several processes differ by rounding they would not all stop at the same place
        output.metrics.update(Processes().told(output.metrics))
        return output

    def _metrics_of_all(self, compute: Callable[[EvalPrediction], dict[str, float]], own: EvalPrediction) -> Any:
        predictions, labels = zip(*gather_object([(own.predictions, own.label_ids)]), strict=True)
        return compute(EvalPrediction(_joined(predictions), _joined(labels)))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all processes; those of one may have more columns than those of another."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    fill = [(0, 0)] * (parts[0].ndim - 2)
    padded = [np.pad(part, [(0, 0), (0, width - part.shape[1]), *fill], constant_values=-100) for part in parts]
    return np.concatenate(padded)


def _tokens(batch: Any) -> int:
    """The number of a batch's tokens, padding left out."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def is_own(batch: Any) -> bool:
    """Whether a batch has rows of the process's own."""
    return OWN not in batch or bool(batch[OWN])


def alone(values: Any, *_: Any, **__: Any) -> Any:
    """The values of this process, in the place of those of all."""
    return values


def metrics_of(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """The function that computes the task's metrics from a model's outputs, but not those of generated texts."""

    def compute(outputs: EvalPrediction) -> dict[str, float]:
        values = outputs.predictions
        if task.kind == "preference":
            return measure_preferences(values)
        if task.learns_language:
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
