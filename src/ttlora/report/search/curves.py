"""Learning curves of a search: validation loss by epoch, a line a trial."""

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ttlora.report.drawing import COLOURS, OUR_COLOUR, Picture, new_figure, render
from ttlora.report.search.panels import loss_axis
from ttlora.report.search.trials import SearchResult, TrialResult

STOPPED_COLOUR = "#888888"


def draw_curves(search: SearchResult) -> list[Picture]:
    """The figure, or none where no trial has a log."""
    curves = {trial: curve for trial in search.trials if (curve := _curve(trial))}
    if not curves:
        return []
    best = search.trials[0]
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    for trial, curve in curves.items():
        colour = OUR_COLOUR if trial is best else STOPPED_COLOUR if trial.record.stopped_early else COLOURS[0]
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=2.2 if trial is best else 0.9,
                  alpha=1.0 if trial is best else 0.65, zorder=4 if trial is best else 2)  # fmt: skip
        axes.plot(*curve[-1], "o", markersize=4, color=colour, zorder=5 if trial is best else 3,
                  markerfacecolor="white" if trial.record.stopped_early else colour)  # fmt: skip
    loss_axis(axes, "y", [loss for curve in curves.values() for _, loss in curve])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation loss")
    keys = []
    if best in curves:
        keys.append(Line2D([], [], color=OUR_COLOUR, linewidth=2.2, label="lowest loss"))
    if any(not trial.record.stopped_early for trial in curves if trial is not best):
        keys.append(Line2D([], [], color=COLOURS[0], marker="o", markersize=4, label="ran to its end"))
    if any(trial.record.stopped_early for trial in curves):
        keys.append(Line2D([], [], color=STOPPED_COLOUR, marker="o", markersize=4, markerfacecolor="white",
                           label="stopped early"))  # fmt: skip
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return [
        render(
            figure,
            "validation-loss",
            "Learning curves: validation loss",
            "One line a trial: the validation loss after each epoch, to where the trial ended or was stopped. "
            f"Trial {best.name} has the lowest loss.",
        )
    ]


def _curve(trial: TrialResult) -> list[tuple[float, float]]:
    losses = {entry["epoch"]: entry["validation_loss"] for entry in trial.run.log if "validation_loss" in entry}
    return sorted(losses.items())
