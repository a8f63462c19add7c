"""The settings in figures: the importance of each, and the validation loss of every trial against each."""

import math
import textwrap
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from ttlora.report.drawing import COLOURS, OUR_COLOUR, Picture, new_figure, render
from ttlora.report.runs import is_drawable
from ttlora.report.search.importance import Importances
from ttlora.report.search.trials import SearchResult, TrialResult, number_text, setting_text

MOST_CHOICES = 8
MOST_CATEGORIES = 24
MOST_PANELS = 9
MOST_TICKS = 4
LINE = 44  # letters of a category's name in a line
LARGE_RATIO = 4  # of the highest to the lowest loss, from which its axis is logarithmic
GOLDEN = 0.6180339887498949


def draw_importances(search: SearchResult, importances: Importances) -> list[Picture]:
    """Bars of importance; None if the trials allow no estimate."""
    if not importances.settings:
        return []
    settings = importances.settings[::-1]
    figure = new_figure(7.0, 0.9 + 0.3 * len(settings))
    axes = figure.add_subplot()
    shares = [100 * one.share for one in settings]
    bars = axes.barh(range(len(settings)), shares, color=COLOURS[0], height=0.62)
    axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3)
    axes.set_yticks(range(len(settings)), [search.heading(one.setting) for one in settings])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.15 * max(*shares, 1.0))
    axes.set_xlabel(f"share of the variance of the validation loss, in % (forest: R² {importances.fit:.2f})")
    return [render(figure, "importance", "Importance of each setting", importances.explanation)]


def draw_losses(search: SearchResult) -> list[Picture]:
    """The validation loss against each setting: a panel for each that is a number, a strip for each value of others."""
    numbers = [
        name for name in search.searched if all(is_drawable(trial.settings.get(name)) for trial in search.trials)
    ]
    categories = [name for name in search.searched if name not in numbers]
    text = (
        "One marker a trial, hollow if it was stopped early, a star for the lowest loss; "
        "bars are medians of those that ran to the end."
    )
    pictures = []
    if numbers:
        pictures.append(_draw_numbers(search, numbers[:MOST_PANELS], text))
    if categories:
        pictures.append(_draw_categories(search, categories, text))
    return pictures


def loss_axis(axes: Axes, which: Literal["x", "y"], losses: Sequence[float]) -> None:
    """Scale one axis for losses: logarithmic if some are several times as large as others."""
    low, high = min(losses), max(losses)
    axis = axes.xaxis if which == "x" else axes.yaxis
    if low <= 0 or high < LARGE_RATIO * low:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return
    axes.set(**{f"{which}scale": "log"})
    number_ticks(axis, low, high)


def number_ticks(
    axis: Axis, low: float, high: float, most: int = 8, text: Callable[[float], str] = number_text
) -> None:
    """Ticks of a logarithmic axis, at most `most` of them where possible, written by `text`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def _draw_numbers(search: SearchResult, names: Sequence[str], text: str) -> Picture:
    wide = 2 if len(names) == 4 else min(3, len(names))
    high = math.ceil(len(names) / wide)
    figure = new_figure(7.0, 2.5 * high if wide > 1 else 3.0)
    grid = figure.subplots(high, wide, squeeze=False, sharey=True).flatten()
    for axes, name in zip(grid, names, strict=False):
        _draw_number(axes, search, name)
        axes.grid(True)
        axes.set_xlabel(search.heading(name))
    loss_axis(grid[0], "y", [trial.loss for trial in search.trials])
    for axes in grid[::wide]:
        axes.set_ylabel("validation loss")
    for axes in grid[len(names) :]:
        axes.remove()
    return render(figure, "loss-by-setting", "Validation loss against each setting", text)


def _draw_number(axes: Axes, search: SearchResult, name: str) -> None:
    """Values at even distances, each trial drawn a little beside its value; many values get an axis of numbers."""
    values = [trial.settings[name] for trial in search.trials]
    choices = sorted(set(values))
    drawn_often = 2 * len(choices) <= len(values) or all(isinstance(choice, int) for choice in choices)
    if len(choices) > MOST_CHOICES or not drawn_often:
        if _are_logarithmic(choices):
            axes.set_xscale("log")
            number_ticks(axes.xaxis, choices[0], choices[-1], MOST_TICKS)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(MOST_TICKS))
        for trial, value in zip(search.trials, values, strict=True):
            axes.plot(value, trial.loss, **_look(search, trial))
        return
    places = {choice: place for place, choice in enumerate(choices)}
    for index, (trial, value) in enumerate(zip(search.trials, values, strict=True)):
        axes.plot(places[value] + _aside(index), trial.loss, **_look(search, trial))
    for choice, place in places.items():
        own = [trial for trial, value in zip(search.trials, values, strict=True) if value == choice]
        if (middle := _median(own)) is not None:
            axes.plot([place - 0.32, place + 0.32], [middle] * 2, color="#222222", linewidth=1.4, zorder=4)
    texts = [number_text(choice) for choice in choices]
    crowded = sum(map(len, texts)) > 20
    axes.set_xticks(range(len(choices)), texts, rotation=60 if crowded else 0)
    axes.set_xlim(-0.6, len(choices) - 0.4)


def _are_logarithmic(choices: Sequence[float]) -> bool:
    """Whether sorted numbers lie more evenly on a logarithmic axis, where their median is nearer to the middle."""
    if choices[0] <= 0:
        return False
    low, middle, high = choices[0], median(choices), choices[-1]
    even = (middle - low) / (high - low)
    return abs(math.log(middle / low) / math.log(high / low) - 0.5) < abs(even - 0.5)


def _draw_categories(search: SearchResult, names: Sequence[str], text: str) -> Picture:
    groups = [_by_category(search, name) for name in names]
    shown = [dict(list(group.items())[:MOST_CATEGORIES]) for group in groups]
    labels = [[textwrap.fill(category, LINE) for category in group] for group in shown]
    lines = [sum(0.14 * label.count("\n") + 0.26 for label in part) for part in labels]
    figure = new_figure(7.0, 0.6 * len(names) + sum(lines) + 0.3)
    grid = figure.subplots(len(names), 1, squeeze=False, sharex=True, height_ratios=lines).flatten()
    index = 0
    for axes, name, group, texts in zip(grid, names, shown, labels, strict=True):
        for place, trials in enumerate(group.values()):
            for trial in trials:
                axes.plot(trial.loss, place + 0.8 * _aside(index), **_look(search, trial))
                index += 1
            if (middle := _median(trials)) is not None:
                axes.plot([middle] * 2, [place - 0.32, place + 0.32], color="#222222", linewidth=1.4, zorder=4)
        axes.set_yticks(range(len(group)), texts, fontsize=8)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_title(search.heading(name), loc="left")
        axes.grid(True, axis="x")
    loss_axis(grid[-1], "x", [trial.loss for group in shown for trials in group.values() for trial in trials])
    grid[-1].set_xlabel("validation loss")
    cut = "" if shown == groups else f" Of each setting, the {MOST_CATEGORIES} values with the lowest losses."
    title = f"Validation loss by {' and '.join(search.heading(name) for name in names)}"
    return render(figure, "loss-by-category", title, text + cut)


def _by_category(search: SearchResult, name: str) -> dict[str, list[TrialResult]]:
    """The trials by the setting's value; the value with the lowest loss comes first."""
    groups: dict[str, list[TrialResult]] = {}
    for trial in search.trials:
        groups.setdefault(setting_text(trial.settings.get(name)), []).append(trial)
    return groups


def _median(trials: Sequence[TrialResult]) -> float | None:
    """The lowest loss of the trials that ran to the end: a stopped trial's loss is that of another epoch."""
    losses = [trial.loss for trial in trials if not trial.record.stopped_early]
    return median(losses) if losses else None


def _aside(index: int) -> float:
    """How far beside its value each trial is drawn, so that equal values do not hide one another; always the same."""
    return 0.5 * ((index * GOLDEN) % 1 - 0.5)


def _look(search: SearchResult, trial: TrialResult) -> dict[str, Any]:
    if trial is search.trials[0]:
        return {"marker": "*", "markersize": 11, "color": OUR_COLOUR, "linestyle": "", "markeredgecolor": "white",
                "zorder": 5}  # fmt: skip
    return {"marker": "o", "markersize": 4.5, "color": COLOURS[0], "linestyle": "", "alpha": 0.75, "zorder": 3,
            "markerfacecolor": "none" if trial.record.stopped_early else COLOURS[0]}  # fmt: skip
