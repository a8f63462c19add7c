"""Score against parameters: every adapter at its best learning rate, and the front.

    python benchmarks/front.py docs/results/places.jsonl docs/results/figures/places.svg

The records are those that learning.py appends, of three tasks and one model. An adapter's rate, α and ε are those with
the highest mean over the tasks; a point is the mean over its seeds. The front joins the points that none of fewer
parameters is above. Those of other methods are named where the mean of the tasks is drawn.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from learning import Setting, read
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ttlora.report.drawing import COLOURS, OUR_COLOUR, STYLE

TASKS = {"stsb": "STS-B, Spearman", "mrpc": "MRPC, accuracy", "sst2": "SST-2, accuracy"}
NAMES = {"tt-lora": "TT", "lora": "LoRA", "ia3": "IA3", "road": "RoAd", "vera": "VeRA", "bitfit": "BitFit"}
# those below have not learned
LOWEST = 0.66


@dataclass(frozen=True)
class Point:
    """An adapter: its parameters, and its score on each task."""

    name: str
    method: str
    parameters: int
    scores: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over the tasks."""
        return fmean(self.scores.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("figure", type=Path, help="an .svg or .png")
    arguments = parser.parse_args()
    points = points_of(read(arguments.records))
    for point in sorted(points, key=lambda point: -point.mean):
        scores = " ".join(f"{100 * score:5.1f}" for score in point.scores.values())
        print(f"{point.name:34} {point.parameters:9,} {scores} {100 * point.mean:6.2f}")
    with rc_context(STYLE):
        draw(points).savefig(arguments.figure, bbox_inches="tight")


def points_of(records: Iterable[dict[str, Any]]) -> list[Point]:
    scores: dict[tuple[str, float, int], dict[str, list[float]]] = {}
    for record in records:
        key = record["setting"], record["learning_rate"], record["parameters"]
        scores.setdefault(key, {}).setdefault(record["data"], []).append(record["score"])
    best: dict[tuple[str, int], Point] = {}
    for (setting, _, parameters), of_tasks in scores.items():
        if of_tasks.keys() >= TASKS.keys():
            means = {task: fmean(of_tasks[task]) for task in TASKS}
            point = Point(name_of(setting), Setting.parse(setting).method, parameters, means)
            best[point.name, parameters] = max(best.get((point.name, parameters), point), point, key=lambda p: p.mean)
    return list(best.values())


def name_of(text: str) -> str:
    setting = Setting.parse(text)
    ranks = setting.fields.get("r")
    rank = "" if ranks is None else f" r {ranks}" if isinstance(ranks, int) else " " + "-".join(map(str, ranks))
    for inside in setting.fields.get("rank_pattern", {}).values():
        rank += f" ({inside} in the MLP)"
    return NAMES.get(setting.method, setting.method) + rank + places_of(setting.fields.get("target_modules"))


def places_of(targets: str | None) -> str:
    if targets is None:
        return ""
    # names in brackets, as learning.py's settings have them
    names = re.findall(r"\w+", targets.rpartition("(")[2])
    return {"query": ", all linear" if "key" in names else ", q v", "value": ", but q k"}.get(names[0], ", " + names[0])


def draw(points: list[Point]) -> Figure:
    figure = Figure(figsize=(9.5, 6.5))
    panels = [*TASKS.items(), ("mean", "Mean of the three")]
    for axes, (task, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        of_task = [(point, point.mean if task == "mean" else point.scores[task]) for point in points]
        draw_panel(axes, title, of_task, names_all=task == "mean")
    figure.tight_layout()
    return figure


def draw_panel(axes: Axes, title: str, points: list[tuple[Point, float]], names_all: bool) -> None:
    shown = sorted(((point, score) for point, score in points if score > LOWEST), key=lambda pair: pair[0].parameters)
    front: list[tuple[Point, float]] = []
    for point, score in shown:
        if not front or score > front[-1][1]:
            front.append((point, score))
    axes.plot([p.parameters for p, _ in front], [s for _, s in front], color="#bbbbbb", linewidth=1, zorder=1)
    kinds = {"TT-LoRA": ("tt-lora", OUR_COLOUR, "*", 70), "LoRA": ("lora", COLOURS[0], "o", 30)}
    for label, (method, colour, marker, size) in kinds.items():
        of_kind = [(p.parameters, s) for p, s in shown if p.method == method]
        axes.scatter(*zip(*of_kind, strict=True), c=colour, marker=marker, s=size, label=label, zorder=3)
    others = [(p.parameters, s) for p, s in shown if p.method not in ("tt-lora", "lora")]
    axes.scatter(*zip(*others, strict=True), c=COLOURS[1], marker="s", s=24, label="other methods", zorder=2)
    for point, score in shown:
        if (point, score) in front or (names_all and point.method != "tt-lora"):
            axes.annotate(point.name, (point.parameters, score), xytext=(5, 3), textcoords="offset points", fontsize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set_title(title)
    axes.set_xlabel("parameters of the adapter")
    axes.grid(visible=True)
    axes.margins(x=0.15)
    axes.legend(fontsize=7, loc="lower right")


if __name__ == "__main__":
    main()
