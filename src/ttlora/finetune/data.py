"""The rows of a task: its training and its validation split, from files or from the hub."""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttlora.errors import UserError, one_line
from ttlora.finetune.files import Row, read_rows
from ttlora.finetune.inputs import Example, Input, Preferred, Prompted, make_input, read_example
from ttlora.finetune.labels import encode_labels, with_answers, with_labels
from ttlora.finetune.named_tasks import find_task
from ttlora.finetune.recipe import Recipe, is_on_hub
from ttlora.finetune.stored import Stored, store
from ttlora.finetune.tasks import Task
from ttlora.models.hub import require_on_hub

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Split:
    """Rows as a task reads them.

    Attributes:
        inputs: What is put to the model.
        labels: Indices of classes, choices or answers, or numbers.
        places: Where each row stands, for messages: "reviews.csv, line 7".
    """

    inputs: Sequence[Input]
    labels: list[int] | list[float]
    places: Sequence[str] = field(compare=False)

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


@dataclass(frozen=True)
class Encoded:
    """A task's rows as token ids, with their labels.

    Attributes:
        training: Rows to train on.
        validation: Rows that are measured after every epoch.
        cut: How many of each were too long.
    """

    training: "Dataset"
    validation: "Dataset"
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
    examples = (example for _, rows in train_parts for example in Stored(rows, Example.of_row))
    labels = [] if task.learns_language else [example.label for example in examples]
    task = with_answers(with_labels(task, " and ".join(source for source, _ in train_parts), labels))
    train = _mixed(task, train_parts, recipe)
    if recipe.validation_share:
        train, validation = _divided(train, recipe)
    else:
        validation = _joined([_labelled(task, *part) for part in validation_parts])
    split = _split(task, validation)
    _require_measurable(task, split)
    return TaskData(task, _split(task, _draw(task, train, recipe)), split)


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
        validation = _joined([_labelled(task, *part, by_value=True) for part in parts])
    split = _split(task, validation)
    _require_measurable(task, split)
    return split


def first_row(recipe: Recipe) -> Row:
    """The first training row of task file.

    Raises:
        UserError: There is none.
    """
    _, rows = _open_files(recipe, "train")[0]
    return next(iter(rows))[1]


# where rows come from, and what the task reads of them, on disk
Parts = list[tuple[str, "Dataset"]]


def _read_parts(recipe: Recipe, task: Task, split: str) -> Parts:
    """What the task reads of a split's rows, by the places that these come from."""
    return [
        (source, store(read_example(task, source, place, row).as_row() for place, row in rows))
        for source, rows in _open(recipe, task, split)
    ]


def _open(recipe: Recipe, task: Task, split: str) -> list[tuple[str, Iterable[tuple[str, Row]]]]:
    """Where a split comes from, each with its rows and their places in it; columns are called as in training rows."""
    is_measured = split == task.validation
    columns = task.validation_columns if is_measured else {}
    if task.hub is None:
        opened = _open_files(recipe, split)
    else:
        hub = (task.validation_hub if is_measured else None) or task.hub
        opened = [_open_named(recipe, task, hub, split)]
    return [(source, ((place, _renamed(row, columns)) for place, row in rows)) for source, rows in opened]


def rows_at(recipe: Recipe, task: Task, split: Split, is_measured: bool) -> list[Row]:
    """The rows of a split as they stand in their files, with all columns.

    Args:
        recipe: The recipe.
        task: Its task.
        split: What `load_data` or `load_validation` has made of the rows.
        is_measured: Whether they are validation rows.

    Raises:
        UserError: The data are not there any more.
    """
    wanted, found = set(split.places), {}
    name = task.validation if is_measured and not recipe.validation_share else "train"
    for source, rows in _open(recipe, task, name):
        found.update({at: row for place, row in rows if (at := f"{source}, {place}") in wanted})
    return [found[place] for place in split.places]


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    return {columns.get(name, name): cell for name, cell in row.items()} if columns else row


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
        way_out = f"give the data with `data` DIR, where DIR/{task.folder}/train.jsonl and {split}.jsonl are"
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
    if not len(rows):
        raise UserError(f"split {split} of {name} has no rows; {way_out}")
    return name, ((f"row {number}", row) for number, row in enumerate(rows, 1))


@dataclass(frozen=True)
class _Labelled:
    """What the task reads of rows, on disk, with their labels as a model learns them."""

    examples: "Dataset"
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, rows: list[int]) -> "_Labelled":
        labels: Any = [self.labels[row] for row in rows]
        return _Labelled(self.examples.select(rows), labels)


def _labelled(task: Task, source: str, examples: "Dataset", by_value: bool = False) -> _Labelled:
    if task.learns_language:
        return _Labelled(examples, [0] * len(examples))
    labels = ((example.place, example.label) for example in Stored(examples, Example.of_row))
    return _Labelled(examples, encode_labels(task, labels, by_value))


def _mixed(task: Task, parts: Parts, recipe: Recipe) -> _Labelled:
    """The training rows of all parts, those of a part as often as its weight says."""
    weights = recipe.weights or [1.0]  # a named task has one part
    labelled = [_labelled(task, *part) for part in parts]
    return _joined([_repeated(rows, weight, recipe.seed) for rows, weight in zip(labelled, weights, strict=True)])


def _joined(parts: Sequence[_Labelled]) -> _Labelled:
    from datasets import concatenate_datasets

    labels: Any = [label for part in parts for label in part.labels]
    return _Labelled(concatenate_datasets([part.examples for part in parts]), labels)


def _repeated(rows: _Labelled, weight: float, seed: int) -> _Labelled:
    """All rows as often as the whole part of a weight says, and a share of them, drawn by the seed, once more.

    Raises:
        UserError: None is left.
    """
    often, share = divmod(weight, 1)
    drawn = random.Random(seed).sample(range(len(rows)), round(share * len(rows)))
    chosen = [*range(len(rows))] * int(often) + sorted(drawn)
    if not chosen:
        first = Example.of_row(rows.examples[0]).place
        raise UserError(f"`train`: a weight of {weight:g} leaves none of {len(rows)} rows, the first {first}")
    return rows.chosen(chosen)


def _divided(rows: _Labelled, recipe: Recipe) -> tuple[_Labelled, _Labelled]:
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
    return rows.chosen(rest), rows.chosen(sorted(drawn))


def _draw(task: Task, train: _Labelled, recipe: Recipe) -> _Labelled:
    """The rows to train on: all, or as many as the recipe says, drawn by its seed."""
    count = recipe.max_train_examples
    if count is None or count >= len(train):
        return train
    drawn = train.chosen(random.Random(recipe.seed).sample(range(len(train)), count))
    if task.kind == "classification" and len(set(drawn.labels)) == 1:
        raise UserError(
            f"`max_train_examples` {count} draws only rows of label {task.labels[int(drawn.labels[0])]!r}: take more"
        )
    return drawn


def _split(task: Task, rows: _Labelled) -> Split:
    inputs, places = Stored(rows.examples, partial(_input, task)), Stored(rows.examples.select_columns("place"), _place)
    return Split(inputs, rows.labels, places)


def _input(task: Task, row: dict[str, Any]) -> Input:
    example = Example.of_row(row)
    return make_input(task, example.cells, example.label)


def _place(row: dict[str, Any]) -> str:
    place: str = json.loads(row["place"])
    return place


def _require_measurable(task: Task, validation: Split) -> None:
    if task.kind == "regression" and len(validation) < 2:
        raise UserError(f"{validation.places[0]} is the only validation row, and a correlation needs two: add rows")
