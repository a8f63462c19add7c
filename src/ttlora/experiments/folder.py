"""The folder of a comparison: its runs, how far each is, and who may work in it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ttlora.errors import UserError
from ttlora.experiments.runs import PlannedRun
from ttlora.finetune.folder import content_of, locked
from ttlora.finetune.recipe import Recipe
from ttlora.record import Record
from ttlora.whole_files import write_json

State = Literal["done", "failed", "unfinished", "waiting"]


class ComparisonFolder:
    """The output folder of a comparison.

    ``plan.json`` lists the runs that were planned last; ``runs/`` holds a folder for each that was begun, with
    ``result.json`` or ``failed.json`` in it once it has ended; ``logs/`` holds what each printed; ``report/`` what was
    made of them.

    Args:
        path: The folder; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.logs = path / "logs"
        self.plan = path / "plan.json"
        self.report = path / "report"

    def require_usable(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            UserError: It does, or it is a file.
        """
        content = content_of(self.path)
        if content and not self.plan.exists():
            raise UserError(f"output folder {self.path} holds other files ({min(content)}): name another as --output")

    def changes(self, runs: Sequence[PlannedRun]) -> tuple[list[PlannedRun], list[str]]:
        """What a changed configuration means for a folder that was begun with another.

        Returns:
            The runs that were not planned before, and the names of the run folders that are planned no longer.
        """
        planned = {run.name for run in runs}
        try:
            before = {entry["run"] for entry in json.loads(self.plan.read_text("utf-8"))["runs"]}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            before = planned  # nothing to compare with
        begun = sorted(folder.name for folder in self.runs.iterdir()) if self.runs.is_dir() else []
        return [run for run in runs if run.name not in before], [name for name in begun if name not in planned]

    @contextmanager
    def claim(self, runs: Sequence[PlannedRun]) -> Iterator[None]:
        """Make the folder, keep other comparisons out of it, and write the plan down.

        Raises:
            UserError: Another comparison is at work in it, or it holds something else by now, or it cannot be made.
        """
        in_use = f"another comparison is at work in {self.path}: wait for it, or name another folder as --output"
        with locked(self.path, in_use):
            self.require_usable()
            write_json(self.plan, {"runs": [{"run": run.name, **names_of(run.recipe, run.method)} for run in runs]})
            self.runs.mkdir(exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            yield

    def state(self, run: PlannedRun) -> State:
        """How far a run is."""
        if (run.folder / "result.json").exists():
            return "done"
        if failure_file(run).exists():
            return "failed"
        return "unfinished" if (run.folder / "recipe.yaml").exists() else "waiting"

    def error(self, run: PlannedRun) -> str | None:
        """With what a run has failed; None: it has not."""
        if self.state(run) != "failed":
            return None
        return read_failure(failure_file(run))

    def durations(self, runs: Sequence[PlannedRun]) -> list[tuple[PlannedRun, float]]:
        """The runs that are done, with the seconds that each took.

        Raises:
            UserError: A record is damaged.
        """
        return [(run, read_record(run).train_seconds) for run in runs if self.state(run) == "done"]

    def log(self, run: PlannedRun) -> Path:
        """Where a run's output goes."""
        return self.logs / f"{run.name}.log"


def read_record(run: PlannedRun) -> Record:
    """The record of a run that is done.

    Raises:
        UserError: It is damaged.
    """
    try:
        return Record.read(run.folder / "result.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{error}; remove {run.folder} to do the run again") from None


def failure_file(run: PlannedRun) -> Path:
    """Where the error of a failed run stands."""
    return run.folder / "failed.json"


def read_failure(path: Path) -> str:
    """The error that stands in a failed run's file."""
    try:
        return str(json.loads(path.read_text("utf-8"))["error"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"an error that cannot be told: {path} is damaged"


def write_failure(run: PlannedRun, error: str) -> None:
    """Record that a run has failed."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(failure_file(run), {**names_of(run.recipe, run.method), "error": error})


def names_of(recipe: Recipe, label: str) -> dict[str, Any]:
    """What a run is about, as a result record names it, and what it is called."""
    names = {"method": recipe.method, "model": recipe.model, "task": recipe.task, "seed": recipe.seed}
    return {**names, "label": label}
