"""`ttlora inspect`: what is in an adapter folder."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ttlora.cli.console import StdoutConsole
from ttlora.cli.plan import format_dims, format_size

if TYPE_CHECKING:
    from ttlora.adapters.header import TensorInfo
    from ttlora.adapters.inspect import AdapterReport, ModuleReport


def inspect(adapter: str, json: bool = False) -> None:
    """Show what is in an adapter: method, shapes, ranks, parameters, bytes, and the norm of each update.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of ttlora train.
        json: Print one JSON object.

    Raises:
        UserError: There is no adapter, or it is damaged.
    """
    from ttlora.adapters.inspect import inspect as report_on

    report = report_on(adapter)
    if json:
        print(json_format.dumps(_as_json(report), indent=2, allow_nan=False))
    else:
        _print_tables(report)


def _as_json(report: AdapterReport) -> dict[str, object]:
    return {
        "folder": str(report.adapter.folder),
        "method": report.method,
        "base_model": report.base_model,
        "adapter_parameters": report.adapter_parameters,
        "other_parameters": report.other_parameters,
        "bytes": report.bytes,
        "dtypes": report.dtypes,
        "modules": [
            {
                "name": module.name,
                "parameters": module.parameters,
                **({"others": list(module.others)} if module.others else {}),
                **_train_as_json(module),
                "tensors": _tensors_as_json(module.tensors),
            }
            for module in report.modules
        ],
        "others": _tensors_as_json(report.adapter.others),
    }


def _train_as_json(module: ModuleReport) -> dict[str, object]:
    if module.shape is None:
        return {}
    return {
        "out_features": module.shape.out_features,
        "in_features": module.shape.in_features,
        "shape": list(module.shape.dims),
        "ranks": list(module.shape.ranks),
        "norm": module.norm if module.norm is not None and math.isfinite(module.norm) else None,
    }


def _tensors_as_json(tensors: Mapping[str, TensorInfo]) -> list[dict[str, object]]:
    return [{"name": key, "dtype": info.dtype, "shape": list(info.shape)} for key, info in tensors.items()]


def _print_tables(report: AdapterReport) -> None:
    from ttlora.adapters.read import MODEL_PREFIX

    modules = report.modules
    console = StdoutConsole()
    summary = Table.grid(padding=(0, 2))
    summary.add_row("method", report.method)
    summary.add_row("base model", Text(report.base_model or "not named"))
    summary.add_row("adapter", f"{report.adapter_parameters:,} parameters in {len(modules)} modules")
    if others := report.adapter.others:
        names = ", ".join(key.removeprefix(MODEL_PREFIX) for key in others)
        summary.add_row("also saved", Text(f"{report.other_parameters:,} parameters: {names}"))
    summary.add_row("on disk", f"{format_size(report.bytes)} of {', '.join(report.dtypes)}")
    console.print(summary)
    console.print()
    console.print(_tensor_table(modules) if modules[0].shape is None else _train_table(modules))
    if any(module.norm is not None and not math.isfinite(module.norm) for module in modules):
        console.print("Some cores are not finite: the training diverged, or the file is damaged.", style="bold")


def _train_table(modules: Sequence[ModuleReport]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    common = common_path([name for module in modules for name in (module.name, *module.others)])
    table.add_column(Text(f"module in {common}" if common else "module"), overflow="fold")
    table.add_column("rows | columns", overflow="fold")
    table.add_column("TT-rank", justify="right")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("norm of ΔW", justify="right", no_wrap=True)
    for module in modules:
        shape = module.shape
        assert shape is not None
        rank, parameters, norm = str(max(shape.ranks)), f"{module.parameters:,}", f"{module.norm:#.4g}".rstrip(".")
        name = _below(common, module) + (f" and {len(module.others)} more" if module.others else "")
        table.add_row(Text(name), format_dims(shape), rank, parameters, norm)
    return table


def _tensor_table(modules: Sequence[ModuleReport]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    common = common_path([module.name for module in modules])
    table.add_column(Text(f"module in {common}" if common else "module"), overflow="fold")
    table.add_column("tensors", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    for module in modules:
        sizes = (
            f"{_tensor_name(module, key)} {'×'.join(map(str, info.shape))}" for key, info in module.tensors.items()
        )
        table.add_row(Text(_below(common, module)), Text(", ".join(sizes)), f"{module.parameters:,}")
    return table


def common_path(modules: Sequence[str]) -> str:
    """The path that all modules have in common, so that it need not stand in every line."""
    parents = [name.split(".")[:-1] for name in modules]
    common = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return ".".join(parts[0] for parts in common)


def _below(common: str, module: ModuleReport) -> str:
    return module.name.removeprefix(f"{common}.")


def _tensor_name(module: ModuleReport, key: str) -> str:
    """What stands after the module's name, without what all of them end with."""
    return (key.partition(f"{module.name}.")[2] if module.name else key).removesuffix(".weight")
