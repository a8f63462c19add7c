"""Learning curves: the score on the validation rows, and the training loss, by epoch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ttlora.errors import printable
from ttlora.report.comparison import OURS, ModelTable
from ttlora.report.drawing import Mark, Picture, chosen, label_of, marks, new_figure, render, shown_rows
from ttlora.report.formats import format_metric
from ttlora.report.rows import Column, Row
from ttlora.report.runs import Run

MOST_COLUMNS = 3
MOST_POINTS = 20
Curve = Sequence[tuple[float, float]]


def draw_curves(comparison: ModelTable, prefix: str) -> list[Picture]:
    """A figure of scores and one of training losses, a panel a task; none where the runs have no logs.

    Args:
        comparison: The runs on one base model.
        prefix: Put before each name.
    """
    rows = shown_rows(comparison)
    scores: dict[Column, dict[Row, Curve]] = {}
    losses: dict[Column, dict[Row, Curve]] = {}
    for column in comparison.columns:
        for row in rows:
            runs = row.cells.get(column, ())
            scores.setdefault(column, {})[row] = _mean_curve(runs, f"validation_{column.metric}", column.scale)
            losses.setdefault(column, {})[row] = _thinned(_mean_curve(runs, "loss", 1))
    seeds = f"Where a method has several seeds, the line is their mean.{chosen(comparison)}"
    return [
        *_draw(
            comparison,
            scores,
            {column: format_metric(column) for column in scores},
            f"{prefix}learning-curves",
            "Learning curves: score on the validation rows",
            f"One panel a task, one line a method: the score after each epoch. {seeds}",
        ),
        *_draw(
            comparison,
            losses,
            dict.fromkeys(losses, "training loss"),
            f"{prefix}training-loss",
            "Learning curves: training loss",
            f"One panel a task, one line a method: the training loss over the epochs. {seeds}",
        ),
    ]


def _mean_curve(runs: Iterable[Run], key: str, scale: int) -> Curve:
    """Mean over the runs that have a log, up to the last step that all of them reached."""
    logs = [{entry["epoch"]: entry[key] for entry in run.log if key in entry} for run in runs]
    logs = [log for log in logs if log]
    if not logs:
        return []
    epochs = set(logs[0]).intersection(*logs)
    return [(epoch, scale * fmean(log[epoch] for log in logs)) for epoch in sorted(epochs)]


def _thinned(curve: Curve) -> Curve:
    """Means of neighbouring points: the loss of a few batches is mostly noise."""
    width = max(1, math.ceil(len(curve) / MOST_POINTS))
    parts = [curve[start : start + width] for start in range(0, len(curve), width)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def _draw(
    comparison: ModelTable,
    curves: Mapping[Column, Mapping[Row, Curve]],
    heights: Mapping[Column, str],
    name: str,
    title: str,
    description: str,
) -> list[Picture]:
    panels = {column: lines for column, lines in curves.items() if any(len(line) > 1 for line in lines.values())}
    if not panels:
        return []
    mark = marks(comparison)
    rows = [row for row in shown_rows(comparison) if any(lines[row] for lines in panels.values())]
    wide = 2 if len(panels) == 4 else min(MOST_COLUMNS, len(panels))
    high = math.ceil(len(panels) / wide)
    longest = max(len(label_of(row)) for row in rows)
    width = 7.8 if wide == 3 else 7.0
    beside = max(1, min(3, int(72 * width / (5.5 * longest + 50))))  # a letter is about 5.5 points wide
    figure = new_figure(width, (3.2 if wide == 1 else 2.2) * high + 0.2 * math.ceil(len(rows) / beside))
    grid = figure.subplots(high, wide, squeeze=False).flatten()
    for axes, (column, lines) in zip(grid, panels.items(), strict=False):
        for row in rows:
            if lines[row]:
                axes.plot(*zip(*lines[row], strict=True), **_look(mark[row], row.method == OURS))
        axes.set_title(printable(column.name, 28))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
        axes.set_ylabel(printable(heights[column], 26))
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - wide) : len(panels)]:
        axes.set_xlabel("epoch")
    keys = [Line2D([], [], label=label_of(row), **_look(mark[row], row.method == OURS)) for row in rows]
    figure.legend(handles=keys, loc="outside lower center", ncols=beside)
    return [render(figure, name, title, description)]


def _look(mark: Mark, ours: bool) -> dict[str, Any]:
    return {
        "color": mark.colour,
        "marker": mark.marker,
        "linestyle": mark.line,
        "linewidth": 1.8 if ours else 1.1,
        "markersize": mark.size / 2,
        "zorder": 4 if ours else 3,
    }
