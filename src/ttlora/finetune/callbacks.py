"""What happens between the steps of a training: it is measured, saved, logged, and stopped."""

import json
import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from ttlora.errors import RunError
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.processes import Processes
from ttlora.finetune.trained import CHECKPOINT, Trained
from ttlora.whole_files import write_json, write_text

MEASURED = "validation_"
# in a checkpoint: the state of random numbers with which its epoch began, on which the order of the rows depends
ORDER = "order.safetensors"


class Pace(TrainerCallback):
    """Says when the validation rows are measured and when a checkpoint is written: with each measurement, at least.

    Args:
        evaluate_every: Steps between measurements; None: after each epoch.
        save_every: Steps between checkpoints; None: none but those.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(self, evaluate_every: int | None, save_every: int | None, steps_per_epoch: int) -> None:
        self.evaluate_every, self.save_every, self.steps_per_epoch = evaluate_every, save_every, steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure, or save, after so many steps."""
        step, every = state.global_step, self.evaluate_every
        if every is not None and (step % every == 0 or step == state.max_steps):
            control.should_evaluate = control.should_save = True
        # what is measured at the end of an epoch is saved with it: a run that goes on from before would not measure it
        is_measured_next = every is None and (step % self.steps_per_epoch == 0 or step == state.max_steps)
        if self.save_every is not None and step % self.save_every == 0 and not is_measured_next:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure after an epoch, where nothing else is asked for."""
        if self.evaluate_every is None:
            control.should_evaluate = control.should_save = True


class Patience(EarlyStoppingCallback):
    """Early stopping, without the warning that the best weights are not loaded: they come from their checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do not warn."""


class Log(TrainerCallback):
    """Writes the log, and ends a run whose loss is no longer finite."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log what the last steps of an epoch came to."""
        control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Write the log anew; it appears whole or not at all.

        Raises:
            RunError: A loss is no longer finite.
        """
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


class Progress(TrainerCallback):
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
        """Start the clock."""
        self.now = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the same order of rows in every process, and after a run was stopped the one of before."""
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
        """Start the step's clock."""
        self.step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the step's clock."""
        self.step_seconds += time.perf_counter() - self.step_began

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Keep what was measured, for the checkpoint that follows."""
        self.measured = {
            name.removeprefix(MEASURED): value for name, value in _renamed(metrics).items() if name.startswith(MEASURED)
        }

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write down that a checkpoint is whole."""
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


class Pause(TrainerCallback):
    """Stops a training after some epochs; its last checkpoint does not say that it has ended."""

    def __init__(self, epochs: int | None) -> None:
        self.left = epochs

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop once the epochs are trained."""
        if self.left is not None:
            self.left -= 1
            control.should_training_stop |= self.left <= 0


def _renamed(entry: dict[str, float]) -> dict[str, float]:
    """A log entry in our words, without Trainer's own measurements of speed."""
    speed = ("_runtime", "_per_second")
    return {name.replace("eval_", MEASURED): value for name, value in entry.items() if not name.endswith(speed)}
