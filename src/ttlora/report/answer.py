"""The answer in three sentences: how good TT-LoRA is, how small and how fast, beside LoRA and the best."""

import math
from dataclasses import dataclass

from ttlora.report.comparison import ModelTable
from ttlora.report.formats import counted, format_factor, format_mean, format_range, format_seconds, format_size
from ttlora.report.rows import Column, Row


@dataclass(frozen=True)
class ModelAnswer:
    """What one base model's runs say.

    Attributes:
        good: Score, place among the methods, distance to LoRA and to the best.
        small: Parameters and bytes of the adapter, beside the others.
        fast: Seconds a step and memory, beside LoRA.
    """

    good: str
    small: str
    fast: str


def answer(comparison: ModelTable) -> ModelAnswer:
    """Sum a comparison up.

    The best TT-LoRA is spoken of, or the best method where there is none; it is measured against the best LoRA, or the
    best other method where there is none.
    """
    subject = comparison.ours[0] if comparison.ours else _best(comparison, comparison.rows)
    others = [row for row in comparison.rows if row.method != subject.method]
    baseline = _best(comparison, [row for row in others if row.method == "lora"] or others) if others else None
    return ModelAnswer(
        _good(comparison, subject, baseline),
        _small(comparison, subject, baseline),
        _fast(comparison, subject, baseline),
    )


def _best(comparison: ModelTable, rows: list[Row] | tuple[Row, ...]) -> Row:
    return max(rows, key=comparison.merit)


def _good(comparison: ModelTable, subject: Row, baseline: Row | None) -> str:
    missing = "" if comparison.ours else "There is no run of TT-LoRA. "
    mine = comparison.average(subject)
    if mine is None:
        return (
            f"{missing}No task was run with all methods, so there is no average to compare: "
            f"{subject.label} was run on {counted(len(subject.cells), 'task')}, see the table."
        )
    if len(comparison.averaged) == 1:
        where = f"{comparison.averaged[0].name} ({comparison.averaged[0].measure})"
    else:
        where = f"average over {len(comparison.averaged)} tasks"
    settings = len([row for row in comparison.rows if row.method == subject.method])
    chosen = f" (the best of its {settings} settings)" if settings > 1 else ""
    sentence = f"{missing}{subject.label}{chosen} scores {format_mean(mine)} on {where}, {counted(mine.count, 'seed')}"
    if len(comparison.rows) == 1:
        return f"{sentence}; there is no other method to compare it with."
    ranked = sorted(comparison.rows, key=lambda row: -_shown(comparison, row))
    place = 1 + sum(_shown(comparison, row) > _shown(comparison, subject) for row in ranked)
    sentence += f": {'best' if place == 1 else f'number {place}'} of {len(ranked)}"
    beside = [] if baseline is None else [baseline]
    if ranked[0] not in (subject, baseline):
        beside.append(ranked[0])
    parts = [_distance(comparison, subject, row) for row in beside]
    return f"{sentence}; {'; '.join(parts)}." if parts else f"{sentence}."


def _shown(comparison: ModelTable, row: Row) -> float:
    average = comparison.average(row)
    return -math.inf if average is None else round(100 * average.value, 2)


def _distance(comparison: ModelTable, subject: Row, other: Row) -> str:
    """The distance between the scores of two rows, and whether it is larger than the spread of the seeds."""
    mine, theirs = comparison.average(subject), comparison.average(other)
    assert mine is not None, "the subject has an average"
    assert theirs is not None, "tasks of the average are run with all methods"
    gap = _shown(comparison, subject) - _shown(comparison, other)
    if mine.error is None or theirs.error is None:
        doubt = " (one seed: no telling how much of it is chance)" if 1 in (mine.count, theirs.count) else ""
    else:
        chance = 200 * math.hypot(mine.error, theirs.error)
        doubt = f", {'within' if abs(gap) < chance else 'beyond'} two standard errors ({chance:.2f})"
    if not round(gap, 2):
        return f"level with {other.label}{doubt}"
    direction = "above" if gap > 0 else "below"
    return f"{abs(gap):.2f} points {direction} {other.label} ({format_mean(theirs)}){doubt}"


def _small(comparison: ModelTable, subject: Row, baseline: Row | None) -> str:
    head = f"the head has {format_range(subject.head_parameters)} more"
    if not subject.parameters:
        return f"{subject.label} trains no adapter; {head}."
    sentence = (
        f"The adapter of {subject.label} has {counted(subject.parameters, 'parameter')}, "
        f"{format_size(subject.storage)} in 16 bit ({head})"
    )
    if baseline is not None and baseline.parameters:
        factor = baseline.parameters / subject.parameters
        if factor > 1:
            times = f"{format_factor(factor)} smaller than that of"
        elif factor < 1:
            times = f"{format_factor(1 / factor)} larger than that of"
        else:
            times = "as large as that of"
        sentence += f": {times} {baseline.label} ({baseline.parameters:,})"
    smaller = [row for row in comparison.rows if 0 < row.parameters < subject.parameters]
    if smaller:
        least = min(smaller, key=lambda row: row.parameters)
        which = least.label if len(smaller) == 1 else f"{len(smaller)} others, down to {least.label}"
        sentence += f"; smaller still: {which} ({least.parameters:,})"
    return f"{sentence}."


def _fast(comparison: ModelTable, subject: Row, baseline: Row | None) -> str:
    columns = _shared(comparison, subject, baseline)
    mine = subject.seconds_per_step(columns)
    sentence = f"A training step of {subject.label} takes {format_seconds(mine)}"
    if baseline is None:
        return f"{sentence}; peak memory is {format_size(subject.peak_memory)}."
    if not columns:
        return f"{sentence}; no task was run with {baseline.label} too, so there is nothing to compare it with."
    sentence += _beside(mine, baseline.seconds_per_step(columns), baseline)
    if _computing(subject, columns) != _computing(baseline, columns):
        sentence += ", though at another batch size, length or number of threads"
    memory = f"{format_size(subject.peak_memory)} against {format_size(baseline.peak_memory)}"
    return f"{sentence}; peak memory is {memory}."


def _beside(mine: float, theirs: float, baseline: Row) -> str:
    if theirs <= 0:
        return ""
    percent = round(100 * (mine / theirs - 1))
    if not percent:
        return f", as long as one of {baseline.label}"
    more = "more" if percent > 0 else "less"
    return f", {abs(percent)} % {more} than one of {baseline.label} ({format_seconds(theirs)})"


def _shared(comparison: ModelTable, subject: Row, baseline: Row | None) -> list[Column]:
    return [column for column in subject.cells if baseline is None or column in baseline.cells]


def _computing(row: Row, columns: list[Column]) -> set[tuple[str, ...]]:
    """The settings that decide how long a step takes with any method."""
    names = ("batch_size", "max_length", "threads")
    return {
        tuple(str(run.record.recipe.get(name)) for name in names) for column in columns for run in row.cells[column]
    }
