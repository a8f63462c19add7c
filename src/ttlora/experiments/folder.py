"""The output folder of many runs: the plan, a folder for each run, and who may work in it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ttlora.errors import UserError, one_line
from ttlora.experiments.run import Run
from ttlora.finetune.folder import content_of, locked
from ttlora.finetune.recipe import Recipe
from ttlora.strict_yaml import write_yaml
from ttlora.whole_files import write_json

# the key of plan.json under which each kind lists its runs
LISTS = {"comparison": "runs", "search": "trials"}


class RunsFolder:
    """The output folder of a comparison or a search.

    ``plan.json`` lists the runs; ``runs/`` holds a folder for each that was begun, with ``result.json`` or
    ``failed.json`` in it once it has ended; ``logs/`` holds what each printed; ``report/`` is made of them. A search
    has besides ``rows.json``, which tells its rows from others, and ``best.yaml``, the recipe of its best trial.

    Args:
        path: The folder; it need not be there yet.
        kind: What it is the folder of.
    """

    def __init__(self, path: Path, kind: Literal["comparison", "search"]) -> None:
        self.path, self.kind = path, kind
        self.plan = path / "plan.json"
        self.runs = path / "runs"
        self.logs = path / "logs"
        self.report = path / "report"
        self.rows = path / "rows.json"
        self.best = path / "best.yaml"
        self.ray = path / "ray"

    @property
    def has_begun(self) -> bool:
        """Whether any run has left something."""
        return self.runs.is_dir() and any(self.runs.iterdir())

    def require_usable(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            UserError: It does, or it is a file.
        """
        content = content_of(self.path)
        if not content:
            return
        if not self.plan.exists():
            if (self.path / "search.json").exists() and self.kind == "search":
                raise UserError(
                    f"{self.path} holds a search of an earlier version of ttlora: to go on with it, "
                    f"mv {self.path}/search.json {self.plan}; mv {self.path}/trials {self.runs}"
                )
            raise UserError(
                f"output folder {self.path} holds other files ({min(content)}): name another folder as `output`"
            )
        for kind, key in LISTS.items():
            if kind != self.kind and key in self._plan():
                raise UserError(f"output folder {self.path} holds a {kind}: name another folder as `output`")

    def read_plan(self) -> dict[str, Any] | None:
        """What was asked when the search in the folder was begun, and its trials; None: none has begun.

        Raises:
            UserError: The file is damaged.
        """
        if not self.has_begun or not self.plan.exists():
            return None
        try:
            content = json.loads(self.plan.read_text("utf-8"))
            for trial in content["trials"]:
                # the name becomes that of a folder
                kinds = {"name": str, "settings": dict, "parameters": int}
                if not all(isinstance(trial[key], kind) for key, kind in kinds.items()) or not trial["name"].isalnum():
                    raise ValueError(f"it holds the trial {trial!r:.80}")
            return {"asked": dict(content["asked"]), "trials": content["trials"]}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{self.plan} is damaged: {one_line(error)}; name another folder as `output`") from None

    def write_plan(self, content: Mapping[str, Any]) -> None:
        """Write down what is planned."""
        write_json(self.plan, content)

    def changes(self, runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
        """What a changed configuration means for a comparison that was begun with another.

        Returns:
            The runs that were not planned before, and the names of the run folders that are planned no longer.
        """
        planned = {run.name for run in runs}
        try:
            before = {entry["run"] for entry in self._plan()["runs"]}
        except (TypeError, KeyError):
            before = planned  # nothing to compare with
        begun = sorted(folder.name for folder in self.runs.iterdir()) if self.runs.is_dir() else []
        return [run for run in runs if run.name not in before], [name for name in begun if name not in planned]

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Make the folder, and keep others out of it.

        Raises:
            UserError: Another process is at work in it, or it holds something else by now, or it cannot be made.
        """
        in_use = f"another {self.kind} is at work in {self.path}: wait for it, or name another folder as `output`"
        with locked(self.path, in_use):
            # another one may have come and gone since `require_usable` was asked
            self.require_usable()
            for folder in (self.runs, self.logs):
                folder.mkdir(exist_ok=True)
            yield

    def log(self, name: str) -> Path:
        """The file that takes what a run prints."""
        return self.logs / f"{name}.log"

    def write_best(self, recipe: Recipe) -> None:
        """Write a recipe for ``ttlora train``, which asks for an output folder of its own."""
        content = {key: value for key, value in recipe.as_dict().items() if key != "output" and value is not None}
        write_yaml(self.best, content)

    def drop_checkpoints(self, runs: Sequence[Run]) -> None:
        """Drop what only a search that goes on needs."""
        for run in runs:
            shutil.rmtree(run.folder.checkpoints, ignore_errors=True)

    def _plan(self) -> dict[str, Any]:
        """The content of the plan; empty where it is damaged."""
        try:
            content = json.loads(self.plan.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}
