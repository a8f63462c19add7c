"""A mixture of TT-LoRA experts under a router, against experts that are told the task, LoRA and one adapter for all.

    python benchmarks/mixture.py --model MODEL --data DATA --output OUT [--rows 500] [--measured 200] [--epochs 3]

DATA holds sst2, mrpc, boolq and cb as folders with train.jsonl and validation.jsonl. Of each task ROWS training and
MEASURED validation rows are drawn. What OUT holds of an earlier call is not trained again. The score is accuracy. One
adapter for all learns the classes of all tasks as classes of one. Seconds are those of all validation rows, one round
of each in turn: told experts with each task's rows by itself, mixtures with the rows mixed.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import ttlora
from ttlora.finetune.files import read_rows
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.named_tasks import NAMED
from ttlora.finetune.routed import RoutedExperts

TASKS = {"sst2": "glue/sst2", "mrpc": "glue/mrpc", "boolq": "superglue/boolq", "cb": "superglue/cb"}
METHODS = ("tt-lora", "lora")
SPLITS = ("train", "validation")

# of each task and split
Rows = dict[tuple[str, str], list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    for name, default in (("rows", 500), ("measured", 200), ("epochs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rows = draw(given)
    keys: dict[str, Any] = {"model": str(given.model), "epochs": given.epochs, "threads": 1, "resume": True}
    for method in METHODS:
        for name, task in TASKS.items():
            output = str(given.output / method / name)
            data = str(given.output / "data")
            ttlora.train(ttlora.Recipe(task=task, data=data, method=method, output=output, **keys), quiet=True)
            print(f"{method} {name}: done", flush=True)
    together = train_together(given.output, rows, keys)
    scores: dict[str, dict[str, float]] = {"one adapter for all": together}
    for method in METHODS:
        runs = {name: given.output / method / name for name in TASKS}
        folder = given.output / f"{method}-router"
        if not folder.exists():
            ttlora.route(runs.values(), folder, rows=given.rows)
        routed = RoutedExperts.load(folder)
        for task in routed.evaluate():
            scores.setdefault(f"{method}, told", {})[task.expert] = task.told["accuracy"]
            scores.setdefault(f"{method}, routed", {})[task.expert] = task.metrics["accuracy"]
            scores.setdefault(f"{method}, found", {})[task.expert] = task.found.found
            scores.setdefault(f"{method}, found by text", {})[task.expert] = task.found.by_text
        print(json.dumps({method: costs(routed, runs, rows)}), flush=True)
    for name, of_tasks in scores.items():
        show(name, [of_tasks[task] for task in TASKS])


def draw(given: argparse.Namespace) -> Rows:
    """Some rows of each task, written as data for its runs."""
    drawn: Rows = {}
    for name in TASKS:
        for split, count in zip(SPLITS, (given.rows, given.measured), strict=True):
            rows = [row for _, row in read_rows(given.data / name / f"{split}.jsonl")]
            rows = random.Random(0).sample(rows, min(count, len(rows)))
            drawn[name, split] = rows
            write(given.output / "data" / name / f"{split}.jsonl", rows)
    return drawn


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def show(name: str, values: list[float]) -> None:
    """Print what was measured for each task, and the mean."""
    print(name, *(f"{value:.4f}" for value in values), f"mean {sum(values) / len(values):.4f}", flush=True)


def train_together(output: Path, rows: Rows, keys: dict[str, Any]) -> dict[str, float]:
    """One adapter's accuracy on each task, after training on the rows of all."""

    def joined(name: str, row: dict[str, Any]) -> dict[str, Any]:
        first, *others = (row[column] for column in NAMED[TASKS[name]].texts)
        return {"first": first, "second": " ".join(others), "label": f"{name} {row['label']}"}

    files = {}
    for split in SPLITS:
        its = [joined(name, row) for (name, of), part in rows.items() if of == split for row in part]
        files[split] = write(output / "data" / "all" / f"{split}.jsonl", its)
    columns = {"text_column": "first", "text_pair_column": "second"}
    folder = output / "together"
    ttlora.train(ttlora.Recipe(task="file", output=str(folder), **files, **columns, **keys), quiet=True)
    run = FinishedRun.load(folder)
    accuracy = {}
    for name in TASKS:
        its = [joined(name, row) for row in rows[name, "validation"]]
        right = [row["prediction"] == row["label"] for row in run.predict(its)]
        accuracy[name] = sum(right) / len(right)
    return accuracy


def costs(routed: RoutedExperts, runs: dict[str, Path], rows: Rows) -> dict[str, Any]:
    """Parameters, bytes, and seconds a row."""
    experts = routed.mixture.experts
    asked = {name: [without_label(row) for row in rows[name, "validation"]] for name in TASKS}
    mixed = [row for its in asked.values() for row in its]
    random.Random(0).shuffle(mixed)
    seconds = {}
    told = {name: FinishedRun.load(run) for name, run in runs.items()}
    began = time.perf_counter()
    for name, run in told.items():
        list(run.predict(asked[name]))
    seconds["told"] = (time.perf_counter() - began) / len(mixed)
    began = time.perf_counter()
    routed.predict(mixed)
    seconds["routed"] = (time.perf_counter() - began) / len(mixed)
    return {
        "adapter_parameters": experts[0].record.adapter_parameters,
        "head_parameters": [expert.record.head_parameters for expert in experts],
        "router_parameters": routed.router.parameters,
        "adapter_bytes": [expert.record.adapter_bytes for expert in experts],
        "seconds_a_row": seconds,
    }


def without_label(row: dict[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column != "label"}


if __name__ == "__main__":
    main()
