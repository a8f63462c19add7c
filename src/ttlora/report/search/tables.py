"""The tables of a search as plain cells, as Markdown and as CSV."""

from collections.abc import Sequence

from ttlora.report.formats import counted, format_metric, format_seconds, format_size
from ttlora.report.runs import is_drawable
from ttlora.report.search.answer import SearchAnswer
from ttlora.report.search.importance import Importances
from ttlora.report.search.trials import SearchResult, TrialResult, setting_text
from ttlora.report.settings import METHOD_NAMES, value_text
from ttlora.report.tables import Cell, Table, csv_text, escaped, failure_table, markdown_table


def best_table(search: SearchResult) -> Table:
    """The settings of the paper's Table IV, for the trial with the lowest loss."""
    best = search.trials[0]
    headings = ("model", "task", *map(search.heading, search.shown), "parameters", _score_heading(search))
    row = (
        Cell(search.model),
        Cell(search.column.name),
        *(Cell(setting_text(best.settings.get(name))) for name in search.shown),
        Cell(f"{best.parameters:,}"),
        Cell(search.score_text(best)),
    )
    return Table(headings, (row,))


def front_table(search: SearchResult, front: Sequence[TrialResult]) -> Table:
    """The Pareto front by rising size."""
    quality = (_score_heading(search), "validation loss")
    headings = ("trial", "parameters", "16 bit", *quality, *map(search.heading, search.shown), "epochs", "seed")
    return Table(
        headings,
        tuple(
            (
                Cell(trial.name),
                *_size(trial),
                *_quality(search, trial),
                *_settings(search, trial),
                _epochs(trial),
                Cell(str(trial.record.seed), value=trial.record.seed),
            )
            for trial in front
        ),
    )


def importance_table(search: SearchResult, importances: Importances) -> Table:
    """The importance of each setting."""
    rows = tuple((Cell(search.heading(one.setting)), Cell(f"{100 * one.share:.1f} %")) for one in importances.settings)
    return Table(("setting", "share of the variance of the validation loss"), rows)


def trial_table(search: SearchResult) -> Table:
    """All trials by rising validation loss."""
    quality = (_score_heading(search), "validation loss")
    headings = ("trial", *map(search.heading, search.shown), "parameters", "16 bit", *quality, "epochs", "training")
    return Table(
        headings,
        tuple(
            (
                Cell(trial.name),
                *_settings(search, trial),
                *_size(trial),
                *_quality(search, trial),
                _epochs(trial),
                Cell(format_seconds(trial.record.train_seconds), value=trial.record.train_seconds),
            )
            for trial in search.trials
        ),
    )


def to_markdown(
    search: SearchResult, front: Sequence[TrialResult], answer: SearchAnswer, importances: Importances
) -> str:
    """All tables of a search."""
    parts = [f"# Search for {escaped(search.method)} on {escaped(search.column.name)}"]
    parts += map(escaped, (answer.good, answer.small, answer.effort))
    parts += ["## Best settings", markdown_table(best_table(search))]
    parts += ["## Pareto front of score against parameters", markdown_table(front_table(search, front))]
    parts += ["## Importance of each setting", escaped(importances.explanation)]
    if importances.settings:
        parts += [markdown_table(importance_table(search, importances))]
    parts += ["## All trials", markdown_table(trial_table(search))]
    if search.failures:
        parts += [f"## {counted(len(search.failures), 'trial')} failed", markdown_table(failure_table(search.failures))]
    return "\n\n".join(parts) + "\n"


def to_csv(search: SearchResult, front: Sequence[TrialResult]) -> str:
    """The trials, a row each; settings and metrics as they stand in the records, sizes in bytes, times in seconds."""
    return csv_text([_csv_row(search, trial, trial in front) for trial in search.trials])


def _score_heading(search: SearchResult) -> str:
    return format_metric(search.column)


def _size(trial: TrialResult) -> tuple[Cell, Cell]:
    return (
        Cell(f"{trial.parameters:,}", value=trial.parameters),
        Cell(format_size(trial.storage), value=trial.storage),
    )


def _quality(search: SearchResult, trial: TrialResult) -> tuple[Cell, Cell]:
    top = max(other.merit for other in search.trials)
    return (
        Cell(search.score_text(trial), best=trial.merit == top, value=trial.score),
        Cell(f"{trial.loss:.4f}", best=trial.loss == search.trials[0].loss, value=trial.loss),
    )


def _settings(search: SearchResult, trial: TrialResult) -> list[Cell]:
    return [_setting(search, trial, name) for name in search.shown]


def _setting(search: SearchResult, trial: TrialResult, name: str) -> Cell:
    """A setting's cell; values other than numbers are sorted by length, then as text: shapes by number of cores."""
    value = trial.settings.get(name)
    if name == "method":
        return Cell(METHOD_NAMES.get(str(value), setting_text(value)), value=_place(search, trial, name))
    return Cell(setting_text(value), value=value if is_drawable(value) else _place(search, trial, name))


def _place(search: SearchResult, trial: TrialResult, name: str) -> int:
    texts = {setting_text(other.settings.get(name)) for other in search.trials}
    order = sorted(texts, key=lambda text: (text.count(","), text))
    return order.index(setting_text(trial.settings.get(name)))


def _epochs(trial: TrialResult) -> Cell:
    text = f"{trial.record.epochs} of {trial.record.planned_epochs}"
    return Cell(f"{text}, stopped" if trial.record.stopped_early else text, value=trial.record.epochs)


def _csv_row(search: SearchResult, trial: TrialResult, on_front: bool) -> dict[str, str]:
    record = trial.record
    cells = {"trial": trial.name, "model": search.model, "task": search.column.name, "method": record.method}
    cells |= {name: value_text(trial.settings.get(name)) for name in search.shown if name in trial.settings}
    return cells | {
        "seed": str(record.seed),
        "adapter parameters": str(trial.parameters),
        "adapter bytes in 16 bit": str(trial.storage),
        "head parameters": str(record.head_parameters),
        "saved bytes": str(record.adapter_bytes),
        **{name: f"{value:.6g}" for name, value in record.metrics.items()},
        "validation loss": f"{trial.loss:.6g}",
        "best epoch": str(record.best_epoch),
        "epochs": str(record.epochs),
        "planned epochs": str(trial.record.planned_epochs),
        "stopped early": "yes" if trial.record.stopped_early else "no",
        "on the front": "yes" if on_front else "no",
        "training seconds": f"{record.train_seconds:.6g}",
        "seconds per step": f"{record.seconds_per_step:.4g}",
        "peak memory bytes": str(record.peak_memory_bytes),
    }
