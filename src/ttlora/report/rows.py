"""One row of a table: the runs of a method with the same settings, and their means."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev

from ttlora.errors import printable
from ttlora.report.runs import Run
from ttlora.report.settings import Settings, common_settings

LOWER_IS_BETTER = ("perplexity",)
BYTES_PER_PARAMETER = 2  # in 16 bit, as the paper counts


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        spread: Standard deviation over the seeds (n - 1 in its denominator); None for one seed.
        count: Number of seeds.
    """

    value: float
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Mean and standard deviation of one value a seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.spread is None else self.spread / math.sqrt(self.count)


@dataclass(frozen=True)
class Column:
    """A task with its metric."""

    task: str
    metric: str
    name: str

    @property
    def measure(self) -> str:
        """The metric's name as it is shown."""
        return printable(self.metric, 40)

    @property
    def scale(self) -> int:
        """The factor for showing its values: 100 for scores in 0..1, as the paper prints them."""
        return 1 if self.lower_is_better else 100

    @property
    def lower_is_better(self) -> bool:
        """Whether lower values are better."""
        return self.metric in LOWER_IS_BETTER


@dataclass(frozen=True, eq=False)
class Row:
    """A method with its settings, and its runs on each task.

    Attributes:
        label: Name of the method, with the settings that tell it from other rows.
        method: The method's name in the records.
        parameters: Trained parameters outside the head.
        cells: The runs on each task, one for each seed.
    """

    label: str
    method: str
    parameters: int
    cells: dict[Column, tuple[Run, ...]]

    @property
    def runs(self) -> list[Run]:
        """All its runs."""
        return [run for runs in self.cells.values() for run in runs]

    @property
    def storage(self) -> int:
        """Bytes of the adapter in 16 bit, without the head."""
        return BYTES_PER_PARAMETER * self.parameters

    @cached_property
    def settings(self) -> Settings:
        """The settings in which all its runs agree."""
        return common_settings(self.runs)

    @property
    def head_parameters(self) -> tuple[int, int]:
        """Fewest and most trained parameters of a head; tasks with more classes have larger ones."""
        counts = [run.record.head_parameters for run in self.runs]
        return min(counts), max(counts)

    @property
    def peak_memory(self) -> int:
        """The highest peak memory of its runs, in bytes."""
        return max(run.record.peak_memory_bytes for run in self.runs)

    def score(self, column: Column) -> Mean | None:
        """Mean of a task's metric over the seeds; None where there is no run."""
        runs = self.cells.get(column)
        return Mean.of([run.record.metrics[column.metric] for run in runs]) if runs else None

    def average(self, columns: Sequence[Column]) -> Mean | None:
        """Mean over tasks of the mean over seeds, with the spread of the seeds' own averages where all have all tasks.

        Args:
            columns: The tasks; None is the answer if there is none, or one of them has no run.
        """
        scores = [self.score(column) for column in columns]
        if not scores or None in scores:
            return None
        value = fmean(score.value for score in scores if score is not None)
        by_seed: dict[int, list[float]] = defaultdict(list)
        for column in columns:
            for run in self.cells[column]:
                by_seed[run.record.seed].append(run.record.metrics[column.metric])
        if any(len(values) != len(columns) for values in by_seed.values()):
            return Mean(value, None, min(score.count for score in scores if score is not None))
        return Mean(value, Mean.of([fmean(values) for values in by_seed.values()]).spread, len(by_seed))

    def seconds_per_step(self, columns: Iterable[Column]) -> float:
        """Mean duration of a step over those of the tasks on which it was run, with equal weight for each task."""
        tasks = [self.cells[column] for column in columns if column in self.cells] or list(self.cells.values())
        return fmean(fmean(run.record.seconds_per_step for run in runs) for runs in tasks)
