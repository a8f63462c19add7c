"""How long the runs that are left will take, from those that are done."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ttlora.experiments.runs import PlannedRun

# from the closest likeness to the farthest: a run takes about as long as those that are like it
LIKENESSES: Sequence[Callable[[PlannedRun], object]] = (
    lambda run: (run.model, run.task, run.method),
    lambda run: (run.model, run.task),
    lambda run: run.model,
)


@dataclass(frozen=True)
class Estimate:
    """The time that is left.

    Attributes:
        seconds: For the runs of which something is known.
        known: How many these are.
        unknown: How many runs there are of which nothing is known, since none on their model is done.
    """

    seconds: float
    known: int
    unknown: int

    def __str__(self) -> str:
        if not self.known:
            return "how long cannot be told before the first run on a model is done"
        duration = f"about {format_duration(self.seconds)} left"
        if not self.unknown:
            return duration
        runs = "1 run" if self.unknown == 1 else f"{self.unknown} runs"
        return f"{duration}, and {runs} on models on which none is done yet"


def estimate(done: Sequence[tuple[PlannedRun, float]], left: Sequence[PlannedRun], parallel: int) -> Estimate:
    """How long the runs that are left will take.

    Args:
        done: Finished runs, with the seconds that each took.
        left: Runs to be done.
        parallel: How many are done at a time.
    """
    durations: dict[object, list[float]] = {}
    for run, seconds in done:
        for likeness in LIKENESSES:
            durations.setdefault(likeness(run), []).append(seconds)
    alike = [_first(durations.get(likeness(run)) for likeness in LIKENESSES) for run in left]
    known = [fmean(seconds) for seconds in alike if seconds]
    return Estimate(sum(known) / parallel, len(known), len(left) - len(known))


def format_duration(seconds: float) -> str:
    """A duration as people say it, without more digits than an estimate has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.0f} days"


def _first(candidates: Iterable[list[float] | None]) -> list[float] | None:
    return next((candidate for candidate in candidates if candidate), None)
