"""What `ttlora import` and `ttlora round` print of the adapter that they have written."""

from __future__ import annotations

import json as json_format
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ttlora.cli.console import StdoutConsole
from ttlora.cli.inspect import common_path
from ttlora.cli.plan import format_dims, format_size

if TYPE_CHECKING:
    from ttlora.adapters.round import TrainAdapter


def print_changes(result: TrainAdapter, output: str, json: bool) -> None:
    """Print the error of each module's update and of all together.

    Args:
        result: The adapter that was written.
        output: Its folder.
        json: Print one JSON object.
    """
    from ttlora.adapters.read import WEIGHTS_NAME

    path = Path(os.path.expanduser(output))
    size = (path / WEIGHTS_NAME).stat().st_size
    before = sum(module.parameters_before for module in result.modules)
    after = sum(module.shape.parameters for module in result.modules)
    if json:
        summary = {
            "output": str(path),
            "parameters_before": before,
            "parameters": after,
            "bytes": size,
            "relative_error": result.relative_error,
            "modules": [
                {
                    "name": module.name,
                    "shape": list(module.shape.dims),
                    "ranks": list(module.shape.ranks),
                    "parameters_before": module.parameters_before,
                    "parameters": module.shape.parameters,
                    "norm": module.norm,
                    "relative_error": module.relative_error,
                }
                for module in result.modules
            ],
        }
        print(json_format.dumps(summary, indent=2))
        return
    console = StdoutConsole()
    console.print(_table(result))
    console.print()
    totals = Table.grid(padding=(0, 2))
    totals.add_row("parameters", f"{before:,} before, {after:,} now")
    totals.add_row("relative error", f"{result.relative_error:.2e}")
    totals.add_row("written", Text(f"{path}, {format_size(size)}"))
    console.print(totals)


def _table(result: TrainAdapter) -> Table:
    common = common_path([module.name for module in result.modules])
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(Text(f"module in {common}" if common else "module"), overflow="fold")
    table.add_column("rows | columns", overflow="fold")
    table.add_column("TT-rank", justify="right")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("relative error", justify="right", no_wrap=True)
    for module in result.modules:
        table.add_row(
            Text(module.name.removeprefix(f"{common}.")),
            format_dims(module.shape),
            str(max(module.shape.ranks)),
            f"{module.shape.parameters:,}",
            f"{module.relative_error:.2e}",
        )
    return table
