"""`ttlora plan`: what an adapter will cost, before any weights are there."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from ttlora.cli.console import StdoutConsole

if TYPE_CHECKING:
    from ttlora.planner.matrices import MatrixPlan
    from ttlora.planner.plan import Plan
    from ttlora.planner.training import TrainingMemory
    from ttlora.tensor_train import TTShape
    from ttlora.tuners.lorta.update import CPShape

TITLES = {"tt-lora": "TT-LoRA", "meta-tt": "MetaTT", "lorta": "LoRTA"}


def plan(
    model: str,
    shape: str | None = None,
    r: int | None = None,
    targets: str | None = None,
    budget: str | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    gradient_checkpointing: bool = False,
    memory: str | None = None,
    method: Literal["tt-lora", "meta-tt", "lorta"] = "tt-lora",
    json: bool = False,
) -> None:
    """Show what an adapter for a model will cost, and what memory its training takes; no weights are read.

    Args:
        model: A folder with a config.json, a name on the hub, or one of deberta-base, roberta-base, llama2-7b,
            llama3-8b, llama3.2-3b, llama3.1-405b, mixtral-8x7b.
        shape: Dims of the tensor trains, such as 16,16,16,16,16,16, or by module, such as "q_proj=64,64,64,64
            v_proj=16,64,64,64", or auto. Default: the paper's where it has one for the model, else auto.
        r: TT-rank. Default: the paper's where it has one for the model, else 2; with a budget, what fits.
        targets: Modules to adapt, such as q_proj,v_proj, or all-linear. Default: the paper's with its shapes, else all
            linear ones but query and key.
        budget: Plan the largest adapter of this size in 16 bit, such as 40KB, 220KiB or 40000.
        batch_size: Tell what memory a training takes, with so many rows at a time. Default: 32.
        max_length: Likewise, with so many tokens a row. Default: 128.
        dtype: Likewise, with the base model in this number format. Default: that of its config, or else bfloat16 for a
            causal model.
        quantize: Likewise, with the base model's weights in 4 or 8 bits.
        gradient_checkpointing: Likewise, with activations that are computed again in the backward pass.
        memory: Say whether a training fits into so much memory, such as 24GB.
        method: The adapter's method. Of meta-tt and lorta the rank is 8 by default, and the targets are query and
            value; shape names dims by number of rows or columns, such as "768=8,8,12", and lorta has none.
        json: Print one JSON object.

    Raises:
        UserError: A value has another form, or does not fit the model.
    """
    from ttlora.planner.plan import plan as make_plan

    result = make_plan(
        model,
        shape,
        r,
        targets,
        budget,
        batch_size=batch_size,
        max_length=max_length,
        dtype=dtype,
        quantize=quantize,
        gradient_checkpointing=gradient_checkpointing,
        memory=memory,
        method=method,
    )
    if json:
        print(json_format.dumps(_as_json(result), indent=2))
    else:
        _print_table(result)


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "model": plan.model,
        "method": plan.method,
        "adapter_parameters": plan.adapter_parameters,
        "bytes_16bit": plan.bytes_16bit,
        "full_parameters": plan.full_parameters,
        "lora_r8_parameters": plan.lora_r8_parameters,
        "matrices": [
            {
                "name": matrix.name,
                "out_features": matrix.size[0],
                "in_features": matrix.size[1],
                "shape": list(matrix.dims),
                "ranks": list(matrix.shape.ranks),
                "parameters": matrix.shape.parameters,
                "count": matrix.count,
            }
            for matrix in plan.matrices
        ],
        "notes": list(plan.notes),
        "training": plan.training
        and {**asdict(plan.training), "total": plan.training.total, "fits": plan.training.fits},
    }


def _print_table(plan: Plan) -> None:
    table = Table(title=f"{TITLES[plan.method]} for {plan.model}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("matrix", overflow="fold")
    table.add_column("out × in", justify="right", no_wrap=True)
    table.add_column("rows | columns", overflow="fold")
    table.add_column("TT-rank", justify="right")
    table.add_column("rank of ΔW", justify="right")
    table.add_column("parameters", justify="right", no_wrap=True)
    for matrix in plan.matrices:
        table.add_row(*_row(matrix))
    totals = Table.grid(padding=(0, 2))
    totals.add_row("adapter", f"{plan.adapter_parameters:,} parameters, {format_size(plan.bytes_16bit)} in 16 bit")
    totals.add_row("LoRA, r 8", _beside(plan.lora_r8_parameters, plan))
    totals.add_row("whole model", _beside(plan.full_parameters, plan))
    console = StdoutConsole()
    console.print(table)
    if any(matrix.shape.boundary is None for matrix in plan.matrices):
        console.print("* not aligned: no dim ends where the rows end, so ΔW is no LoRA of the TT-rank", style="dim")
    console.print()
    console.print(totals)
    for note in plan.notes:
        console.print(Text(note, style="dim"))
    if plan.training is not None:
        console.print()
        _print_training(console, plan.training)


def _print_training(console: StdoutConsole, training: TrainingMemory) -> None:
    size = f"{training.batch_size:,} x {training.max_length:,} tokens at a time"
    console.print(f"training in {training.dtype}, {size}:")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        table.add_row(name, f"{getattr(training, name) / 1e6:,.1f} MB")
    console.print(table)
    if training.card is not None:
        fits = "fits into" if training.fits else "does not fit into"
        console.print(f"which {fits} {training.card / 1e6:,.0f} MB")
    console.print(Text("not counted: what a driver and an allocator take for themselves", style="dim"))


def _row(matrix: MatrixPlan) -> tuple[str, ...]:
    shape = matrix.shape
    rank = f"≤ {shape.factor_rank} *" if shape.boundary is None else str(shape.factor_rank)
    size = " × ".join(map(str, matrix.size))
    return matrix.name, size, format_dims(shape), str(max(shape.ranks)), rank, f"{matrix.count} × {shape.parameters:,}"


def format_dims(shape: TTShape | CPShape) -> str:
    """The dims as ``--shape`` takes them, with a bar where rows end and columns begin."""
    if shape.boundary is None:
        return ",".join(map(str, shape.dims))
    rows, columns = shape.dims[: shape.boundary], shape.dims[shape.boundary :]
    return f"{','.join(map(str, rows))} | {','.join(map(str, columns))}"


def format_size(count: int) -> str:
    """Bytes, and KiB where there are many."""
    return f"{count:,} bytes" if count < 2**10 else f"{count:,} bytes ({count / 2**10:,.1f} KiB)"


def _beside(parameters: int, plan: Plan) -> str:
    ratio = parameters / plan.adapter_parameters
    return f"{parameters:,} parameters, {ratio:,.{0 if ratio >= 10 else 1}f} times the adapter"
