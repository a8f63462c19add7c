"""A trial of a search, and how Ray Tune sees it: each step is an epoch, and all that it knows stands in its folder."""

import json
import platform
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune
from transformers.utils import logging

from ttlora.errors import RunError, UserError, one_line
from ttlora.experiments.run import EPOCH, FAILED, LOSS, SCORE, Run, failure
from ttlora.finetune.data import TaskData
from ttlora.finetune.methods import find_method
from ttlora.finetune.prepared import Prepared
from ttlora.finetune.run import train_epoch
from ttlora.finetune.trained import find_trained
from ttlora.values import short


@dataclass(frozen=True)
class Trial(Run):
    """A run of a search.

    Attributes:
        settings: What of the recipe the search chose.
        parameters: Size of its adapter, without the head.
    """

    settings: Mapping[str, Any]
    parameters: int

    @property
    def title(self) -> str:
        """Its name, its settings and its size."""
        settings = " ".join(f"{key}={short(value)}" for key, value in self.settings.items())
        return f"trial {self.name} {settings} ({self.parameters:,} parameters)"


class EpochByEpoch(tune.Trainable):
    """Trains one trial after the other in one process, which loads the base model once.

    A trial that is paused, whose process dies, or whose search goes on another day, begins again with the epochs that
    its folder holds: these are reported as they were measured, and not trained again.
    """

    def setup(self, config: dict[Any, Any], data: TaskData, threads: int) -> None:  # type: ignore[override]
        """Begin with the first trial of this process.

        Args:
            config: The trial (`Run.as_config`).
            data: The task's rows, as token ids too.
            threads: CPU threads to compute with.
        """
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.data = data
        self.prepared: Prepared | None = None
        self._begin(config)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Go over to another trial."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next epoch, trained or remembered.

        Returns:
            The epoch, the lowest validation loss so far, the score that was measured with it, and whether the trial is
            at its end. A trial that fails has a loss that no other is above.
        """
        self.epoch += 1
        try:
            trials = self.trial.folder.path.parent
            if not trials.is_dir():
                raise RunError(f"{platform.node()} does not see {trials}: name a folder that all machines share")
            return self._epoch(self.epoch)
        except (UserError, RunError) as error:
            return failure(self.epoch, one_line(error))
        except Exception as error:
            traceback.print_exc()
            return failure(self.epoch, f"unexpected {type(error).__name__}: {one_line(error)}")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """What Ray keeps of a paused trial: which epoch comes next. The rest is in the trial's folder."""
        return {EPOCH: self.epoch}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on with a paused trial."""
        self.epoch = checkpoint[EPOCH]

    def _begin(self, config: Mapping[str, Any]) -> None:
        self.trial, self.epoch = Run.from_config(config), 0

    def _epoch(self, epoch: int) -> dict[str, Any]:
        while (so_far := finished_epochs(self.trial)) < epoch and self.trial.state != "done":
            self.trial.go_on()
            recipe = self.trial.recipe
            if self.prepared is None:
                self.prepared = Prepared.load(recipe, find_method(recipe.method), self.data)
            train_epoch(replace(recipe, resume=True), self.prepared)
        measured = validations(self.trial)[: min(epoch, so_far)]
        best = min(measured, key=lambda entry: entry[LOSS])
        score = next(best[key] for name in self.data.task.metrics if (key := f"validation_{name}") in best)
        ended = self.trial.state == "done" and epoch >= so_far
        return {EPOCH: epoch, LOSS: best[LOSS], SCORE: score, FAILED: "", "done": ended}


def finished_epochs(trial: Run) -> int:
    """How many epochs of a trial are whole, as its result says, or else its last checkpoint."""
    record = trial.record
    if record is not None:
        return record.epochs
    trained = find_trained(trial.folder)
    return 0 if trained is None else trained.epochs


def validations(trial: Run) -> list[dict[str, float]]:
    """What was measured after each epoch, oldest first.

    Raises:
        UserError: The log is damaged.
    """
    path = trial.folder.log
    try:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if LOSS in entry]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}; remove {path.parent} to do the trial again") from None
