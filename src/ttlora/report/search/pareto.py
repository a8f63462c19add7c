"""How small an adapter can be: the front of score against parameters, and the smallest that is good enough."""

from collections.abc import Iterable, Sequence

from ttlora.report.rows import LOWER_IS_BETTER
from ttlora.report.search.trials import TrialResult

ONE_POINT = 0.01
ROUNDING = 1e-9


def front(trials: Iterable[TrialResult]) -> tuple[TrialResult, ...]:
    """The trials that none beats: no other is at most as large and at least as good, and better in one of the two.

    Args:
        trials: Trials on one task; those that were stopped count too, since their adapters are there.

    Returns:
        They by rising size and score; of equals, the one with the lower validation loss.
    """
    kept: list[TrialResult] = []
    for trial in sorted(trials, key=_size):
        if not kept or trial.merit > kept[-1].merit:
            kept.append(trial)
    return tuple(kept)


def highest(trials: Iterable[TrialResult]) -> TrialResult:
    """The trial with the best score; of equals, the smallest."""
    return min(trials, key=lambda trial: (-trial.merit, *_size(trial)))


def smallest_within_a_point(trials: Sequence[TrialResult]) -> TrialResult:
    """The smallest adapter whose score is at most a point (0.01) below the best, or 1 % where scores have no points."""
    best = highest(trials)
    slack = ONE_POINT if _has_points(best) else ONE_POINT * abs(best.merit)
    least = min(best.merit, best.merit - slack - ROUNDING)  # a huge whole number is less than itself minus a little
    return min((trial for trial in trials if trial.merit >= least), key=_size)


def smallest_reaching(trials: Iterable[TrialResult], target: float) -> TrialResult | None:
    """The smallest adapter whose score is the target or better; None: no adapter reaches it.

    Args:
        trials: Trials on one task.
        target: A score, from 0 to 1, or a perplexity.
    """
    reaching = [
        trial
        for trial in trials
        if (trial.score >= target - ROUNDING if _has_points(trial) else trial.score <= target + ROUNDING)
    ]
    return min(reaching, key=_size, default=None)


def _has_points(trial: TrialResult) -> bool:
    return trial.record.primary_metric not in LOWER_IS_BETTER


def _size(trial: TrialResult) -> tuple[int, float, float, str]:
    return trial.parameters, -trial.merit, trial.loss, trial.name
