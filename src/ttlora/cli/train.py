"""`ttlora train`: a fine-tune, from a recipe to an adapter folder and a result record."""

import json as json_format
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ttlora.finetune.recipe import Recipe
from ttlora.record import Record


def train(*, json: bool = False, **recipe: Any) -> int:
    """Fine-tune a model, save the adapter of the lowest validation loss, and measure what was saved.

    OUTPUT gets adapter/, result.json, recipe.yaml and log.jsonl. A run that was stopped goes on with the same command
    and --resume, to the same result.

    Args:
        json: Print the result record as one JSON object.
        **recipe: The recipe.

    Returns:
        The exit status.
    """
    asked = Recipe(**recipe)
    from ttlora.finetune.processes import is_first
    from ttlora.finetune.run import train as fine_tune

    output = Path(os.path.expanduser(asked.output))
    finished = asked.resume and (output / "result.json").exists()
    try:
        record = fine_tune(asked)
    except KeyboardInterrupt:
        if is_first():
            print(_after_interrupt(output), file=sys.stderr)
        return 130
    if not is_first():
        return 0
    if finished:
        print(f"{output} holds the finished run: nothing was done", file=sys.stderr)
    if json:
        print(json_format.dumps(asdict(record), indent=2))
    else:
        _print_result(record, output)
    return 0


def _after_interrupt(output: Path) -> str:
    if (output / "recipe.yaml").exists():
        return "ttlora: stopped; the same command with --resume goes on from the last finished epoch"
    return "ttlora: stopped; nothing was written yet"


def _print_result(record: Record, output: Path) -> None:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
    epochs = f"epoch {record.best_epoch} of {record.epochs}"
    parameters = f"{record.adapter_parameters:,} parameters, {record.head_parameters:,} more in the head"
    print(f"{metrics}, validation loss {record.validation_loss:.4f} ({epochs}), measured from the saved adapter")
    print(f"{output / 'adapter'}: {parameters}, {record.adapter_bytes:,} bytes")
