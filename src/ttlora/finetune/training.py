"""The training loop: a run that is killed at any moment goes on from its last whole checkpoint to the same end."""

import gc
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from ttlora.errors import RunError, UserError, one_line, out_of_memory
from ttlora.finetune.data import Encoded, TaskData
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.library_names import DEFAULT_OPTIMIZER
from ttlora.finetune.methods import Method, in_head
from ttlora.finetune.objectives import Objective
from ttlora.finetune.processes import Processes
from ttlora.finetune.progress import ProgressReport
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.trainer import TaskTrainer, by_length, computing, metrics_of
from ttlora.values import from_fields
from ttlora.whole_files import write_json, write_text

LOGS_PER_EPOCH = 20
# Prompts and methods with few parameters learn at rates at which the dense layers of a head would be lost.
HIGHEST_HEAD_RATE = 1e-3
CHECKPOINT = "checkpoint-"  # as Trainer calls them
MEASURED = "validation_"
# in a checkpoint: the state of random numbers with which its epoch began, on which the order of the rows depends
ORDER = "order.safetensors"
# transformers' names, where they are others; this one is constant from the end of a warm-up on
SCHEDULERS = {"constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Trained:
    """How far a training has come: the content of ``progress.json`` beside the checkpoints.

    Attributes:
        last: Name of the last whole checkpoint.
        best: Name of the checkpoint with the weights of the lowest validation loss.
        best_epoch: The epoch in which they were, from 1.
        epochs: Epochs trained, one that has been begun among them.
        seconds: Duration over all resumed parts.
        step_seconds: Mean duration of a step.
        loss: The lowest validation loss; None: none was measured yet.
        metrics: What was measured with it, in training.
        ended: Whether there is nothing left to train.
        step: Steps trained.
        best_step: The step after which the weights of the lowest validation loss were measured.
    """

    last: str
    best: str
    best_epoch: int
    epochs: int
    seconds: float
    step_seconds: float
    loss: float | None
    metrics: dict[str, float]
    ended: bool
    step: int = 0
    best_step: int = 0


def require_divisible(recipe: Recipe, data: TaskData, processes: Processes) -> None:
    """Refuse to divide rows among more processes than there are rows for.

    Raises:
        UserError: A step, or all of the training rows, has fewer rows than there are processes, or a step's rows do not
            divide.
    """
    count = processes.count
    if len(data.training) < count:
        raise UserError(
            f"{count} processes were started, and there are {len(data.training)} training rows: start fewer"
        )
    if recipe.rows_a_pass % count:
        raise UserError(
            f"{recipe.rows_a_pass} rows at a time do not divide among {count} processes: set `batch_size` (or "
            "`rows_at_once`, the rows of all processes together) to a multiple"
        )


def ended_early(trained: Trained, rows: Encoded, recipe: Recipe) -> bool:
    """Whether a training ended before its last step: the validation loss had stopped falling."""
    if not trained.step:  # of an earlier version, which counted epochs alone
        return trained.epochs < recipe.epochs
    steps = recipe.epochs * math.ceil(len(rows.training) / recipe.batch_size)
    return trained.step < min(recipe.max_steps or steps, steps)


def find_trained(folder: RunFolder) -> Trained | None:
    """How far the training in a folder has come; None: it has not finished an epoch.

    Raises:
        UserError: The file that says so is damaged, or an earlier version of ttlora has begun the training.
    """
    path = folder.progress
    if not path.exists():
        if next(folder.checkpoints.glob(f"{CHECKPOINT}*/complete"), None) is not None:
            raise UserError(
                f"an earlier version of ttlora has begun the training in {folder.path}: end it with that version, or "
                f"remove {folder.checkpoints} to begin again with the first epoch"
            )
        return None
    try:
        trained = from_fields(Trained, json.loads(path.read_text("utf-8")))
        for name in (trained.last, trained.best):
            if not (folder.checkpoints / name).is_dir():
                raise ValueError(f"{name} is not there")
        return trained
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {one_line(error)}; remove {folder.checkpoints} to begin again with the first epoch"
        ) from None


def fit(
    objective: Objective,
    method: Method,
    rows: Encoded,
    recipe: Recipe,
    folder: RunFolder,
    report: ProgressReport,
    processes: Processes,
    most: int | None = None,
) -> Trained:
    """Train an adapted model, from the folder's last whole checkpoint if there is one.

    With ``rows_at_once="auto"`` it begins with all rows of a step at once, and goes on with half of them each time that
    memory runs out.

    Args:
        objective: How the task is put to the adapted model.
        method: Saves what trains.
        rows: Rows to train on, and those whose loss decides when to stop and which weights are kept.
        recipe: The recipe, completed.
        folder: Takes checkpoints and the log.
        report: Told of every step.
        processes: Those that train.
        most: Go on for so many epochs at most; None: to the end.

    Returns:
        How far the training is.

    Raises:
        RunError: The loss is no longer finite, or memory runs out.
    """
    rows_a_pass = recipe.rows_a_pass
    while True:
        try:
            return _fit(objective, method, rows, recipe, folder, report, processes, most, rows_a_pass)
        except (MemoryError, RuntimeError) as error:
            # several processes would have to stop at the same step
            fixed = recipe.rows_at_once != "auto" or processes.count > 1
            if fixed or rows_a_pass % 2 or not out_of_memory(error):
                raise
            rows_a_pass //= 2
        # outside of the handler, which would hold what the failed step has made
        objective.base.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        report.say(f"memory ran out: going on with {rows_a_pass} rows at once")


def _fit(
    objective: Objective,
    method: Method,
    rows: Encoded,
    recipe: Recipe,
    folder: RunFolder,
    report: ProgressReport,
    processes: Processes,
    most: int | None,
    rows_a_pass: int,
) -> Trained:
    before = processes.told(find_trained(folder))
    steps_per_epoch = math.ceil(len(rows.training) / recipe.batch_size)
    arguments = TrainingArguments(
        str(folder.checkpoints),
        num_train_epochs=recipe.epochs,
        max_steps=-1 if recipe.max_steps is None else min(recipe.max_steps, recipe.epochs * steps_per_epoch),
        per_device_train_batch_size=rows_a_pass,
        gradient_accumulation_steps=recipe.batch_size // rows_a_pass,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
        torch_compile=recipe.compile,
        train_sampling_strategy="group_by_length",  # batches of like lengths are half padding less to compute
        optim=recipe.optimizer or DEFAULT_OPTIMIZER,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULERS.get(recipe.scheduler or "linear", recipe.scheduler or "linear"),
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        # when to measure and to save is said by `_Pace`
        eval_strategy="no",
        save_strategy="no",
        logging_steps=max(1, steps_per_epoch // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        run_name=folder.path.name,
        **{**computing(objective), "report_to": list(recipe.report_to or ())},
    )
    trainer = _Trainer(
        objective,
        arguments,
        train_dataset=rows.training,
        eval_dataset=[rows.validation[index] for index in by_length(rows.validation)],
        compute_metrics=metrics_of(objective.task),
        callbacks=[
            _Pace(recipe.evaluate_every, recipe.save_every, steps_per_epoch),
            _Patience(recipe.patience),
            _Log(folder.log),
            report,
            _Progress(folder, before, steps_per_epoch, processes),
            _Pause(most),
        ],
    )
    report.steps_per_epoch = steps_per_epoch
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        # its own place is among the checkpoints, which go at the end
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder.path / "tensorboard")
    trainer.method = method
    if before is not None:
        whole = before.step in (0, before.epochs * steps_per_epoch)
        report.say(f"going on after {f'epoch {before.epochs}' if whole else f'step {before.step}'}")
    elif recipe.resume:
        report.say("nothing to go on from: starting with the first epoch")
    trainer.train(resume_from_checkpoint=None if before is None else str(folder.checkpoints / before.last))
    processes.wait()
    trained = processes.told(find_trained(folder))
    assert trained is not None, "a training ends with a checkpoint"
    return trained


class _Trainer(TaskTrainer):
    """Trainer whose checkpoints hold only what trains, and whose head may have a learning rate of its own."""

    method: Method

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.method.save(self.model, folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # of several processes each would take up its own, and the rows would come in an order of its own
        if self.args.world_size == 1:
            super()._load_rng_state(checkpoint)

    def create_optimizer(self, model: Any = None) -> Any:
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


class _Pace(TrainerCallback):
    """Says when the validation rows are measured and when a checkpoint is written: with each measurement, at least.

    Args:
        evaluate_every: Steps between measurements; None: after each epoch.
        save_every: Steps between checkpoints; None: none but those.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(self, evaluate_every: int | None, save_every: int | None, steps_per_epoch: int) -> None:
        self.evaluate_every, self.save_every, self.steps_per_epoch = evaluate_every, save_every, steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, every = state.global_step, self.evaluate_every
        if every is not None and (step % every == 0 or step == state.max_steps):
            control.should_evaluate = control.should_save = True
        # what is measured at the end of an epoch is saved with it: a run that goes on from before would not measure it
        is_measured_next = every is None and (step % self.steps_per_epoch == 0 or step == state.max_steps)
        if self.save_every is not None and step % self.save_every == 0 and not is_measured_next:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.evaluate_every is None:
            control.should_evaluate = control.should_save = True


class _Patience(EarlyStoppingCallback):
    """Early stopping, without the warning that the best weights are not loaded: they come from their checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        pass


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
                    f"`learning_rate` than {args.learning_rate:g}, and another `output`"
                )
        if state.is_world_process_zero:
            lines = [json.dumps(_renamed(entry)) + "\n" for entry in state.log_history if "train_runtime" not in entry]
            write_text(self.path, "".join(lines))


class _Progress(TrainerCallback):
    """Writes down how far the training is once a checkpoint is whole, and drops those that are no longer needed."""

    def __init__(self, folder: RunFolder, before: Trained | None, steps_per_epoch: int, processes: Processes) -> None:
        self.processes = processes
        self.folder, self.trained, self.steps_per_epoch = folder, before, steps_per_epoch
        self.seconds = 0.0 if before is None else before.seconds
        steps_before = 0 if before is None else before.step or before.epochs * steps_per_epoch
        self.step_seconds = 0.0 if before is None else before.step_seconds * steps_before
        self.now = self.step_began = time.perf_counter()
        self.measured: dict[str, float] = {}
        self.goes_on = before is not None
        self.order = torch.get_rng_state()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.now = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.goes_on:
            # within an epoch its rows come in the order in which they came before, and Trainer leaves out the first
            assert self.trained is not None
            file = self.folder.checkpoints / self.trained.last / ORDER
            if file.exists():  # a run that an earlier version has begun stands at the end of an epoch
                torch.set_rng_state(load_file(file)["state"])
        self.goes_on = False
        self.order = self.processes.told(torch.get_rng_state())
        torch.set_rng_state(self.order)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_seconds += time.perf_counter() - self.step_began

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self.measured = {
            name.removeprefix(MEASURED): value for name, value in _renamed(metrics).items() if name.startswith(MEASURED)
        }

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        before, self.now = self.now, time.perf_counter()
        self.seconds += self.now - before
        step = state.global_step
        checkpoint, epoch = f"{CHECKPOINT}{step}", math.ceil(step / self.steps_per_epoch)
        self.processes.wait()  # each of them saves something
        if self.processes.is_first:
            order = self.order if step % self.steps_per_epoch else torch.get_rng_state()
            save_file({"state": order}, self.folder.checkpoints / checkpoint / ORDER)
        loss, best = self.measured.pop("loss", None), self.trained
        if best is None or best.loss is None or (loss is not None and loss < best.loss):
            best = Trained(
                checkpoint, checkpoint, epoch, epoch, 0.0, 0.0, loss, self.measured, ended=False, best_step=step
            )
        self.measured = {}
        self.trained = replace(
            best,
            last=checkpoint,
            epochs=epoch,
            seconds=self.seconds,
            step_seconds=self.step_seconds / step,
            ended=control.should_training_stop,
            step=step,
        )
        if not self.processes.is_first:
            return
        write_json(self.folder.progress, asdict(self.trained))
        for old in self.folder.checkpoints.glob(f"{CHECKPOINT}*"):
            if old.name not in (self.trained.last, self.trained.best):
                shutil.rmtree(old)


class _Pause(TrainerCallback):
    """Stops a training after some epochs; its last checkpoint does not say that it has ended."""

    def __init__(self, epochs: int | None) -> None:
        self.left = epochs

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.left is not None:
            self.left -= 1
            control.should_training_stop |= self.left <= 0


def _renamed(entry: dict[str, float]) -> dict[str, float]:
    """A log entry in our words, without Trainer's own measurements of speed."""
    speed = ("_runtime", "_per_second")
    return {name.replace("eval_", MEASURED): value for name, value in entry.items() if not name.endswith(speed)}
