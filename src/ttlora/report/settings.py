"""Which runs belong to one row: those of a method with the same settings, as their recipes tell."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttlora.errors import printable
from ttlora.record import Record
from ttlora.report.runs import Run

# what a recipe says about where, on what and with which random numbers, but not how
NO_SETTINGS = {
    *("model", "task", "output", "method", "seed", "threads", "data", "train", "validation"),
    *("report_to", "push_to_hub", "save_every"),
    *("text_column", "text_pair_column", "label_column", "label_kind", "choice_columns"),
}
# in this order they tell two rows of a method apart
FIRST_SETTINGS = ("r", "alpha", "shape", "targets", "scoring", "learning_rate")
METHOD_NAMES = {
    "tt-lora": "TT-LoRA",
    "full": "Full fine-tuning",
    "head": "Head alone",
    "adapter": "Adapter",
    "lora": "LoRA",
    "loretta-adp": "LoRETTA_adp",
    "loretta-rep": "LoRETTA_rep",
    "meta-tt": "MetaTT",
    "lorta": "LoRTA",
    "prefix": "Prefix",
    "prompt": "Prompt",
    "p-tuning": "P-Tuning",
    "bitfit": "BitFit",
    "vera": "VeRA",
    "tinylora": "TinyLoRA",
    "unilora": "UniLoRA",
    "vblora": "VB-LoRA",
    "adalora": "AdaLoRA",
    "waveft": "WaveFT",
    "ia3": "IA3",
    "boft": "BOFT",
}
Settings = Mapping[str, str]


def task_key(record: Record) -> tuple[str, str]:
    """The task (the validation file of the user's own data) and the metric: records with the same can be compared."""
    if record.task != "file" or not (place := record.recipe.get("validation")):
        return (record.task, record.primary_metric)
    if isinstance(place, str) and place.endswith("%"):
        # a share of the training rows is as much its own task as these are
        place = record.recipe.get("train")
    return (f"file {value_text(place)}", record.primary_metric)


def setting_values(record: Record) -> dict[str, Any]:
    """Every setting of a run by name; the fields of a method's own config stand beside the recipe's keys."""
    # False is what earlier versions, which had no such key, did
    recipe = {key: value for key, value in record.recipe.items() if value is not False}
    settings = {key: value for key, value in recipe.items() if key not in NO_SETTINGS and key != "settings"}
    own = record.recipe.get("settings")
    if isinstance(own, dict):
        taken = {name for name, value in settings.items() if value is not None}
        settings |= {f"settings.{name}" if name in taken else name: value for name, value in own.items()}
    elif own is not None:
        settings["settings"] = own
    return {name: value for name, value in settings.items() if value is not None}


def settings_of(record: Record) -> Settings:
    """Every setting of a run by name, as text."""
    return {name: value_text(value) for name, value in setting_values(record).items()}


def value_text(value: Any) -> str:
    """A recipe's value, short."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return ",".join(map(value_text, value))
    if isinstance(value, dict):
        return " ".join(f"{name}={value_text(part)}" for name, part in value.items())
    return str(value)


def without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs that differ in their folder alone the newest, and a line for each older one."""
    newest: dict[object, Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.modified, str(run.path))):
        record = run.record
        names = (record.model, record.method, *task_key(record), record.seed)
        key = (names, tuple(sorted(settings_of(record).items())))
        if key in newest:
            older = newest.pop(key)
            notes.append(printable(f"{older.path} is left out: {run.path} is a newer run of the same recipe and seed"))
        newest[key] = run
    return sorted(newest.values(), key=lambda run: str(run.path)), notes


def group_by_settings(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Split the runs on one model into rows, each with a label.

    Two runs of a method go apart if their adapters differ in size, or in a setting that varies within a task. A setting
    that varies from task to task alone, such as a learning rate chosen for each, leaves them together.
    """
    by_method = defaultdict(list)
    for run in runs:
        by_method[run.record.method].append(run)
    rows: dict[str, list[Run]] = {}
    for method, its_runs in by_method.items():
        keys = _varying_within_tasks(its_runs)
        groups = defaultdict(list)
        for run in its_runs:
            settings = settings_of(run.record)
            groups[(run.record.adapter_parameters, tuple(settings.get(key) for key in keys))].append(run)
        for label, group in zip(_labels(method, list(groups.values())), groups.values(), strict=True):
            while label in rows:
                label += f" ({method})"
            rows[label] = group
    return rows


def common_settings(runs: Iterable[Run]) -> Settings:
    """The settings in which all the runs agree."""
    first, *others = [settings_of(run.record) for run in runs]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def model_names(models: Iterable[str]) -> dict[str, str]:
    """A short name for each model: a folder's last part, where that is not ambiguous, or two if it says nothing."""
    short = {}
    for model in models:
        path = Path(model)
        parts = path.parts[-2:] if path.name == "model" else path.parts[-1:]
        short[model] = "/".join(parts) if path.is_absolute() else model
    return _short(short)


def file_names(places: Iterable[str]) -> dict[str, str]:
    """A short name for each validation file: its own, or its folder's where its own says nothing."""
    short = {}
    for place in places:
        path = Path(place)
        plain = path.stem in ("validation", "valid", "dev", "test", "eval") and path.parent.name
        short[place] = path.parent.name if plain else path.stem
    return _short(short)


def _short(names: Mapping[str, str]) -> dict[str, str]:
    shorts = list(names.values())
    return {name: printable(short if short and shorts.count(short) == 1 else name, 80) for name, short in names.items()}


def _varying_within_tasks(runs: Sequence[Run]) -> list[str]:
    by_task = defaultdict(list)
    for run in runs:
        by_task[task_key(run.record)].append(settings_of(run.record))
    names = sorted({name for settings in by_task.values() for one in settings for name in one})
    return [
        name for name in names if any(len({one.get(name) for one in settings}) > 1 for settings in by_task.values())
    ]


def _labels(method: str, groups: Sequence[Sequence[Run]]) -> list[str]:
    """The method's name with its rank, and with as few other settings as tell the groups apart."""
    common = [common_settings(group) for group in groups]
    names = sorted(
        {name for settings in common for name in settings},
        key=lambda name: (FIRST_SETTINGS.index(name) if name in FIRST_SETTINGS else len(FIRST_SETTINGS), name),
    )
    shown = ["r"]
    parts: list[tuple[str | None, ...]] = [(settings.get("r"),) for settings in common]
    for name in names:
        longer = [(*part, settings.get(name)) for part, settings in zip(parts, common, strict=True)]
        if len(set(longer)) > len(set(parts)):
            parts, shown = longer, [*shown, name]
    labels = [printable(" ".join([METHOD_NAMES.get(method, method), *_named(shown, part)]), 80) for part in parts]
    sizes = [group[0].record.adapter_parameters for group in groups]
    labels = [
        label if labels.count(label) == 1 else f"{label} ({size:,})" for label, size in zip(labels, sizes, strict=True)
    ]
    # still alike where a name was cut, or where what differs is in no recipe
    return [
        f"{label} #{labels[:index].count(label) + 1}" if label in labels[:index] else label
        for index, label in enumerate(labels)
    ]


def _named(names: Sequence[str], values: Sequence[str | None]) -> list[str]:
    return [f"{name}={value}" for name, value in zip(names, values, strict=True) if value is not None]
