"""`ttlora route`: a router over finished runs, for rows of unknown task."""

from __future__ import annotations

import json as json_format
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ttlora.cli.console import StdoutConsole
from ttlora.cli.plan import format_size

if TYPE_CHECKING:
    from ttlora.finetune.route import Routed
    from ttlora.finetune.routed import RoutedTask


def route(
    experts: list[str], *, output: str, model: str | None = None, rows: int = 1000, seed: int = 0, json: bool = False
) -> None:
    """Train a router that gives rows of unknown task to one of several experts of one base model.

    Experts are finished runs with heads; nothing in them is trained again. OUTPUT gets the router and a copy of each
    expert, and ttlora predict and ttlora evaluate take it in the place of a run. Printed is how many validation rows of
    each expert are found: among the experts that can read a row's columns, and by the text alone.

    Args:
        experts: Output folders of ttlora train, of one base and method; one of ttlora route stands for its experts,
            to which others are added.
        output: Folder for the router; empty or not there yet.
        model: Where the base model is now, if it has moved since.
        rows: Most training rows of each expert to learn from, and most validation rows to measure on.
        seed: Seed of all that is random.
        json: Print one JSON object.

    Raises:
        UserError: A folder holds no expert, the experts do not go together, or the output is in use.
    """
    from ttlora.finetune.route import route as train_router

    routed = train_router(experts, output, model, rows, seed)
    path = Path(os.path.expanduser(output))
    size = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    if json:
        summary = {
            "output": str(path),
            "parameters": routed.parameters,
            "bytes": size,
            "seconds": routed.seconds,
            "experts": [
                {"name": expert.name, "task": expert.task.name, **asdict(routed.found[expert.name])}
                | ({"before": asdict(routed.before[expert.name])} if expert.name in routed.before else {})
                for expert in routed.experts
            ],
        }
        print(json_format.dumps(summary, indent=2))
        return
    StdoutConsole().print(_table(routed))
    print(
        f"{path}: a router of {routed.parameters:,} parameters and {len(routed.experts)} experts, {format_size(size)}, "
        f"trained in {routed.seconds:.1f} s"
    )


def _table(routed: Routed) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ["expert", "task", "rows", "found", "by text"]
    for name in [*names, "before"] if routed.before else names:
        table.add_column(name, justify="left" if name in ("expert", "task") else "right", overflow="fold")
    for expert in routed.experts:
        found, before = routed.found[expert.name], routed.before.get(expert.name)
        shares = [found.found, found.by_text, *([before.found] if before else [])]
        numbers = [f"{found.rows:,}", *(f"{100 * share:.1f} %" for share in shares)]
        table.add_row(Text(expert.name), Text(expert.task.name), *numbers)
    return table


def print_evaluation(tasks: list[RoutedTask], json: bool) -> None:
    """Print what a mixture measures on the validation rows of all its experts.

    Args:
        tasks: What it measures for each expert.
        json: Print one JSON object.
    """
    if json:
        print(json_format.dumps({"experts": [asdict(task) for task in tasks]}, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("expert", "task", "rows", "found", "by text", "metric", "mixture", "told"):
        table.add_column(name, justify="left" if name in ("expert", "task", "metric") else "right", overflow="fold")
    for task in tasks:
        shares = [f"{100 * share:.1f} %" for share in (task.found.found, task.found.by_text)]
        first: list[Text | str] = [Text(task.expert), Text(task.task), f"{task.found.rows:,}", *shares]
        for name, value in task.metrics.items():
            table.add_row(*first, name, f"{value:.4f}", f"{task.told[name]:.4f}")
            first = [""] * len(first)
    StdoutConsole().print(table)
    print(f"{1000 * tasks[0].seconds_a_row:.1f} ms a row")
