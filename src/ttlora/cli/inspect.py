"""`ttlora inspect`: what is in an adapter folder."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ttlora.cli.plan import format_dims, format_size

if TYPE_CHECKING:
    from ttlora.adapters.header import TensorInfo
    from ttlora.adapters.inspect import ModuleReport
    from ttlora.adapters.read import Adapter


def inspect(adapter: str, json: bool = False) -> None:
    """Show what is in an adapter: method, shapes, ranks, parameters, bytes, and the norm of each update.

    Args:
        adapter: A folder with a saved PEFT adapter, or the output folder of ttlora train.
        json: Print one JSON object.

    Raises:
        UserError: There is no adapter, or it is damaged.
    """
    from ttlora.adapters.inspect import inspect_modules
    from ttlora.adapters.read import read_adapter

    content = read_adapter(adapter)
    modules = inspect_modules(content)
    if json:
        print(json_format.dumps(_as_json(content, modules), indent=2, allow_nan=False))
    else:
        _print_tables(content, modules)


def _as_json(adapter: Adapter, modules: list[ModuleReport]) -> dict[str, object]:
    return {
        "folder": str(adapter.folder),
        "method": _method(adapter),
        "base_model": adapter.config.base_model_name_or_path,
        "adapter_parameters": sum(module.parameters for module in modules),
        "other_parameters": _parameters(adapter.others),
        "bytes": _bytes(adapter),
        "dtypes": _dtypes(adapter),
        "modules": [
            {
                "name": module.name,
                "parameters": module.parameters,
                **_train_as_json(module),
                "tensors": _tensors_as_json(module.tensors),
            }
            for module in modules
        ],
        "others": _tensors_as_json(adapter.others),
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


def _print_tables(adapter: Adapter, modules: list[ModuleReport]) -> None:
    from ttlora.adapters.read import MODEL_PREFIX

    console = Console(highlight=False)
    summary = Table.grid(padding=(0, 2))
    summary.add_row("method", _method(adapter))
    summary.add_row("base model", Text(adapter.config.base_model_name_or_path or "not named"))
    adapter_parameters = sum(module.parameters for module in modules)
    summary.add_row("adapter", f"{adapter_parameters:,} parameters in {len(modules)} modules")
    if adapter.others:
        names = ", ".join(key.removeprefix(MODEL_PREFIX) for key in adapter.others)
        summary.add_row("also saved", Text(f"{_parameters(adapter.others):,} parameters: {names}"))
    summary.add_row("on disk", f"{format_size(_bytes(adapter))} of {', '.join(_dtypes(adapter))}")
    console.print(summary)
    console.print()
    console.print(_tensor_table(modules) if modules[0].shape is None else _train_table(modules))
    if any(module.norm is not None and not math.isfinite(module.norm) for module in modules):
        console.print("Some cores are not finite: the training diverged, or the file is damaged.", style="bold")


def _train_table(modules: list[ModuleReport]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    common = common_path([module.name for module in modules])
    table.add_column(Text(f"module in {common}" if common else "module"), overflow="fold")
    table.add_column("rows | columns", overflow="fold")
    table.add_column("TT-rank", justify="right")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("norm of ΔW", justify="right", no_wrap=True)
    for module in modules:
        shape = module.shape
        assert shape is not None
        rank, parameters, norm = str(max(shape.ranks)), f"{module.parameters:,}", f"{module.norm:.4g}"
        table.add_row(Text(_below(common, module)), format_dims(shape), rank, parameters, norm)
    return table


def _tensor_table(modules: list[ModuleReport]) -> Table:
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


def _method(adapter: Adapter) -> str:
    method = adapter.config.peft_type.value.lower()
    return "tt-lora" if method == "ttlora" else method


def _bytes(adapter: Adapter) -> int:
    return adapter.weights_file.stat().st_size


def _dtypes(adapter: Adapter) -> list[str]:
    return sorted({info.dtype for tensors in adapter.modules.values() for info in tensors.values()})


def _parameters(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(info.parameters for info in tensors.values())
