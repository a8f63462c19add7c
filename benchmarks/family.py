"""TT-LoRA, MetaTT, LoTR, LoRTA, DoTA and LoRA at about 3,000, 9,000 and 16,000 parameters: a table and a figure.

    python benchmarks/family.py --model MODEL --data DATA --records docs/results/family.jsonl \
        --figure docs/results/figures/family.svg [--processes 2]

Each run is one of learning.py: 2,000 rows, 3 epochs in batches of 16, the pooler trained. An adapter's rate is the one
of those tried that has the lowest sum of validation losses with seed 0; three seeds are run at it. Runs that the
records hold are not made again; without a model there is nothing but the table and the figure.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from learning import read, run_once
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ttlora.report.drawing import COLOURS, OUR_COLOUR, STYLE

TASKS = {"stsb": "STS-B", "sst2": "SST-2"}
SEEDS = (0, 1, 2)
SIZES = (3_000, 9_000, 16_000)

PLACES = 'target_modules=".*layer.*(value|dense)"'
THIN = 'rank_pattern={".*[0-9].(intermediate|output).dense":1}'


@dataclass(frozen=True)
class Method:
    """A method at three sizes.

    Attributes:
        name: As the table has it.
        places: What it adapts.
        rates: Those that were tried.
        settings: learning.py's, for each of `SIZES`.
    """

    name: str
    places: str
    rates: tuple[float, ...]
    settings: tuple[str, ...]


TRAINS = (f"tt:pooler=true,r=2,{THIN},", "tt:pooler=true,r=3,", "tt:pooler=true,r=4,")

METHODS = (
    Method("TT-LoRA", "all linear but query, key", (1e-3,), tuple(train + PLACES for train in TRAINS)),
    Method(
        "DoTA",
        "all linear but query, key",
        (1e-3, 2e-3),
        tuple(f'{train}init_weights="dota",{PLACES}' for train in TRAINS),
    ),
    Method(
        "MetaTT",
        "query, value",
        (1e-3, 2e-3),
        ("meta-tt:pooler=true,r=4", "meta-tt:pooler=true,r=11", "meta-tt:pooler=true,r=17"),
    ),
    Method(
        "LoTR",
        "query, value",
        (1e-3, 2e-3),
        (
            "meta-tt:pooler=true,joint=true,r=4",
            "meta-tt:pooler=true,joint=true,r=10",
            "meta-tt:pooler=true,joint=true,r=16",
        ),
    ),
    Method(
        "LoRTA",
        "query, key, value, output",
        (5e-3, 1e-2),
        ("lorta:pooler=true,r=8", "lorta:pooler=true,r=20", "lorta:pooler=true,r=36"),
    ),
    Method(
        "LoRA",
        "value; query, value",
        (1e-3, 2e-3),
        ('lora:pooler=true,r=1,target_modules=["value"]', "lora:pooler=true,r=1", "lora:pooler=true,r=2"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="folder with the tasks' folders")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="an .svg or .png")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, each on one thread")
    given = parser.parse_args()
    if given.model is not None:
        with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
            for jobs in (runs_that_tell_rates(), the_rest(given.records)):
                pool.starmap(run, [(given, *job) for job in jobs], chunksize=1)
    points = points_of(read(given.records))
    print_table(points)
    if given.figure is not None:
        with rc_context(STYLE):
            draw(points).savefig(given.figure, bbox_inches="tight")


Job = tuple[str, str, float, int]


def runs_that_tell_rates() -> Iterator[Job]:
    """Task, setting, rate and seed of them."""
    for method in METHODS:
        for setting in method.settings:
            for rate in method.rates:
                for task in TASKS:
                    yield task, setting, rate, 0


def the_rest(path: Path) -> Iterator[Job]:
    """The other seeds, at the rates that the records tell."""
    records = read(path)
    for seed in SEEDS[1:]:
        for method in METHODS:
            for setting in method.settings:
                rate = best_rate(setting, records)
                assert rate is not None, "seed 0 was run before"
                for task in TASKS:
                    yield task, setting, rate, seed


def run(given: argparse.Namespace, task: str, setting: str, rate: float, seed: int) -> None:
    torch.set_num_threads(1)
    sizes = {"rows": 2_000, "epochs": 3, "batch_size": 16, "device": "cpu", "cut": ""}
    run_once(
        argparse.Namespace(model=given.model, data=given.data / task, output=given.records, **sizes),
        setting,
        rate,
        seed,
    )


def best_rate(setting: str, records: list[dict[str, Any]]) -> float | None:
    """The rate with the lowest validation losses with seed 0, of those that all tasks have; None: there is none."""
    losses: dict[float, dict[str, float]] = {}
    for record in records:
        if (record["setting"], record["seed"]) == (setting, 0):
            losses.setdefault(record["learning_rate"], {})[record["data"]] = record["validation_loss"]
    complete = {rate: sum(of_tasks.values()) for rate, of_tasks in losses.items() if of_tasks.keys() == TASKS.keys()}
    return min(complete, key=complete.__getitem__, default=None)


@dataclass(frozen=True)
class Point:
    """A method at one size.

    Attributes:
        method: The method.
        parameters: Of its adapter.
        rate: Its learning rate.
        scores: Of each task, seed by seed.
    """

    method: Method
    parameters: int
    rate: float
    scores: dict[str, list[float]]

    @property
    def means(self) -> list[float]:
        """The mean over the tasks, of each seed that all tasks have."""
        return [fmean(scores) for scores in zip(*self.scores.values(), strict=False)]


def points_of(records: list[dict[str, Any]]) -> list[Point]:
    """Each method at each size, as far as the records go."""
    points = []
    for method in METHODS:
        for setting in method.settings:
            rate = best_rate(setting, records)
            its = [record for record in records if (record["setting"], record["learning_rate"]) == (setting, rate)]
            its.sort(key=lambda record: record["seed"])
            scores = {task: [record["score"] for record in its if record["data"] == task] for task in TASKS}
            if rate is not None:
                points.append(Point(method, its[0]["parameters"], rate, scores))
    return points


def print_table(points: list[Point]) -> None:
    """By size, and in each the best first."""
    print(f"| method | places | parameters | rate | {' | '.join(TASKS.values())} | mean | mean of each seed |")
    print(f"|---|---|---:|---|{'---:|' * len(TASKS)}---:|---|")
    for size in SIZES:
        near = [point for point in points if size == min(SIZES, key=lambda one: abs(one - point.parameters))]
        for point in sorted(near, key=lambda point: -fmean(point.means)):
            of_tasks = [f"{100 * fmean(scores):.1f}" for scores in point.scores.values()]
            seeds = " ".join(f"{100 * mean:.1f}" for mean in point.means)
            cells = [point.method.name, point.method.places, f"{point.parameters:,}", f"{point.rate:g}", *of_tasks]
            print(f"| {' | '.join(cells)} | **{100 * fmean(point.means):.1f}** | {seeds} |")


def draw(points: list[Point]) -> Figure:
    """A line a method, over its sizes, and a dot a seed."""
    figure = Figure(figsize=(7.5, 4.5))
    axes = figure.subplots()
    colours = dict(zip((method.name for method in METHODS[1:]), COLOURS, strict=False))
    for method in METHODS:
        its = [point for point in points if point.method == method]
        colour = colours.get(method.name, OUR_COLOUR)
        sizes = [point.parameters for point in its]
        axes.plot(sizes, [100 * fmean(point.means) for point in its], color=colour, marker="o", label=method.name)
        for point in its:
            axes.scatter([point.parameters] * len(point.means), [100 * mean for mean in point.means], s=8, color=colour)
    axes.set_xscale("log")
    axes.set_xticks(SIZES)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.minorticks_off()
    axes.set_xlabel("parameters of the adapter")
    axes.set_ylabel("mean of STS-B and SST-2, in percent")
    axes.grid(visible=True)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
