"""The folder of a search: its trials, how far each is, and who may work in it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ttlora.errors import UserError, one_line
from ttlora.experiments.folder import names_of, read_failure
from ttlora.finetune.folder import RunFolder, content_of, locked
from ttlora.finetune.recipe import Recipe
from ttlora.record import Record
from ttlora.strict_yaml import write_yaml
from ttlora.whole_files import write_json

State = Literal["done", "stopped", "failed", "unfinished", "waiting"]
OPEN: tuple[State, ...] = ("unfinished", "waiting")


@dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        name: Name of its folder.
        recipe: What it does, with the method's defaults; its output is that folder.
        settings: What of the recipe the search chose.
        parameters: Size of its adapter, without the head.
    """

    name: str
    recipe: Recipe
    settings: Mapping[str, Any]
    parameters: int

    @property
    def folder(self) -> RunFolder:
        """The trial's folder."""
        return RunFolder(self.recipe.output)

    @property
    def record(self) -> Record | None:
        """What it has come to, if it has ended.

        Raises:
            UserError: The record is damaged.
        """
        path = self.folder.result
        try:
            return Record.read(path) if path.exists() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{error}; remove {path.parent} to do the trial again") from None

    @property
    def state(self) -> State:
        """How far it is."""
        if (record := self.record) is not None:
            return "stopped" if record.stopped_early else "done"
        if self.failure.exists():
            return "failed"
        return "unfinished" if self.folder.recipe.exists() else "waiting"

    @property
    def failure(self) -> Path:
        """Where the error of a failed trial stands."""
        return self.folder.path / "failed.json"

    @property
    def error(self) -> str | None:
        """With what it has failed; None: it has not."""
        return read_failure(self.failure) if self.state == "failed" else None

    def fail(self, error: str) -> None:
        """Record that the trial has failed."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_json(self.failure, {**names_of(self.recipe, self.name), "error": error})

    def stop(self) -> None:
        """Make the record of what it has come to its result: the scheduler gave it up."""
        if not self.folder.result.exists() and self.folder.so_far.exists():
            os.replace(self.folder.so_far, self.folder.result)

    def go_on(self) -> None:
        """Take a result back that `stop` has made: the trial goes on after all."""
        if self.state == "stopped" and self.folder.checkpoints.exists():
            os.replace(self.folder.result, self.folder.so_far)


class SearchFolder:
    """The output folder of a search.

    ``search.json`` says what was asked and lists the trials, ``rows.json`` tells their rows from others, ``trials/``
    holds a folder for each that was begun, ``best.yaml`` the recipe of the best, and ``report/`` what was made of them.

    Args:
        path: The folder; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "search.json"
        self.rows = path / "rows.json"
        self.trials = path / "trials"
        self.best = path / "best.yaml"
        self.report = path / "report"
        self.ray = path / "ray"

    @property
    def has_begun(self) -> bool:
        """Whether any trial has left something."""
        return self.trials.is_dir() and any(self.trials.iterdir())

    def require_usable(self, resume: bool) -> None:
        """Refuse a folder that holds something else than the search to be resumed.

        Raises:
            UserError: It does, or it is a file.
        """
        content = content_of(self.path)
        if content and not self.plan.exists():
            raise UserError(f"output folder {self.path} holds other files ({min(content)}): name another as --output")
        if self.has_begun and not resume:
            raise UserError(
                f"output folder {self.path} holds a search: add --resume to go on with it, or name another as --output"
            )

    def read_plan(self) -> dict[str, Any] | None:
        """What was asked when the search was begun, and its trials; None: it was not begun.

        Raises:
            UserError: The file is damaged.
        """
        try:
            content = json.loads(self.plan.read_text("utf-8"))
            for trial in content["trials"]:
                # the name becomes that of a folder
                kinds = {"name": str, "settings": dict, "parameters": int}
                if not all(isinstance(trial[key], kind) for key, kind in kinds.items()) or not trial["name"].isalnum():
                    raise ValueError(f"it holds the trial {trial!r:.80}")
            return {"asked": dict(content["asked"]), "trials": content["trials"]}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{self.plan} is damaged: {one_line(error)}; name another folder as --output") from None

    def write_plan(self, asked: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> None:
        """Write down what was asked and which trials there are."""
        write_json(self.plan, {"asked": asked, "trials": trials})

    @contextmanager
    def claim(self, resume: bool) -> Iterator[None]:
        """Make the folder, and keep other searches out of it.

        Args:
            resume: Whether the search in it, if there is one, is to go on.

        Raises:
            UserError: Another search is at work in it, or has been, or it cannot be made.
        """
        with locked(self.path, f"another search is at work in {self.path}: wait for it, or name another as --output"):
            # another search may have come and gone since `require_usable` was asked
            self.require_usable(resume)
            self.trials.mkdir(exist_ok=True)
            yield

    def write_best(self, recipe: Recipe) -> None:
        """Write a recipe for ``ttlora train``, which asks for an output folder of its own."""
        content = {key: value for key, value in recipe.as_dict().items() if key != "output" and value is not None}
        write_yaml(self.best, content)

    def drop_checkpoints(self, trials: Sequence[Trial]) -> None:
        """Drop what only a search that goes on needs."""
        for trial in trials:
            shutil.rmtree(trial.folder.checkpoints, ignore_errors=True)
        shutil.rmtree(self.ray, ignore_errors=True)
