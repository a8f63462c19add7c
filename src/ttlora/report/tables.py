"""The tables as plain cells, as Markdown and as CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ttlora.report.comparison import ModelTable
from ttlora.report.formats import (
    counted,
    format_factor,
    format_mean,
    format_metric,
    format_range,
    format_seconds,
    format_size,
)
from ttlora.report.rows import Column, Mean, Row
from ttlora.report.runs import Failure

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A cell as text; its value is what it is sorted by."""

    text: str
    best: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table as text; its first column names the methods."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def score_table(comparison: ModelTable) -> Table:
    """The layout of the paper's Tables I and II: parameters, a column a task, the average, and how many times the
    parameters of each reference.
    """
    same = same_seeds(comparison) is not None
    average = () if comparison.has_one_score else ("average",)
    headings = ("method", "parameters", *(column.name for column in comparison.columns), *average)
    rows = []
    for row in comparison.rows:
        columns = (*comparison.columns, *(None for _ in average))
        scores = [_entry(comparison, row, column, same) for column in columns]
        factors = [Cell(factor_text(row, reference)) for reference in comparison.references]
        rows.append((Cell(row.label), Cell(f"{row.parameters:,}"), *scores, *factors))
    return Table((*headings, *(f"size / {reference.label}" for reference in comparison.references)), tuple(rows))


def cost_table(comparison: ModelTable) -> Table:
    """What each method costs: head, storage, time and memory."""
    headings = ("method", "head parameters", "adapter, 16 bit", "saved, with head", "step", "training", "peak memory")
    rows = []
    for row in comparison.rows:
        saved = max(run.record.adapter_bytes for run in row.runs)
        step, training = row.seconds_per_step(comparison.averaged), fmean(run.record.train_seconds for run in row.runs)
        entries = (
            Cell(row.label),
            Cell(format_range(row.head_parameters), value=row.head_parameters[1]),
            Cell(format_size(row.storage) if row.parameters else NOTHING, value=row.storage),
            Cell(format_size(saved), value=saved),
            Cell(format_seconds(step), value=step),
            Cell(format_seconds(training), value=training),
            Cell(format_size(row.peak_memory), value=row.peak_memory),
        )
        rows.append(entries)
    return Table(headings, tuple(rows))


def explanations(comparison: ModelTable) -> list[str]:
    """Sentences that explain the score table."""
    seeds = same_seeds(comparison)
    metrics = ", ".join(f"{column.name} {format_metric(column)}" for column in comparison.columns)
    if seeds is None:
        spread = "Mean ± standard deviation over seeds, their number in brackets."
    elif seeds == 1:
        spread = "One seed each, so nothing is known of the spread."
    else:
        spread = f"Mean ± standard deviation over {seeds} seeds."
    sentences = [f"{spread} {metrics}.", "Parameters are those of the adapter, without the task's head."]
    if comparison.references:
        sentences.append("Size: how many times the parameters of the method that the column names.")
    return [*sentences, *(f"{reason}." for reason in comparison.not_averaged)]


def same_seeds(comparison: ModelTable) -> int | None:
    """The number of seeds of every cell, if it is the same."""
    counts = {len(runs) for row in comparison.rows for runs in row.cells.values()}
    return counts.pop() if len(counts) == 1 else None


def factor_text(row: Row, reference: Row) -> str:
    """How many times a reference's parameters a row has."""
    if row is reference:
        return "1"
    return format_factor(row.parameters / reference.parameters) if row.parameters and reference.parameters else NOTHING


def failure_table(failures: Sequence[Failure]) -> Table:
    """The runs that failed, and why."""
    headings = ("method", "model", "task", "seed", "folder", "error")
    rows = ((one.method, one.model, one.task, one.seed, one.folder, one.error) for one in failures)
    return Table(headings, tuple(tuple(map(Cell, row)) for row in rows))


def to_markdown(
    comparisons: Sequence[ModelTable], answers: Sequence[Sequence[str]], failures: Sequence[Failure]
) -> str:
    """All tables of a report.

    Args:
        comparisons: One for each base model.
        answers: The sentences that open each of them.
        failures: Runs that failed.
    """
    parts = []
    for comparison, sentences in zip(comparisons, answers, strict=True):
        parts += [f"## {escaped(comparison.name)}", *map(escaped, sentences)]
        parts += [markdown_table(score_table(comparison)), *map(escaped, explanations(comparison))]
        parts += [markdown_table(cost_table(comparison))]
    if failures:
        parts += [f"## {counted(len(failures), 'run')} failed", markdown_table(failure_table(failures))]
    return "\n\n".join(parts) + "\n"


def to_csv(comparisons: Sequence[ModelTable]) -> str:
    """The score tables in one, a row a method; scores as in the table, sizes in bytes, times in seconds."""
    return csv_text([_csv_row(comparison, row) for comparison in comparisons for row in comparison.rows])


def csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as CSV, with a column for each name that any row has; no cell reads as a formula in a spreadsheet."""
    headings = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_harmless(name) for name in headings])
    for row in rows:
        writer.writerow([_harmless(row.get(name, "")) for name in headings])
    return text.getvalue()


def _entry(comparison: ModelTable, row: Row, column: Column | None, same: bool) -> Cell:
    mean = comparison.average(row) if column is None else row.score(column)
    if mean is None:
        return Cell(NOTHING)
    scale = 100 if column is None else column.scale
    return Cell(format_mean(mean, scale, with_count=not same), comparison.is_best(row, column))


def markdown_table(table: Table) -> str:
    """A table in Markdown; names in it are escaped for Markdown and HTML."""
    lines = [
        _markdown_line([escaped(heading) for heading in table.headings]),
        _markdown_line(["---", *["---:"] * (len(table.headings) - 1)]),
    ]
    for row in table.rows:
        texts = [escaped(entry.text) for entry in row]
        lines.append(
            _markdown_line([f"**{text}**" if entry.best else text for text, entry in zip(texts, row, strict=True)])
        )
    return "\n".join(lines)


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Text escaped for Markdown and for the HTML that is made from it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)


def _csv_row(comparison: ModelTable, row: Row) -> dict[str, str]:
    cells = {
        "model": comparison.name,
        "method": row.label,
        "adapter parameters": str(row.parameters),
        "head parameters": str(row.head_parameters[1]),
    }
    for column in comparison.columns:
        cells |= _csv_mean(f"{column.name} {format_metric(column)}", row.score(column), column.scale)
    cells |= _csv_mean("average", comparison.average(row), 100)
    for reference in comparison.references:
        cells[f"size / {reference.label}"] = (
            f"{row.parameters / reference.parameters:.4g}" if reference.parameters else ""
        )
    return cells | {
        "adapter bytes in 16 bit": str(row.storage),
        "saved bytes": str(max(run.record.adapter_bytes for run in row.runs)),
        "seconds per step": f"{row.seconds_per_step(comparison.averaged):.4g}",
        "peak memory bytes": str(row.peak_memory),
    }


def _csv_mean(name: str, mean: Mean | None, scale: int) -> dict[str, str]:
    if mean is None:
        return {name: "", f"{name} sd": "", f"{name} n": ""}
    spread = "" if mean.spread is None else f"{scale * mean.spread:.4f}"
    return {name: f"{scale * mean.value:.4f}", f"{name} sd": spread, f"{name} n": str(mean.count)}


def _harmless(text: str) -> str:
    """A cell that a spreadsheet does not read as a formula."""
    return f"'{text}" if re.match(r"[=+@\t\r]|-(?![\d.]+$)", text) else text
