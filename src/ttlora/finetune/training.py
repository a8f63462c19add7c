"""The training loop: a run that is killed at any moment goes on from its last whole checkpoint to the same end."""

import gc
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from ttlora.errors import UserError, out_of_memory
from ttlora.finetune.callbacks import Log, Pace, Patience, Pause, Progress
from ttlora.finetune.data import Encoded, TaskData
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.library_names import DEFAULT_OPTIMIZER
from ttlora.finetune.methods import Method
from ttlora.finetune.objective import Objective
from ttlora.finetune.processes import Processes, share_weights
from ttlora.finetune.progress import ProgressReport
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.stored import by_length
from ttlora.finetune.trained import Trained, find_trained, planned_steps, steps_per_epoch
from ttlora.finetune.trainer import TaskTrainer, computing, metrics_of

LOGS_PER_EPOCH = 20
# transformers' names, where they are others; this one is constant from the end of a warm-up on
SCHEDULERS = {"constant": "constant_with_warmup"}


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
    if processes.count > 1:
        share_weights(objective.base.trained)
    while True:
        try:
            return _fit(objective, method, rows, recipe, folder, report, processes, most, rows_a_pass)
        except (MemoryError, RuntimeError) as error:
            is_fixed = recipe.rows_at_once != "auto" or rows_a_pass % (2 * processes.count)
            if is_fixed or not out_of_memory(error):
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
    in_epoch, scheduler = steps_per_epoch(rows, recipe), recipe.scheduler or "linear"
    trainer_class, arguments_class = _classes_of(objective)
    arguments = arguments_class(
        str(folder.checkpoints),
        num_train_epochs=recipe.epochs,
        max_steps=-1 if recipe.max_steps is None else planned_steps(rows, recipe),
        per_device_train_batch_size=rows_a_pass,
        gradient_accumulation_steps=recipe.batch_size // rows_a_pass,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.gradient_checkpointing else None,
        torch_compile=recipe.compile,
        optim=recipe.optimizer or DEFAULT_OPTIMIZER,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=SCHEDULERS.get(scheduler, scheduler),
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        # when to measure and to save is said by `Pace`
        eval_strategy="no",
        save_strategy="no",
        logging_steps=max(1, in_epoch // LOGS_PER_EPOCH),
        logging_nan_inf_filter=False,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        run_name=folder.path.name,
        **{**computing(objective), "report_to": list(recipe.report_to or ())},
    )
    trainer = trainer_class(
        objective,
        arguments,
        method,
        train_dataset=rows.training,
        eval_dataset=by_length(rows.validation),
        compute_metrics=metrics_of(objective.task),
        callbacks=[
            Pace(recipe.evaluate_every, recipe.save_every, in_epoch),
            Patience(recipe.patience),
            Log(folder.log),
            report,
            Progress(folder, before, in_epoch, processes),
            Pause(most),
        ],
    )
    report.steps_per_epoch = in_epoch
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        # its own place is among the checkpoints, which go at the end
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder.path / "tensorboard")
    if before is not None:
        whole = before.step in (0, before.epochs * in_epoch)
        report.say(f"going on after {f'epoch {before.epochs}' if whole else f'step {before.step}'}")
    elif recipe.resume:
        report.say("nothing to go on from: starting with the first epoch")
    trainer.train(resume_from_checkpoint=None if before is None else str(folder.checkpoints / before.last))
    processes.wait()
    trained = processes.told(find_trained(folder))
    assert trained is not None, "a training ends with a checkpoint"
    return trained


def _classes_of(objective: Objective) -> tuple[Any, Any]:
    """The trainer that an objective is trained by, and its arguments; TRL is imported for language models alone."""
    task = objective.task
    if not task.learns_language:
        return TaskTrainer, TrainingArguments
    from ttlora.finetune import language_trainer as of_trl

    if task.kind == "preference":
        return of_trl.PreferenceTrainer, of_trl.PreferenceArguments
    return of_trl.SupervisedTrainer, of_trl.SupervisedArguments
