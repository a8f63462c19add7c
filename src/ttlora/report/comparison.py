"""All runs on one base model as a table: a row for each method, a column for each task, an average, and sizes."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ttlora.errors import printable
from ttlora.report.rows import Column, Mean, Row
from ttlora.report.runs import Run
from ttlora.report.settings import file_names, group_by_settings, model_names, task_key

# the paper's names, in the order of its Tables I and II
TASK_NAMES = {
    "glue/mnli": "MNLI",
    "glue/mnli-mismatched": "MNLI-mm",
    "glue/sst2": "SST-2",
    "glue/mrpc": "MRPC",
    "glue/cola": "CoLA",
    "glue/qnli": "QNLI",
    "glue/qqp": "QQP",
    "glue/rte": "RTE",
    "glue/stsb": "STS-B",
    "glue/wnli": "WNLI",
    "superglue/cb": "CB",
    "superglue/boolq": "BoolQ",
    "superglue/wsc": "WSC",
    "superglue/copa": "COPA",
    "superglue/wic": "WiC",
    "superglue/rte": "RTE (SuperGLUE)",
    "superglue/multirc": "MultiRC",
    "superglue/record": "ReCoRD",
}
OURS = "tt-lora"
MOST_REFERENCES = 3


@dataclass(frozen=True)
class ModelTable:
    """The table of one base model.

    Attributes:
        model: The model, as the records name it.
        name: A short name for it.
        columns: Tasks, in the paper's order.
        rows: Methods by falling size, TT-LoRA last, as in the paper.
    """

    model: str
    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @cached_property
    def averaged(self) -> tuple[Column, ...]:
        """The tasks of the average: those that all methods have, whose metric is a score."""
        return tuple(
            column
            for column in self.columns
            if not column.lower_is_better and all(column in row.cells for row in self.rows)
        )

    @property
    def not_averaged(self) -> list[str]:
        """Why each of the other tasks is not in the average, a line each."""
        reasons = []
        for column in self.columns:
            if column in self.averaged:
                continue
            lacking = [row.label for row in self.rows if column not in row.cells]
            reason = f"no run of {', '.join(lacking)}" if lacking else f"{column.measure} is no score"
            reasons.append(f"{column.name} is not in the average: {reason}")
        return reasons

    def average(self, row: Row) -> Mean | None:
        """A row's average over the tasks that all rows have."""
        return row.average(self.averaged)

    def is_best(self, row: Row, column: Column | None) -> bool:
        """Whether no row has a better value in a column (None: the average), after rounding to the two digits shown."""
        values = [self._shown(other, column) for other in self.rows]
        known = [value for value in values if value is not None]
        value = self._shown(row, column)
        return len(known) > 1 and value is not None and value == max(known)

    @property
    def has_one_score(self) -> bool:
        """Whether there is one score alone, of which an average would say nothing more."""
        return len(self.rows) == len(self.columns) == 1

    @cached_property
    def ours(self) -> tuple[Row, ...]:
        """The rows of TT-LoRA, the best first."""
        return tuple(sorted((row for row in self.rows if row.method == OURS), key=self.merit, reverse=True))

    @cached_property
    def references(self) -> tuple[Row, ...]:
        """What sizes are given in multiples of: every TT-LoRA if they are few, or else the best; without any, the
        smallest adapter. A single row has none.
        """
        if len(self.rows) == 1:
            return ()
        if self.ours:
            return self.ours if len(self.ours) <= MOST_REFERENCES else self.ours[:1]
        adapters = [row for row in self.rows if row.parameters > 0]
        return (min(adapters, key=lambda row: row.parameters),) if adapters else ()

    @cached_property
    def best_settings(self) -> tuple[Row, ...]:
        """The best row of each method, in the order of the rows."""
        best: dict[str, Row] = {}
        for row in self.rows:
            if row.method not in best or self.merit(row) > self.merit(best[row.method]):
                best[row.method] = row
        return tuple(row for row in self.rows if row is best[row.method])

    def merit(self, row: Row) -> tuple[float, int, int]:
        """The key for ranking rows: the average, then the number of tasks, then fewer parameters."""
        average = self.average(row)
        return (-math.inf if average is None else average.value, len(row.cells), -row.parameters)

    def _shown(self, row: Row, column: Column | None) -> float | None:
        mean = self.average(row) if column is None else row.score(column)
        if mean is None:
            return None
        return -round(mean.value, 2) if column is not None and column.lower_is_better else round(100 * mean.value, 2)


def compare(runs: Iterable[Run]) -> list[ModelTable]:
    """A table for each base model, by the models' names.

    Args:
        runs: No two of them of the same recipe and seed.
    """
    by_model = defaultdict(list)
    for run in runs:
        by_model[run.record.model].append(run)
    names = model_names(by_model)
    return [
        _compare(model, names[model], by_model[model]) for model in sorted(by_model, key=lambda model: names[model])
    ]


def _compare(model: str, name: str, runs: Sequence[Run]) -> ModelTable:
    columns = task_columns(runs)
    rows = []
    for label, group in group_by_settings(runs).items():
        cells = {
            column: tuple(
                sorted((run for run in group if task_key(run.record) == key), key=lambda run: run.record.seed)
            )
            for key, column in columns.items()
        }
        record = group[0].record
        rows.append(
            Row(
                label,
                record.method,
                record.adapter_parameters,
                {column: runs for column, runs in cells.items() if runs},
            )
        )
    rows.sort(key=lambda row: (row.method == OURS, -row.parameters, row.label))
    return ModelTable(model, name, tuple(columns.values()), tuple(rows))


def task_columns(runs: Sequence[Run]) -> dict[tuple[str, str], Column]:
    """A column for each task and metric among the runs, in the paper's order, by their `task_key`."""
    keys = {task_key(run.record) for run in runs}
    order = list(TASK_NAMES)
    places = file_names(task.removeprefix("file ") for task, _ in keys if task.startswith("file "))
    columns = {}
    for task, metric in sorted(keys, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key)):
        name = TASK_NAMES.get(task) or places.get(task.removeprefix("file ")) or printable(task, 80)
        twice = sum(other == task for other, _ in keys) > 1
        columns[task, metric] = Column(task, metric, f"{name} ({printable(metric, 40)})" if twice else name)
    return columns
