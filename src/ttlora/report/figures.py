"""The paper's figures for one base model: score against size, storage, score by α, and time and memory of a step."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ttlora.report.comparison import OURS, ModelTable
from ttlora.report.curves import draw_curves
from ttlora.report.drawing import (
    COLOURS,
    MARKERS,
    OUR_COLOUR,
    Picture,
    average_label,
    chosen,
    count_axis,
    drawing,
    label_of,
    marks,
    new_figure,
    render,
    short_count,
    shown_rows,
)
from ttlora.report.formats import format_size
from ttlora.report.labels import Label, place_labels
from ttlora.report.rows import Mean, Row

FIGURE_NAMES = (
    *("score-by-parameters", "storage", "score-by-alpha", "speed-and-memory"),
    *("learning-curves", "training-loss"),
)
HEIGHTS = (4.2, 5.4, 7.0)
QUIET = "#666666"


def draw_figures(comparison: ModelTable, prefix: str = "") -> list[Picture]:
    """Every figure for which the comparison has something to show.

    Args:
        comparison: The runs on one base model.
        prefix: Put before each name, where there are several models.
    """
    with drawing():
        pictures = [
            _score_by_parameters(comparison, prefix),
            _storage(comparison, prefix),
            _score_by_alpha(comparison, prefix),
            _speed_and_memory(comparison, prefix),
            *draw_curves(comparison, prefix),
        ]
    return [picture for picture in pictures if picture is not None]


def _score_by_parameters(comparison: ModelTable, prefix: str) -> Picture | None:
    """The paper's Fig. 1; it grows until every label has a place."""
    scores = _scores(comparison)
    if not any(row.parameters > 0 for row, _ in scores):
        return None
    for height in HEIGHTS:
        figure = new_figure(7.0, height)
        if _scatter(figure, comparison, scores):
            break
    return render(
        figure,
        f"{prefix}score-by-parameters",
        "Score against trained parameters",
        "One marker a method: its average score over its adapter's parameters, on a logarithmic axis. "
        f"Bars are standard deviations over seeds. The numbers are in the table of scores.{chosen(comparison)}",
    )


def _scores(comparison: ModelTable) -> list[tuple[Row, Mean]]:
    averages = [(row, comparison.average(row)) for row in comparison.rows]
    return [(row, mean) for row, mean in averages if mean is not None]


def _scatter(figure: Figure, comparison: ModelTable, scores: Sequence[tuple[Row, Mean]]) -> bool:
    axes = figure.add_subplot()
    mark, named = marks(comparison), shown_rows(comparison)
    labels, bars = [], []
    for row, mean in scores:
        if not row.parameters > 0:
            continue
        x, y, spread = row.parameters, 100 * mean.value, 100 * (mean.spread or 0.0)
        look = mark[row]
        if row not in named:
            axes.plot(x, y, ".", color=look.colour, alpha=0.4, zorder=2)
            continue
        axes.errorbar(x, y, spread or None, color=look.colour, marker=look.marker, markersize=look.size,
                      elinewidth=1, capsize=2.5, markeredgecolor="white", markeredgewidth=0.5, zorder=4)  # fmt: skip
        labels.append(Label(label_of(row), x, y, _text_colour(row), bold=row.method == OURS))
        bars.append((x, y - spread, y + spread))
    axes.set_xlabel("trained parameters of the adapter, without the head (logarithmic)")
    axes.set_ylabel(average_label(comparison))
    count_axis(axes, [row.parameters for row, _ in scores if row.parameters > 0], short_count)
    ends = [100 * (mean.value + sign * (mean.spread or 0.0)) for _, mean in scores for sign in (-1, 1)]
    room = max(0.12 * (max(ends) - min(ends)), 0.5)
    axes.set_ylim(min(ends) - room, max(ends) + room)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    obstacles = [_bar_box(axes, *bar) for bar in bars]
    obstacles += _draw_headline(axes, scores, [(label.x, label.y) for label in labels])
    return place_labels(axes, labels, 9.0, obstacles)


def _text_colour(row: Row) -> str:
    return "#A84300" if row.method == OURS else "#222222"  # darker than the markers, so that small letters are read


def _bar_box(axes: Axes, x: float, low: float, high: float) -> Bbox:
    (left, bottom), (right, top) = axes.transData.transform([(x, low), (x, high)])
    return Bbox.from_extents(left - 3, bottom - 1, right + 3, top + 1)


def _draw_headline(axes: Axes, scores: Sequence[tuple[Row, Mean]], points: Sequence[tuple[float, float]]) -> list[Bbox]:
    """A line for the best method without adapter: zero parameters have no place on a logarithmic axis."""
    bare = [(mean.value, row) for row, mean in scores if not row.parameters > 0]
    if not bare:
        return []
    value, row = max(bare, key=lambda pair: pair[0])
    axes.axhline(100 * value, color=QUIET, linestyle="--", linewidth=1, zorder=1)
    text = axes.text(0, 100 * value, label_of(row), color=QUIET, va="bottom", transform=axes.get_yaxis_transform())
    pixels = axes.transData.transform(points)
    boxes = []
    for place, side in ((0.99, "right"), (0.01, "left"), (0.5, "center")):
        text.set(x=place, horizontalalignment=side)
        boxes.append(text.get_window_extent())
        if not boxes[-1].padded(8).count_contains(pixels):
            break
    line = axes.get_window_extent()
    height = axes.transData.transform((1, 100 * value))[1]
    return [boxes[-1], Bbox.from_extents(line.x0, height - 1, line.x1, height + 1)]


def _storage(comparison: ModelTable, prefix: str) -> Picture | None:
    """The paper's Fig. 4."""
    rows = sorted((row for row in shown_rows(comparison) if row.parameters > 0), key=lambda row: row.parameters)
    if not rows:
        return None
    figure = new_figure(7.0, 1.0 + 0.27 * len(rows))
    axes = figure.add_subplot()
    mark = marks(comparison)
    sizes = [row.storage / 1024 for row in rows]
    count_axis(axes, sizes, lambda size: f"{size:,g}" if size < 1e6 else f"{size:,.0f}")
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        look = mark[row]
        axes.plot([axes.get_xlim()[0], size], [place, place], color=look.colour, linewidth=1.2, alpha=0.5, zorder=2)
        axes.plot(size, place, look.marker, color=look.colour, markersize=look.size, zorder=3)
        axes.annotate(format_size(row.storage), (size, place), (8, 0), textcoords="offset points", va="center")
    _name_rows(axes, rows)
    axes.set_xlabel("adapter in 16 bit, without the head, in KiB (logarithmic)")
    return render(
        figure,
        f"{prefix}storage",
        "Storage of each adapter in 16 bit",
        "One line a method: the bytes of its adapter, two a parameter, on a logarithmic axis. "
        f"The numbers are in the table of costs.{chosen(comparison)}",
    )


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [label_of(row) for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for row, text in zip(rows, axes.get_yticklabels(), strict=True):
        if row.method == OURS:
            text.set(weight="bold", color=_text_colour(row))


def _score_by_alpha(comparison: ModelTable, prefix: str) -> Picture | None:
    """The paper's Fig. 5, for TT-LoRA or else for a method that was run with several α."""
    rows = {
        method: [(row, mean, alpha) for row, mean, alpha in _with_alpha(comparison) if row.method == method]
        for method in (OURS, *sorted({row.method for row in comparison.rows}))
    }
    found = next((points for points in rows.values() if len({alpha for *_, alpha in points}) > 1), None)
    if found is None:
        return None
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    alphas = sorted({alpha for *_, alpha in found})
    for index, alpha in enumerate(alphas):
        points = [(row.parameters, 100 * mean.value) for row, mean, other in found if other == alpha]
        colour = colormaps["viridis"](0.92 * index / (len(alphas) - 1))
        axes.plot(*zip(*points, strict=True), MARKERS[index % len(MARKERS)], color=colour, label=f"{alpha:g}",
                  markersize=7.5, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    count_axis(axes, [row.parameters for row, *_ in found], short_count)
    axes.margins(y=0.1)
    axes.set_xlabel("trained parameters of the adapter, without the head (logarithmic)")
    axes.set_ylabel(average_label(comparison))
    figure.legend(loc="outside right upper", title="α")
    return render(
        figure,
        f"{prefix}score-by-alpha",
        f"Score against trained parameters by α: {found[0][0].label.split(' ')[0]}",
        "One marker for each setting: its average score over its adapter's parameters, on a logarithmic axis; colour "
        "and marker tell α. The numbers are in the table of scores.",
    )


def _with_alpha(comparison: ModelTable) -> list[tuple[Row, Mean, float]]:
    points = []
    for row, mean in _scores(comparison):
        try:
            points.append((row, mean, float(row.settings["alpha"])))
        except (KeyError, ValueError):
            continue
    return [point for point in points if point[0].parameters > 0]


def _speed_and_memory(comparison: ModelTable, prefix: str) -> Picture:
    rows = shown_rows(comparison)[::-1]
    figure = new_figure(7.0, 1.0 + 0.27 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    unit, size = ("GiB", 2**30) if max(row.peak_memory for row in rows) >= 2**30 else ("MiB", 2**20)
    _draw_bars(left, rows, [row.seconds_per_step(comparison.averaged) for row in rows])
    _draw_bars(right, rows, [row.peak_memory / size for row in rows])
    _name_rows(left, rows)
    right.tick_params(axis="y", length=0)
    left.set_xlabel("seconds a training step")
    right.set_xlabel(f"peak memory in {unit}")
    return render(
        figure,
        f"{prefix}speed-and-memory",
        "Seconds a step and peak memory",
        "Two bars a method: mean duration of a training step, and the most memory in use. "
        f"The numbers are in the table of costs.{chosen(comparison)}",
    )


def _draw_bars(axes: Axes, rows: Sequence[Row], values: Sequence[float]) -> None:
    colours = [OUR_COLOUR if row.method == OURS else COLOURS[0] for row in rows]
    bars = axes.barh(range(len(rows)), values, color=colours, height=0.62)
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
    axes.set_xlim(0, 1.35 * max(*values, 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(3))
