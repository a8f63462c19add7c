"""`ttlora report`: result records as tables, figures and one page."""

from __future__ import annotations

import json as json_format
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table as RichTable
from rich.text import Text

from ttlora.cli.console import StdoutConsole

if TYPE_CHECKING:
    from ttlora.report.comparison import ModelTable
    from ttlora.report.report import Report
    from ttlora.report.rows import Mean, Row
    from ttlora.report.tables import Cell, Table

MOST_OF_A_LABEL = 36


def report(results: list[str], *, output: str, json: bool = False) -> None:
    """Compare finished runs: tables as in the paper, figures, and one page of HTML.

    OUTPUT gets report.html, tables.md, tables.csv and figures/ as SVG and PNG. An earlier report in it is replaced;
    any other content is refused.

    Args:
        results: Result records, or folders that are searched for them.
        output: Folder for the report; empty, not there yet, or an earlier report.
        json: Print the tables as one JSON object.

    Raises:
        UserError: There is no record that can be read, or the output folder holds something else.
    """
    from ttlora.report.report import write_report

    written = write_report(results, output)
    for note in written.notes:
        print(f"left out: {note}", file=sys.stderr)
    if json:
        print(json_format.dumps(_as_json(written), indent=2))
    else:
        print_report(written)


def print_report(written: Report) -> None:
    """Print the answers and tables of a report, and where it is."""
    from ttlora.report.formats import counted
    from ttlora.report.tables import cost_table, explanations, score_table

    console = StdoutConsole()
    for comparison, answer in zip(written.comparisons, written.answers, strict=True):
        console.print(Text(comparison.name, style="bold"))
        for sentence in (answer.good, answer.small, answer.fast):
            console.print(Text(sentence))
        for table in (score_table(comparison), cost_table(comparison)):
            for part in parts(table, console.width):
                console.print()
                console.print(part)
        console.print()
        for sentence in explanations(comparison):
            console.print(Text(sentence, style="dim"))
        console.print()
    if written.failures:
        console.print(Text(f"{counted(len(written.failures), 'run')} failed:", style="bold"))
        for failure in written.failures:
            where = f"{failure.method}, {failure.model}, {failure.task}, seed {failure.seed}"
            console.print(Text(f"  {where}: {failure.error}"))
        console.print()
    console.print(Text(str(written.output / "report.html")))


def parts(table: Table, width: int) -> Iterator[RichTable]:
    """A table in as many as fit side by side into the terminal, each with its first column."""
    widths = [
        max(_width(heading.replace(" ", "\n")), *(_width(_stacked(row[index])) for row in table.rows)) + 2
        for index, heading in enumerate(table.headings)
    ]
    widths[0] = min(widths[0], MOST_OF_A_LABEL + 2)
    columns: list[int] = []
    for index in range(1, len(widths)):
        if columns and widths[0] + sum(widths[column] for column in [*columns, index]) > width:
            yield _part(table, columns, widths)
            columns = []
        columns.append(index)
    yield _part(table, columns, widths)


def _part(table: Table, columns: Sequence[int], widths: Sequence[int]) -> RichTable:
    part = RichTable(box=None, padding=(0, 2, 0, 0))
    part.add_column(Text(table.headings[0]), overflow="ellipsis", no_wrap=True, max_width=MOST_OF_A_LABEL)
    for column in columns:
        heading = textwrap.fill(table.headings[column], widths[column] - 2, break_on_hyphens=False)
        part.add_column(Text(heading), justify="right")
    for row in table.rows:
        cells = [Text(_stacked(row[column]), style="bold" if row[column].best else "") for column in columns]
        part.add_row(Text(row[0].text), *cells)
    return part


def _stacked(entry: Cell) -> str:
    """The spread under its mean, so that many tasks fit beside each other."""
    return entry.text.replace(" ± ", "\n±")


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _as_json(written: Report) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "output": str(written.output),
        "files": [str(path) for path in written.files],
        "models": [
            {
                "model": comparison.model,
                "answer": asdict(answer),
                "averaged": [column.task for column in comparison.averaged],
                "methods": [_row_as_json(comparison, row) for row in comparison.rows],
            }
            for comparison, answer in zip(written.comparisons, written.answers, strict=True)
        ],
        "failures": [asdict(failure) for failure in written.failures],
        "left_out": list(written.notes),
    }


def _row_as_json(comparison: ModelTable, row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "method": row.method,
        "adapter_parameters": row.parameters,
        "head_parameters": list(row.head_parameters),
        "adapter_bytes_16bit": row.storage,
        "tasks": [
            {"task": column.task, "metric": column.metric, **_mean_as_json(row.score(column))} for column in row.cells
        ],
        "average": _mean_as_json(comparison.average(row)),
        "times_parameters_of": {
            reference.label: row.parameters / reference.parameters
            for reference in comparison.references
            if reference.parameters
        },
        "seconds_per_step": row.seconds_per_step(comparison.averaged),
        "peak_memory_bytes": row.peak_memory,
    }


def _mean_as_json(mean: Mean | None) -> dict[str, Any]:
    return {} if mean is None else {"mean": mean.value, "standard_deviation": mean.spread, "seeds": mean.count}
