"""Trainer, set up so that a run killed at any moment goes on from its last whole checkpoint to the same end."""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback

from ttlora.errors import RunError
from ttlora.finetune.base import Base
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.measure import TaskTrainer, by_length, computing, metrics_of
from ttlora.finetune.methods import Method, in_head
from ttlora.finetune.objectives import objective_of
from ttlora.finetune.prepared import Encoded
from ttlora.finetune.progress import ProgressReport
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.whole_files import write_text

LOGS_PER_EPOCH = 20
# Prompts and methods with few parameters learn at rates at which the dense layers of a head would be lost.
HIGHEST_HEAD_RATE = 1e-3
COMPLETE = "complete"
MEASURED = "validation_"


@dataclass(frozen=True)
class Trained:
    """How far a training is.

    Attributes:
        checkpoint: Folder with the weights of the lowest validation loss.
        best_epoch: Their epoch, from 1.
        epochs: Epochs trained.
        seconds: Duration over all resumed parts.
        step_seconds: Mean duration of a step.
        loss: The lowest validation loss.
        metrics: What was measured with it, in training.
        ended: Whether there is nothing left to train.
    """

    checkpoint: Path
    best_epoch: int
    epochs: int
    seconds: float
    step_seconds: float
    loss: float
    metrics: Mapping[str, float]
    ended: bool


def find_trained(folder: RunFolder) -> Trained | None:
    """The training in a folder, as its last whole checkpoint tells it; None: there is no checkpoint."""
    checkpoint = _last_checkpoint(folder)
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = next(
        entry for entry in state.log_history if entry["step"] == state.best_global_step and "eval_loss" in entry
    )
    measured = {name: value for name, value in _renamed(best).items() if name.startswith(MEASURED)}
    clock = state.stateful_callbacks["_Clock"]["attributes"]
    steps_per_epoch = state.max_steps // state.num_train_epochs
    return Trained(
        checkpoint=folder.checkpoints / f"checkpoint-{state.best_global_step}",
        best_epoch=state.best_global_step // steps_per_epoch,
        epochs=state.global_step // steps_per_epoch,
        seconds=clock["seconds"],
        step_seconds=clock["step_seconds"] / state.global_step,
        loss=measured.pop(f"{MEASURED}loss"),
        metrics={name.removeprefix(MEASURED): value for name, value in measured.items()},
        ended=state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"],
    )


def train(
    base: Base,
    method: Method,
    task: Task,
    rows: Encoded,
    recipe: Recipe,
    folder: RunFolder,
    report: ProgressReport,
    epochs: int | None = None,
) -> Trained:
    """Train an adapted model, from the folder's last whole checkpoint if there is one.

    Args:
        base: The adapted model.
        method: Saves what trains.
        task: Says what is measured after every epoch.
        rows: Rows to train on, and those whose loss decides when to stop and which weights are kept.
        recipe: The recipe, completed.
        folder: Takes checkpoints and the log.
        report: Told of every step.
        epochs: Go on for so many epochs at most; None: to the end.

    Returns:
        How far the training is.

    Raises:
        RunError: The loss is no longer finite.
    """
    objective = objective_of(task, base, recipe.max_length)
    steps_per_epoch = math.ceil(len(rows.training) / recipe.batch_size)
    arguments = TrainingArguments(
        str(folder.checkpoints),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="group_by_length",  # batches of like lengths are half padding less to compute
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=max(1, steps_per_epoch // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        **computing(base, recipe),
    )
    trainer = _Trainer(
        objective,
        base.model,
        arguments,
        train_dataset=rows.training,
        eval_dataset=[rows.validation[index] for index in by_length(rows.validation)],
        compute_metrics=metrics_of(task),
        callbacks=[_Patience(recipe.patience), _Clock(), _Log(folder.log), report, _Checkpoints(), _Pause(epochs)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.method, trainer.recipe, trainer.head = method, recipe, base.head
    checkpoint = _last_checkpoint(folder)
    if checkpoint is not None:
        report.say(f"going on after epoch {_step(checkpoint) // steps_per_epoch}")
    elif recipe.resume:
        report.say("nothing to go on from: starting with the first epoch")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trained = find_trained(folder)
    assert trained is not None, "every epoch ends with a checkpoint"
    return trained


class _Trainer(TaskTrainer):
    """Trainer whose checkpoints hold what trains alone, and whose head may have a learning rate of its own."""

    method: Method
    recipe: Recipe
    head: tuple[str, ...]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.method.save(self.model, folder)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        heads = {id(weight) for name, weight in trained.items() if in_head(name, self.head)}
        rate = self.recipe.head_learning_rate
        if rate is None and len(heads) < len(trained):
            rate = min(optimizer.defaults["lr"], HIGHEST_HEAD_RATE)
        if rate is not None:
            for group in list(optimizer.param_groups):
                in_heads = [weight for weight in group["params"] if id(weight) in heads]
                group["params"] = [weight for weight in group["params"] if id(weight) not in heads]
                optimizer.add_param_group({**group, "params": in_heads, "lr": rate})
        return optimizer


class _Patience(EarlyStoppingCallback):
    """Early stopping, without the warning that the best weights are not loaded: they come from their checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        pass


class _Clock(TrainerCallback, ExportableState):
    """How long the training and its steps take; what earlier parts took comes back with the checkpoint."""

    def __init__(self) -> None:
        self.seconds = self.step_seconds = 0.0
        self.now = self.step_began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.now = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_seconds += time.perf_counter() - self.step_began

    def state(self) -> dict[str, Any]:
        before, self.now = self.now, time.perf_counter()
        self.seconds += self.now - before
        return {"args": {}, "attributes": {"seconds": self.seconds, "step_seconds": self.step_seconds}}


class _Log(TrainerCallback):
    """Writes the log, and ends a run whose loss is no longer finite."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                kind = "training" if name == "loss" else "validation"
                raise RunError(
                    f"the {kind} loss is {logs[name]} at step {state.global_step}: start again with a lower "
                    f"--learning-rate than {args.learning_rate:g}, and another --output"
                )
        lines = [json.dumps(_renamed(entry)) + "\n" for entry in state.log_history if "train_runtime" not in entry]
        write_text(self.path, "".join(lines))


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint as whole once all of it is written, and drops those that are no longer needed."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir)
        (folder / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        needed = {f"checkpoint-{step}" for step in (state.global_step, state.best_global_step)}
        for old in folder.glob("checkpoint-*"):
            if old.name not in needed:
                # the mark goes first, so that a half-deleted checkpoint is never taken for a whole one
                (old / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(old)


class _Pause(TrainerCallback):
    """Leaves a training after some epochs; the checkpoint, which is there by then, does not say that it has ended."""

    def __init__(self, epochs: int | None) -> None:
        self.left = epochs

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.left is not None:
            self.left -= 1
            control.should_training_stop |= self.left <= 0


def _last_checkpoint(folder: RunFolder) -> Path | None:
    whole = [mark.parent for mark in folder.checkpoints.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _renamed(entry: dict[str, float]) -> dict[str, float]:
    """A log entry in our words, without Trainer's own measurements of speed."""
    speed = ("_runtime", "_per_second")
    return {name.replace("eval_", MEASURED): value for name, value in entry.items() if not name.endswith(speed)}
