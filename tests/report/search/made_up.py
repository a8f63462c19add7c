"""Trials that never ran."""

import math
import random
from pathlib import Path
from typing import Any

from tests.report.records import RECIPE, make_record, write_run
from ttlora.record import Record
from ttlora.report.comparison import task_columns
from ttlora.report.runs import Run
from ttlora.report.search.trials import SearchResult, TrialResult, read_search

EPOCHS = 8
SHAPES = (
    [384, 384],
    [16, 24, 24, 16],
    [8, 6, 8, 8, 6, 8],
    [6, 4, 4, 4, 4, 4, 4, 6],
    [6, 4, 2, 2, 2, 2, 2, 2, 2, 2, 4, 6],
)


def make_trial(
    parameters: int = 1000, score: float = 0.8, loss: float = 0.4, name: str = "trial", **changes: Any
) -> TrialResult:
    """A trial in memory; changes are keys of its record, or settings, or its log."""
    log, keys = changes.pop("log", ()), _keys(changes)
    record = make_record(Path(name), score, adapter_parameters=parameters, validation_loss=loss, **keys)
    return TrialResult(name, Run(record, Path(name, "result.json"), 0.0, tuple(log)))


def make_search(*trials: TrialResult) -> SearchResult:
    """A search in memory."""
    (column,) = task_columns([trial.run for trial in trials]).values()
    return SearchResult("bert", column, tuple(sorted(trials, key=lambda trial: trial.loss)), (), ())


def write_trial(folder: Path, name: str, score: float = 0.8, loss: float = 0.4, **changes: Any) -> Path:
    """Write a trial's folder; changes are keys of its record, or settings, or its log."""
    log = changes.pop("log", None)
    return write_run(folder, name, score, log=log, validation_loss=loss, **_keys(changes))


def write_search(folder: Path, count: int, seed: int = 0, **changes: Any) -> SearchResult:
    """Write trials whose loss depends on the learning rate most, then on the rank, of which many are stopped early."""
    chance = random.Random(seed)
    for number in range(count):
        settings: dict[str, Any] = {
            "shape": chance.choice(SHAPES),
            "r": chance.choice([1, 2, 4, 5, 8, 12, 16]),
            "alpha": chance.choice([1.0, 2.0, 4.0, 8.0]),
            "learning_rate": float(f"{10 ** chance.uniform(-4, -2.3):.3g}"),
        }
        away = math.log10(settings["learning_rate"]) + 2.8
        final = 0.35 + 0.06 * away**2 + 0.03 / settings["r"] + chance.gauss(0, 0.004)
        epochs = EPOCHS if number % 5 < 3 else chance.choice([1, 2, 4])
        losses = [final + 0.3 * math.exp(-epoch / 2) for epoch in range(1, epochs + 1)]
        keys = {
            "adapter_parameters": 12 * sum(settings["shape"]) * settings["r"],
            "best_epoch": epochs,
            "epochs": epochs,
            "train_seconds": 40.0 * epochs,
            "log": log_of(*losses),
            **settings,
            **changes,
        }
        score = round(1.13 - 0.8 * losses[-1] + chance.gauss(0, 0.01), 4)
        write_trial(folder, f"{number:04}", score, losses[-1], **keys)
    return read_search([folder])


def log_of(*losses: float) -> list[dict[str, float]]:
    """A log with a validation loss for each epoch."""
    return [{"epoch": float(epoch), "validation_loss": loss} for epoch, loss in enumerate(losses, 1)]


def _keys(changes: dict[str, Any]) -> dict[str, Any]:
    """Keys of the record as they are, the rest as settings in its recipe, which plans `planned` epochs."""
    settings = {key: value for key, value in changes.items() if key not in Record.__dataclass_fields__}
    planned = settings.pop("planned", EPOCHS)
    record = {key: value for key, value in changes.items() if key in Record.__dataclass_fields__}
    recipe = {**RECIPE, "epochs": planned, "patience": 5, "output": "-", **settings}
    return {"epochs": planned, "best_epoch": planned, **record, "recipe": recipe}
