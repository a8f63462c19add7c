"""The trials of a search: runs on one task and one model, and the settings in which they differ."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ttlora.errors import UserError, printable
from ttlora.record import Record
from ttlora.report.comparison import OURS, task_columns
from ttlora.report.rows import BYTES_PER_PARAMETER, LOWER_IS_BETTER, Column
from ttlora.report.runs import Failure, Run, find_runs, is_drawable
from ttlora.report.settings import (
    FIRST_SETTINGS,
    METHOD_NAMES,
    model_names,
    setting_values,
    value_text,
    without_repeats,
)

TABLE_SETTINGS = ("shape", "r", "alpha", "learning_rate")  # those of the paper's Table IV
NAMES = {"shape": "tensor shape", "r": "rank", "alpha": "α"}


@dataclass(frozen=True, eq=False)
class TrialResult:
    """A trial that has a result, whether it ran to its end or was stopped.

    Attributes:
        name: Name of its folder, under the one that holds all trials.
        run: Its result record, and the log beside it.
    """

    name: str
    run: Run

    @property
    def record(self) -> Record:
        """Its result record."""
        return self.run.record

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Its settings by name, and its method."""
        return {**setting_values(self.record), "method": self.record.method}

    @property
    def loss(self) -> float:
        """Its validation loss."""
        return self.record.validation_loss

    @property
    def score(self) -> float:
        """Its primary metric."""
        return self.record.metrics[self.record.primary_metric]

    @property
    def merit(self) -> float:
        """Its score, or minus that where lower is better."""
        return -self.score if self.record.primary_metric in LOWER_IS_BETTER else self.score

    @property
    def parameters(self) -> int:
        """Trained parameters outside the head."""
        return self.record.adapter_parameters

    @property
    def storage(self) -> int:
        """Bytes of the adapter in 16 bit, without the head."""
        return BYTES_PER_PARAMETER * self.parameters


@dataclass(frozen=True)
class SearchResult:
    """All that is known of a search.

    Attributes:
        model: A short name of the base model.
        column: The task with its metric.
        trials: Its trials, by rising validation loss.
        failures: Trials that failed.
        notes: What was left out, a line each.
    """

    model: str
    column: Column
    trials: tuple[TrialResult, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """The settings in which the trials differ."""
        return differing(self.trials)

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The settings that tables show: those of the paper's Table IV, and others in which the trials differ."""
        first = [name for name in TABLE_SETTINGS if any(name in trial.settings for trial in self.trials)]
        return tuple(dict.fromkeys([*first, *self.searched]))

    @cached_property
    def method(self) -> str:
        """The name of the trials' method, or the number of methods if there are several."""
        methods = {trial.record.method for trial in self.trials}
        only = next(iter(methods))
        return METHOD_NAMES.get(only, printable(only, 40)) if len(methods) == 1 else f"{len(methods)} methods"

    def heading(self, name: str) -> str:
        """A setting's name as it is shown."""
        if name == "r" and self.method == METHOD_NAMES[OURS]:
            return "TT-rank"
        return NAMES.get(name) or printable(name.replace("_", " "), 40)

    def describe(self, trial: TrialResult) -> str:
        """A trial's settings in a line."""
        parts = [(self.heading(name), setting_text(trial.settings.get(name))) for name in self.shown]
        return ", ".join(f"{name} {text}" for name, text in parts)

    def score_text(self, trial: TrialResult) -> str:
        """A trial's score as it is shown."""
        return f"{self.column.scale * trial.score:,.2f}"


def read_search(results: Sequence[str | Path]) -> SearchResult:
    """Read the trials of a search.

    Args:
        results: Folders that are searched for result records, or records.

    Raises:
        UserError: No record can be read, or they are of several models or tasks.
    """
    found = find_runs(results)
    runs, repeated = without_repeats(found.runs)
    models = model_names(sorted({run.record.model for run in runs}))
    columns = task_columns(runs)
    for what, names in (("models", models.values()), ("tasks", [column.name for column in columns.values()])):
        if len(names) > 1:
            raise UserError(
                f"results hold trials on {len(names)} {what} ({', '.join(names)}): name those of one search"
            )
    folders = [run.path.absolute().parent for run in runs]
    root = os.path.commonpath([folder.parent for folder in folders])
    trials = [
        TrialResult(printable(str(folder.relative_to(root)), 80), run)
        for folder, run in zip(folders, runs, strict=True)
    ]
    trials.sort(key=lambda trial: (trial.loss, trial.parameters, trial.name))
    (model,), (column,) = models.values(), columns.values()
    return SearchResult(model, column, tuple(trials), found.failures, (*found.damaged, *repeated))


def differing(trials: Sequence[TrialResult]) -> tuple[str, ...]:
    """The settings in which some trials differ, those of an adapter first."""
    names = {name for trial in trials for name in trial.settings}
    order = {name: place for place, name in enumerate(FIRST_SETTINGS)}
    return tuple(
        name
        for name in sorted(names, key=lambda name: (order.get(name, len(order)), name))
        if len({value_text(trial.settings.get(name)) for trial in trials}) > 1
    )


def setting_text(value: Any) -> str:
    """A setting's value as it is shown: 5e-4, [16, 24, 24, 16], q_proj [64, 64]."""
    if value is None:
        return "–"
    if isinstance(value, float) and is_drawable(value):
        return number_text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(setting_text, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{printable(str(name), 60)} {setting_text(part)}" for name, part in value.items())
    return printable(value if isinstance(value, str) else json.dumps(value), 100)


def number_text(value: float) -> str:
    """A number with at most six significant digits: 0.05, 5e-4."""
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.6g}"
    digits, _, power = f"{value:.5e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
