"""One of many runs: what it does, how far it has come, and what it has measured."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ttlora.errors import UserError
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.recipe import Recipe
from ttlora.record import Record
from ttlora.whole_files import write_json

State = Literal["done", "stopped", "failed", "unfinished", "waiting"]
# model, task and method: runs that agree in more of these take more nearly the same time
Likeness = tuple[str, ...]
OPEN: tuple[State, ...] = ("unfinished", "waiting")

# what a step of a run reports to Ray Tune
EPOCH, LOSS, SCORE, FAILED = "epoch", "validation_loss", "score", "failed"


@dataclass(frozen=True)
class Run:
    """A run of a comparison or a search.

    Attributes:
        name: Name of its folder.
        recipe: What it does, with the method's defaults; its output is that folder.
        label: What tables call it.
    """

    name: str
    recipe: Recipe
    label: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Run":
        """The run that `as_config` has described."""
        return Run(config["name"], Recipe(**config["recipe"]), config["label"])

    def as_config(self) -> dict[str, Any]:
        """The run as Ray hands it to another process."""
        return {"name": self.name, "label": self.label, "recipe": self.recipe.as_dict()}

    @property
    def title(self) -> str:
        """What lines for people call it."""
        return self.label

    @property
    def likeness(self) -> Likeness:
        """Model, task and method."""
        return self.recipe.model, self.recipe.task, self.recipe.method

    @property
    def folder(self) -> RunFolder:
        """Its output folder."""
        return RunFolder(self.recipe.output)

    @property
    def record(self) -> Record | None:
        """Its result record; None: it has not ended, or has failed.

        Raises:
            UserError: The record is damaged.
        """
        path = self.folder.result
        try:
            return Record.read(path) if path.exists() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{error}; remove {path.parent} to do the run again") from None

    @property
    def state(self) -> State:
        """How far it has come; "stopped": a scheduler has ended it early."""
        if (record := self.record) is not None:
            return "stopped" if record.stopped_early else "done"
        if self.failure.exists():
            return "failed"
        return "unfinished" if self.folder.recipe.exists() else "waiting"

    @property
    def failure(self) -> Path:
        """The file with the error of a failed run."""
        return self.folder.path / "failed.json"

    @property
    def error(self) -> str | None:
        """The error of a failed run; None: it has not failed."""
        if self.state != "failed":
            return None
        try:
            return str(json.loads(self.failure.read_text("utf-8"))["error"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return f"an error that cannot be told: {self.failure} is damaged"

    def as_dict(self) -> dict[str, object]:
        """The run's method, model, task and seed, named as in a result record, and its label."""
        recipe = self.recipe
        names = {"method": recipe.method, "model": recipe.model, "task": recipe.task, "seed": recipe.seed}
        return {**names, "label": self.label}

    def fail(self, error: str) -> None:
        """Record that the run has failed."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_json(self.failure, {**self.as_dict(), "error": error})

    def stop(self) -> None:
        """Make the record of the epochs so far the run's result: a scheduler has given it up."""
        if not self.folder.result.exists() and self.folder.so_far.exists():
            os.replace(self.folder.so_far, self.folder.result)

    def go_on(self) -> None:
        """Take back the result that `stop` has made: the run goes on after all."""
        if self.state == "stopped" and self.folder.checkpoints.exists():
            os.replace(self.folder.result, self.folder.so_far)


def failure(epoch: int, error: str) -> dict[str, Any]:
    """The report of a run that has failed: it has a loss that no other is above, and is at its end.

    Args:
        epoch: The epoch in which it has failed.
        error: Why.
    """
    return {EPOCH: epoch, LOSS: math.inf, SCORE: -math.inf, FAILED: error, "done": True}
