"""The figures of a search; here the Pareto front of score against parameters, with α as colour."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from ttlora.report.drawing import (
    COLOURS,
    MARKERS,
    OUR_COLOUR,
    Picture,
    drawing,
    new_figure,
    render,
    short_count,
)
from ttlora.report.formats import format_metric
from ttlora.report.labels import Label, place_labels
from ttlora.report.runs import is_drawable
from ttlora.report.search.answer import SearchAnswer
from ttlora.report.search.curves import draw_curves
from ttlora.report.search.importance import Importances
from ttlora.report.search.panels import draw_importances, draw_losses, number_ticks
from ttlora.report.search.trials import SearchResult, TrialResult, number_text

FIGURE_NAMES = ("pareto-front", "importance", "loss-by-setting", "loss-by-category", "validation-loss")
MOST_ALPHAS = 8
FRONT_COLOUR = "#555555"
INK = "#222222"
RING = 12.0  # width of the ring around a marker that has a label, in points
PLAIN = (COLOURS[0], MARKERS[0])


def draw_figures(
    search: SearchResult, front: Sequence[TrialResult], answer: SearchAnswer, importances: Importances
) -> list[Picture]:
    """The figures of a search; one for which there is no data is left out."""
    with drawing():
        return [
            *_draw_front(search, front, answer),
            *draw_importances(search, importances),
            *draw_losses(search),
            *draw_curves(search),
        ]


def _draw_front(search: SearchResult, front: Sequence[TrialResult], answer: SearchAnswer) -> list[Picture]:
    """The paper's Fig. 5 with the front in it."""
    trials = [trial for trial in search.trials if trial.parameters > 0]
    if not trials:
        return []
    figure = new_figure(7.0, 4.6)
    axes = figure.add_subplot()
    keys = _draw_trials(figure, axes, search, trials)
    target = None if answer.target is None else search.column.scale * answer.target
    _set_axes(axes, search, trials, target)
    if target is not None:
        axes.axhline(target, color=FRONT_COLOUR, linestyle=":", linewidth=1.2, zorder=1)
        keys.append(Line2D([], [], color=FRONT_COLOUR, linestyle=":", label="target"))
    corners = _corners(axes, [(trial.parameters, _height(search, trial)) for trial in front if trial.parameters > 0])
    axes.plot([x for x, _ in corners], [y for _, y in corners], color=FRONT_COLOUR, linewidth=1.2, zorder=2,
              scalex=False, scaley=False)  # fmt: skip
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    boxes = [_marker_box(axes, trial.parameters, _height(search, trial)) for trial in trials]
    lines = [*pairwise(corners)]
    if target is not None:
        left, right = axes.get_xlim()
        lines.append(((left, target), (right, target)))
    boxes += [_line_box(axes, *line) for line in lines]
    labels = _labels(search, answer)
    for label in labels:  # a ring, since many markers can stand about the same place
        axes.plot(label.x, label.y, "o", markersize=RING, markerfacecolor="none", markeredgecolor=OUR_COLOUR, zorder=4)
    place_labels(axes, labels, RING, boxes)
    return [
        render(
            figure,
            "pareto-front",
            "Score against trained parameters",
            "One marker a trial, hollow if it was stopped early; colour and marker tell α. The line is the "
            "Pareto front: the best score up to each size. The numbers are in the tables.",
        )
    ]


def _set_axes(axes: Axes, search: SearchResult, trials: Sequence[TrialResult], target: float | None) -> None:
    least, most = min(trial.parameters for trial in trials) / 1.7, max(trial.parameters for trial in trials) * 1.7
    axes.set_xscale("log")
    axes.set_xlim(least, most)
    number_ticks(axes.xaxis, least, most, text=short_count)
    heights = [_height(search, trial) for trial in trials] + ([] if target is None else [target])
    room = max(0.12 * (max(heights) - min(heights)), 0.005 * max(map(abs, heights)))
    axes.set_ylim(min(heights) - room, max(heights) + room)
    axes.grid(True)
    axes.set_xlabel("trained parameters of the adapter, without the head (logarithmic)")
    axes.set_ylabel(f"{search.column.name}: {format_metric(search.column)}")


def _height(search: SearchResult, trial: TrialResult) -> float:
    return search.column.scale * trial.score


def _draw_trials(figure: Figure, axes: Axes, search: SearchResult, trials: Sequence[TrialResult]) -> list[Line2D]:
    """Draw the markers, and explain their colours.

    Returns:
        Keys for what else the figure shows.
    """
    alphas = sorted({float(alpha) for trial in trials if is_drawable(alpha := trial.settings.get("alpha"))})
    looks = _looks(figure, axes, alphas) if len(alphas) > 1 else {}
    for trial in trials:
        alpha = trial.settings.get("alpha")
        colour, marker = looks.get(float(alpha), PLAIN) if is_drawable(alpha) else PLAIN
        hollow = trial.record.stopped_early
        axes.plot(trial.parameters, _height(search, trial), marker, markersize=7, zorder=3,
                  markerfacecolor="none" if hollow else colour, markeredgecolor=colour if hollow else "white",
                  markeredgewidth=1.2 if hollow else 0.5)  # fmt: skip
    keys = [Line2D([], [], color=FRONT_COLOUR, linewidth=1.2, label="Pareto front")]
    if any(trial.record.stopped_early for trial in trials):
        keys.append(Line2D([], [], color=INK, marker="o", linestyle="", markersize=7, markerfacecolor="none",
                           label="stopped early"))  # fmt: skip
    return keys


def _looks(figure: Figure, axes: Axes, alphas: Sequence[float]) -> dict[float, tuple[Any, str]]:
    """Colour and marker for each α, with a legend; or colour alone with its scale, where there are many."""
    # without viridis' last yellow, which is too light on white
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.86, 256)))
    if len(alphas) > MOST_ALPHAS:
        norm = (LogNorm if alphas[0] > 0 else Normalize)(alphas[0], alphas[-1])
        scale = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="α")
        if alphas[0] > 0:
            number_ticks(scale.ax.yaxis, alphas[0], alphas[-1])
        return {alpha: (colours(norm(alpha)), MARKERS[0]) for alpha in alphas}
    looks: dict[float, tuple[Any, str]] = {
        alpha: (colours(index / (len(alphas) - 1)), MARKERS[index % len(MARKERS)]) for index, alpha in enumerate(alphas)
    }
    keys = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=number_text(alpha))
        for alpha, (colour, marker) in looks.items()
    ]
    figure.legend(handles=keys, loc="outside right upper", title="α")
    return looks


def _corners(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The front as steps to the right end of the axes: a score that a size reaches, every larger size reaches too."""
    corners: list[tuple[float, float]] = []
    ends = [x for x, _ in points[1:]] + [axes.get_xlim()[1]]
    for (x, y), end in zip(points, ends, strict=False):
        corners += [(x, y), (end, y)]
    return corners


def _labels(search: SearchResult, answer: SearchAnswer) -> list[Label]:
    near = "within 1 %" if search.column.lower_is_better else "within a point"
    names = [
        (answer.highest, "best score"),
        (answer.best, "lowest loss"),
        (answer.smallest, f"smallest {near}"),
        (answer.reaching, "smallest at target"),
    ]
    texts: dict[TrialResult, list[str]] = {}
    for trial, name in names:
        if trial is not None and trial.parameters > 0:
            texts.setdefault(trial, []).append(name)
    return [
        Label("\n".join(parts), trial.parameters, _height(search, trial), INK, bold=True)
        for trial, parts in texts.items()
    ]


def _marker_box(axes: Axes, x: float, y: float) -> Bbox:
    left, bottom = axes.transData.transform((x, y))
    return Bbox.from_extents(left - 4, bottom - 4, left + 4, bottom + 4)


def _line_box(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> Bbox:
    (left, low), (right, high) = axes.transData.transform([start, end])
    return Bbox.from_extents(left - 1, min(low, high) - 1, right + 1, max(low, high) + 1)
