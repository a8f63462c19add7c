"""The answer of a search in three sentences or so: what is best, how small one can go, and what it took."""

from dataclasses import dataclass

from ttlora.report.formats import counted, format_duration, format_factor, format_metric, format_size
from ttlora.report.search.pareto import highest, smallest_reaching, smallest_within_a_point
from ttlora.report.search.trials import SearchResult, TrialResult


@dataclass(frozen=True)
class SearchAnswer:
    """What the trials say.

    Attributes:
        best: The trial with the lowest validation loss.
        highest: The trial with the best score.
        smallest: The smallest adapter within a point of the best score.
        target: The score that was asked for.
        reaching: The smallest adapter that has it.
        good: What is best, in words.
        small: How small one can go.
        effort: Trials and time.
    """

    best: TrialResult
    highest: TrialResult
    smallest: TrialResult
    target: float | None
    reaching: TrialResult | None
    good: str
    small: str
    effort: str


def answer(search: SearchResult, target: float | None) -> SearchAnswer:
    """Sum a search up.

    Args:
        search: Its trials.
        target: The score that is to be reached, from 0 to 1; None: none was named.
    """
    best, top = search.trials[0], highest(search.trials)
    smallest = smallest_within_a_point(search.trials)
    reaching = None if target is None else smallest_reaching(search.trials, target)
    return SearchAnswer(
        best,
        top,
        smallest,
        target,
        reaching,
        _good(search, best, top),
        f"{_small(search, smallest, top)}{_target(search, reaching, target)}",
        _effort(search),
    )


def _good(search: SearchResult, best: TrialResult, top: TrialResult) -> str:
    where = f"on {search.column.name} ({format_metric(search.column)})"
    sentence = (
        f"Trial {best.name} has the lowest validation loss, {best.loss:.4f}: {search.describe(best)}{_cut(best)}."
    )
    scores = f"It scores {search.score_text(best)} {where} with {_sized(best)}"
    if best.merit == top.merit:
        return f"{sentence} {scores}; no trial scores better."
    return (
        f"{sentence} {scores}. Trial {top.name} has the best score, {search.score_text(top)}, at a validation loss of "
        f"{top.loss:.4f}: {search.describe(top)}{_cut(top)}, with {_sized(top)}."
    )


def _small(search: SearchResult, smallest: TrialResult, top: TrialResult) -> str:
    near = "1 %" if search.column.lower_is_better else "one point"
    if smallest.parameters == top.parameters:
        return (
            f"No adapter smaller than that of trial {top.name}, {_sized(top)}, comes within {near} of the best score."
        )
    sentence = (
        f"An adapter of {_sized(smallest)} comes within {near} of the best score: trial {smallest.name} scores "
        f"{search.score_text(smallest)}, with {search.describe(smallest)}{_cut(smallest)}"
    )
    if not smallest.parameters:
        return f"{sentence}."
    return (
        f"{sentence}. It is {format_factor(top.parameters / smallest.parameters)} smaller than that of the best score."
    )


def _target(search: SearchResult, reaching: TrialResult | None, target: float | None) -> str:
    if target is None:
        return ""
    asked = f"the target of {search.column.scale * target:,.2f}"
    if reaching is None:
        return f" No trial reaches {asked}."
    return (
        f" The smallest that reaches {asked} is that of trial {reaching.name}, with {_sized(reaching)}: it scores "
        f"{search.score_text(reaching)}, with {search.describe(reaching)}{_cut(reaching)}."
    )


def _effort(search: SearchResult) -> str:
    ended = sum(not trial.record.stopped_early for trial in search.trials)
    counts = [
        f"{ended:,} ran to the end",
        f"{len(search.trials) - ended:,} stopped early",
        f"{len(search.failures):,} failed",
    ]
    seconds = sum(trial.record.train_seconds for trial in search.trials)
    total = counted(len(search.trials) + len(search.failures), "trial")
    return f"{total}: {', '.join(counts)}. {format_duration(seconds)} of training in total."


def _sized(trial: TrialResult) -> str:
    return f"{counted(trial.parameters, 'parameter')} ({format_size(trial.storage)} in 16 bit)"


def _cut(trial: TrialResult) -> str:
    record = trial.record
    return f" (stopped after epoch {record.epochs} of {record.planned_epochs})" if record.stopped_early else ""
