"""How long the runs that are left will take, from those that are done."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ttlora.experiments.run import Likeness, Run
from ttlora.finetune.progress import format_duration


@dataclass(frozen=True)
class Estimate:
    """The time that is left.

    Attributes:
        seconds: For the runs of which something is known.
        known: The number of these.
        unknown: The number of runs on models on which none is done yet.
    """

    seconds: float
    known: int
    unknown: int

    def __str__(self) -> str:
        if not self.known:
            return "the time left is not known before a first run is done"
        duration = f"about {format_duration(self.seconds)} left"
        if not self.unknown:
            return duration
        runs = "1 run" if self.unknown == 1 else f"{self.unknown} runs"
        return f"{duration}, and {runs} on models on which none is done yet"


def durations(runs: Iterable[Run]) -> list[tuple[Likeness, float]]:
    """The likeness and the seconds of each run that has a record."""
    return [(run.likeness, record.train_seconds) for run in runs if (record := run.record) is not None]


def estimate(done: Iterable[tuple[Likeness, float]], left: Sequence[Likeness], parallel: int) -> Estimate:
    """How long the runs that are left will take.

    Args:
        done: Finished runs, with the seconds that each took.
        left: Runs to be done.
        parallel: How many are done at a time.
    """
    of_alike: dict[Likeness, list[float]] = {}
    for likeness, seconds in done:
        for length in range(1, len(likeness) + 1):
            of_alike.setdefault(likeness[:length], []).append(seconds)
    known = []
    for likeness in left:
        alike = (of_alike.get(likeness[:length]) for length in range(len(likeness), 0, -1))
        if seconds_of_alike := next(filter(None, alike), None):
            known.append(fmean(seconds_of_alike))
    return Estimate(sum(known) / parallel, len(known), len(left) - len(known))
