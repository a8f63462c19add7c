"""Records of runs that never ran."""

import json
from pathlib import Path
from typing import Any

from ttlora.record import Record

RECIPE = {"scoring": "head", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "threads": 1, "settings": None}
PARAMETERS = {"tt-lora": 16_320, "lora": 73_728, "bitfit": 100_000, "head": 0}


def make_record(place: Path, score: float = 0.8, **changes: Any) -> Record:
    """A record; changes are its keys, or the recipe's if it has none of that name."""
    keys = {key: changes.pop(key) for key in list(changes) if key in Record.__dataclass_fields__}
    method = keys.get("method", "tt-lora")
    metric = keys.get("primary_metric", "accuracy")
    parameters = keys.get("adapter_parameters", PARAMETERS.get(method, 5_000))
    values: dict[str, Any] = {
        "method": method,
        "model": "some/bert",
        "task": "glue/sst2",
        "seed": 0,
        "adapter_parameters": parameters,
        "head_parameters": 770,
        "trainable_parameters": parameters + 770,
        "adapter_bytes": 2 * parameters + 2_000,
        "metrics": {metric: score},
        "primary_metric": metric,
        "validation_loss": 0.4,
        "best_epoch": 2,
        "epochs": 2,
        "train_seconds": 12.5,
        "seconds_per_step": 0.5,
        "peak_memory_bytes": 2**30,
        "versions": {"python": "3.11"},
        **keys,
    }
    recipe = {**RECIPE, "output": str(place), **{key: values[key] for key in ("model", "task", "method", "seed")}}
    return Record(**{"recipe": {**recipe, **changes}, **values})


def write_run(folder: Path, name: str, score: float = 0.8, **changes: Any) -> Path:
    """Write a run's folder: its record, as `make_record` makes it, and the log that is among the changes."""
    log = changes.pop("log", None)
    place = folder / name
    place.mkdir(parents=True)
    make_record(place, score, **changes).write(place / "result.json")
    if log is not None:
        (place / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return place


def write_failure(folder: Path, name: str, **changes: Any) -> None:
    content = {"method": "boft", "model": "some/bert", "task": "glue/rte", "seed": 1, "error": "out of memory"}
    (folder / name).mkdir(parents=True)
    (folder / name / "failed.json").write_text(json.dumps({**content, **changes}))
