"""The rows of a task: its training and its validation split, from files or from the hub."""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ttlora.errors import UserError, one_line
from ttlora.finetune.files import Row, read_rows
from ttlora.finetune.inputs import Example, Input, Preferred, Prompted, make_input, read_example
from ttlora.finetune.labels import encode_labels, with_answers, with_labels
from ttlora.finetune.named_tasks import find_task
from ttlora.finetune.recipe import Recipe, is_on_hub
from ttlora.finetune.tasks import Task
from ttlora.models.hub import require_on_hub


@dataclass(frozen=True)
class Split:
    """Rows as a task reads them.

    Attributes:
        inputs: What is put to the model.
        labels: Indices of classes, choices or answers, or numbers.
        places: Where each row stands, for messages: "reviews.csv, line 7".
    """

    inputs: list[Input]
    labels: list[int] | list[float]
    places: list[str] = field(compare=False)

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all rows, in their order, with their labels."""
        digest = hashlib.sha256()
        for given, label in zip(self.inputs, self.labels, strict=True):
            content: Any = given
            if isinstance(given, Prompted | Preferred):
                # fields that a row does not use are newer than the digests of some runs
                content = {name: part for name, part in asdict(given).items() if part or name in ("prompt", "answers")}
            digest.update(json.dumps([content, label]).encode())
        return digest.hexdigest()


# rows as token ids, with their labels
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """A task's rows as token ids.

    Attributes:
        training: Rows to train on.
        validation: Rows that are measured after every epoch.
        cut: How many of each were too long.
    """

    training: Rows
    validation: Rows
    cut: tuple[int, int]


@dataclass(frozen=True)
class TaskData:
    """A task with its rows.

    Attributes:
        task: The task, its labels known.
        training: Rows to train on.
        validation: Rows that decide which weights are kept.
        encoded: Both as token ids; None: each run makes its own.
    """

    task: Task
    training: Split
    validation: Split
    encoded: Encoded | None = None


def load_data(recipe: Recipe) -> TaskData:
    """The recipe's task, with its kind and labels as the training rows show them, and its rows.

    Raises:
        UserError: The data are not there, or something in them cannot be used.
    """
    task = replace(find_task(recipe), scoring=recipe.scoring)
    train_parts = _read_parts(recipe, task, "train")
    validation_parts = [] if recipe.validation_share else _read_parts(recipe, task, task.validation)
    labels = [example.label for _, examples in train_parts for example in examples]
    task = with_answers(with_labels(task, " and ".join(source for source, _ in train_parts), labels))
    train = _mixed(task, train_parts, recipe)
    if recipe.validation_share:
        train, validation = _divided(train, recipe)
    else:
        validation = _joined([_split(task, source, examples) for source, examples in validation_parts])
    _require_measurable(task, validation)
    return TaskData(task, _draw(task, train, recipe), validation)


def load_validation(recipe: Recipe, task: Task) -> Split:
    """The validation rows alone, for a task whose labels are known.

    Runs of earlier versions took 007 and 7.0 for class 7; their rows still mean what they meant in training.

    Raises:
        UserError: The data are not there, or something in them cannot be used.
    """
    if recipe.validation_share:
        _, validation = _divided(_mixed(task, _read_parts(recipe, task, "train"), recipe), recipe)
    else:
        parts = _read_parts(recipe, task, task.validation)
        validation = _joined([_split(task, source, examples, by_value=True) for source, examples in parts])
    _require_measurable(task, validation)
    return validation


def first_row(recipe: Recipe) -> Row:
    """The first training row of task file.

    Raises:
        UserError: There is none.
    """
    _, rows = _open_files(recipe, "train")[0]
    return next(iter(rows))[1]


# where rows come from, and what the task reads of them
Parts = list[tuple[str, list[Example]]]


def _read_parts(recipe: Recipe, task: Task, split: str) -> Parts:
    """What the task reads of a split's rows, by the places that these come from."""
    opened = _open_files(recipe, split) if task.hub is None else [_open_named(recipe, task, task.hub, split)]
    return [(source, [read_example(task, source, place, row) for place, row in rows]) for source, rows in opened]


def _open_files(recipe: Recipe, split: Any) -> list[tuple[str, Iterable[tuple[str, Row]]]]:
    """The places of a split of task file, each with its rows and their places in it."""
    opened = []
    for place in recipe.places(split):
        if is_on_hub(place):
            name, _, of_hub = place.partition(":")
            opened.append(_open_hub(name, None, of_hub, f"give a file as `{split}`"))
        else:
            opened.append((place, read_rows(Path(place))))
    return opened


def _open_named(recipe: Recipe, task: Task, hub: tuple[str, str], split: str) -> tuple[str, Iterable[tuple[str, Row]]]:
    """Where a split of a named task comes from, and its rows with their places."""
    if recipe.data is None:
        name, config = hub
        way_out = f"give the data with `data` DIR, where DIR/{config}/train.jsonl and {split}.jsonl are"
        return _open_hub(name, config, split, way_out)
    folder = Path(recipe.data) / task.folder
    for ending in ("jsonl", "csv", "parquet"):
        path = folder / f"{split}.{ending}"
        if os.path.lexists(path):
            return str(path), read_rows(path)
    raise UserError(
        f"{folder / split}.jsonl is not there (nor .csv, .parquet): `data` is the folder above {task.folder}/"
    )


def _open_hub(name: str, config: str | None, split: str, way_out: str) -> tuple[str, Iterable[tuple[str, Row]]]:
    import datasets

    require_on_hub("dataset", name, way_out)
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name} could not be fetched from the hub: {one_line(error)}; {way_out}") from None
    return name, ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _mixed(task: Task, parts: Parts, recipe: Recipe) -> Split:
    """The training rows of all parts, those of a part as often as its weight says."""
    weights = recipe.weights or [1.0]  # a named task has one part
    splits = [_split(task, source, examples) for source, examples in parts]
    return _joined([_repeated(rows, weight, recipe.seed) for rows, weight in zip(splits, weights, strict=True)])


def _joined(splits: Sequence[Split]) -> Split:
    inputs, labels, places = (
        [item for items in lists for item in items]
        for lists in zip(*((split.inputs, split.labels, split.places) for split in splits), strict=True)
    )
    return Split(inputs, labels, places)


def _repeated(rows: Split, weight: float, seed: int) -> Split:
    """All rows as often as the whole part of a weight says, and a share of them, drawn by the seed, once more.

    Raises:
        UserError: None is left.
    """
    often, share = divmod(weight, 1)
    drawn = random.Random(seed).sample(range(len(rows)), round(share * len(rows)))
    chosen = [*range(len(rows))] * int(often) + sorted(drawn)
    if not chosen:
        raise UserError(f"`train`: a weight of {weight:g} leaves none of {len(rows)} rows, the first {rows.places[0]}")
    return _chosen(rows, chosen)


def _divided(rows: Split, recipe: Recipe) -> tuple[Split, Split]:
    """Rows to train on, and the share of them that is measured, drawn by the recipe's seed.

    Raises:
        UserError: There are too few rows to divide.
    """
    assert recipe.validation_share is not None
    count = max(1, round(recipe.validation_share * len(rows)))
    if count >= len(rows):
        raise UserError(f"`validation` {recipe.validation} of {len(rows)} training rows leaves none to train on")
    drawn = set(random.Random(recipe.seed).sample(range(len(rows)), count))
    rest = [row for row in range(len(rows)) if row not in drawn]
    return _chosen(rows, rest), _chosen(rows, sorted(drawn))


def _chosen(rows: Split, chosen: list[int]) -> Split:
    labels: Any = [rows.labels[row] for row in chosen]
    return Split([rows.inputs[row] for row in chosen], labels, [rows.places[row] for row in chosen])


def _split(task: Task, source: str, examples: list[Example], by_value: bool = False) -> Split:
    inputs = [make_input(task, example.cells, example.label) for example in examples]
    places = [f"{source}, {example.place}" for example in examples]
    if task.learns_language:
        return Split(inputs, [0] * len(inputs), places)
    labels = [(example.place, example.label) for example in examples]
    return Split(inputs, encode_labels(task, source, labels, by_value), places)


def _require_measurable(task: Task, validation: Split) -> None:
    if task.kind == "regression" and len(validation) < 2:
        raise UserError(f"{validation.places[0]} is the only validation row, and a correlation needs two: add rows")


def _draw(task: Task, train: Split, recipe: Recipe) -> Split:
    """The rows to train on: all, or as many as the recipe says, drawn by its seed."""
    count = recipe.max_train_examples
    if count is None or count >= len(train):
        return train
    chosen = random.Random(recipe.seed).sample(range(len(train)), count)
    labels = [train.labels[row] for row in chosen]
    if task.kind == "classification" and len(set(labels)) == 1:
        raise UserError(
            f"`max_train_examples` {count} draws only rows of label {task.labels[int(labels[0])]!r}: take more"
        )
    return _chosen(train, chosen)
