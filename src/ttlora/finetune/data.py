"""From files or the hub to tokenised rows: every row is checked, and what is wrong is named with its place."""

import csv
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ttlora.errors import UserError, one_line
from ttlora.finetune.hub import require_on_hub
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import FILE_METRICS, Kind, Label, Task, find_task

Row = dict[str, Any]
MOST_CLASSES = 100


@dataclass(frozen=True)
class Split:
    """Rows of texts with their labels: class indices, or numbers."""

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.texts)


def load_data(recipe: Recipe) -> tuple[Task, Split, Split]:
    """The recipe's task, with its kind and labels as the training rows show them, and both splits.

    Raises:
        UserError: The data are not there, or something in them cannot be used.
    """
    task = find_task(recipe)
    train_source, train_rows = _open_split(recipe, task, "train")
    validation_source, validation_rows = _open_split(recipe, task, "validation")
    train_texts, train_labels = _read_columns(task, train_source, train_rows)
    validation_texts, validation_labels = _read_columns(task, validation_source, validation_rows)
    task = _with_labels(task, train_source, train_labels)
    train = Split(train_texts, _encode(task, train_source, train_labels))
    validation = Split(validation_texts, _encode(task, validation_source, validation_labels))
    return task, _draw(task, train, recipe), validation


def load_validation(recipe: Recipe, task: Task) -> Split:
    """The validation rows alone, for a task whose labels are known.

    Raises:
        UserError: The data are not there, or something in them cannot be used.
    """
    source, rows = _open_split(recipe, task, "validation")
    texts, labels = _read_columns(task, source, rows)
    return Split(texts, _encode(task, source, labels))


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with its place for messages ("line 7"); the format follows from the name's ending.

    Raises:
        UserError: The file is not there, is empty or malformed, or has another ending.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot tell the format; the name has to end in {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path} is not there" if not path.exists() else f"{path} is no file")
    empty = True
    try:
        for place, row in readers[path.suffix](path):
            empty = False
            yield place, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if empty:
        raise UserError(f"{path} has no rows")


def texts_of(row: Row, columns: Sequence[str], source: str, place: str) -> tuple[str, ...]:
    """The texts of one row.

    Raises:
        UserError: A column is not there, or holds no text.
    """
    texts = []
    for column in columns:
        value = _cell(row, column, source, place)
        if value is None or isinstance(value, list | dict):
            raise UserError(f"{source}, {place}: column {column!r} holds no text but {_shown(value)}")
        texts.append(str(value))
    return tuple(texts)


def _open_split(recipe: Recipe, task: Task, split: str) -> tuple[str, Iterable[tuple[str, Row]]]:
    """Where a split comes from, and its rows with their places."""
    if task.hub is None:
        path = Path(getattr(recipe, split))
        return str(path), read_rows(path)
    if recipe.data is None:
        return _open_hub(task.hub, split)
    folder = Path(recipe.data) / task.folder
    for ending in ("jsonl", "csv", "parquet"):
        path = folder / f"{split}.{ending}"
        if path.exists():
            return str(path), read_rows(path)
    raise UserError(
        f"{folder / split}.jsonl is not there (nor .csv, .parquet): --data is the folder above {task.folder}/"
    )


def _open_hub(hub: tuple[str, str], split: str) -> tuple[str, Iterable[tuple[str, Row]]]:
    import datasets

    name, config = hub
    way_out = f"give the data with --data DIR, where DIR/{config}/train.jsonl and validation.jsonl are"
    require_on_hub("dataset", name, way_out)
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name} could not be fetched from the hub: {one_line(error)}; {way_out}") from None
    return name, ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is no JSON object but {_shown(row)}")
            yield f"line {number}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row or None in row.values():
                    fields = len(reader.fieldnames or ())
                    raise UserError(f"{path}, {place} has not the {fields} fields that the first line names")
                yield place, row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is no CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no Parquet file: {one_line(error)}") from None
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for number, row in enumerate(rows, 1):
        yield f"row {number}", {str(column): value for column, value in row.items()}


def _read_columns(
    task: Task, source: str, rows: Iterable[tuple[str, Row]]
) -> tuple[list[tuple[str, ...]], list[tuple[str, Label]]]:
    """Texts, and labels with their places."""
    texts, labels = [], []
    for place, row in rows:
        texts.append(texts_of(row, task.text_columns, source, place))
        label = _cell(row, task.label_column, source, place)
        if isinstance(label, bool):
            label = str(label).lower()
        if label is None or (isinstance(label, str) and not label.strip()) or label != label:
            raise UserError(f"{source}, {place} has no label: column {task.label_column!r} is empty")
        if not isinstance(label, str | int | float):
            raise UserError(f"{source}, {place}: label {_shown(label)} is neither text nor a number")
        labels.append((place, label))
    return texts, labels


def _with_labels(task: Task, source: str, labels: list[tuple[str, Label]]) -> Task:
    """The task with the kind and the classes that the training labels show."""
    values = {label for _, label in labels}
    kind = task.kind or _kind(source, values)
    if len(values) == 1:
        raise UserError(f"{source}: all labels are {values.pop()!r}, so there is nothing to learn")
    metrics = task.metrics if task.kind else FILE_METRICS[kind]
    if kind == "regression":
        return replace(task, kind=kind, metrics=metrics)
    numbers = [_number(value) for value in values]
    whole = sorted({int(number) for number in numbers if number is not None and number.is_integer()})
    classes = whole if len(whole) == len(values) else sorted(map(str, values))
    return replace(task, kind=kind, metrics=metrics, labels=tuple(classes))


def _kind(source: str, values: set[Label]) -> Kind:
    """Classes or numbers, seen from the distinct labels."""
    numbers = [_number(value) for value in values]
    if None in numbers:
        return "classification"
    if not all(number.is_integer() for number in numbers if number is not None):
        return "regression"
    if len(values) > MOST_CLASSES or any("." in str(value) for value in values):
        raise UserError(
            f"{source}: the labels (such as {max(values, key=str)!r}) can be classes or amounts: "
            "say --label-kind classification or --label-kind regression"
        )
    return "classification"


def _encode(task: Task, source: str, labels: list[tuple[str, Label]]) -> list[int] | list[float]:
    if task.kind == "regression":
        numbers = []
        for place, label in labels:
            number = _number(label)
            if number is None:
                raise UserError(f"{source}, {place}: label {label!r} is no number, which regression needs")
            numbers.append(number)
        return numbers
    index = {str(label): number for number, label in enumerate(task.labels)}
    whole = all(isinstance(label, int) for label in task.labels)
    encoded = []
    for place, label in labels:
        number = _number(label) if whole else None
        name = str(int(number)) if number is not None and number.is_integer() else str(label)
        if name not in index:
            known = ", ".join(map(repr, task.labels[:10])) + (", ..." if len(task.labels) > 10 else "")
            raise UserError(
                f"{source}, {place}: label {label!r} is none of the training labels ({known}); "
                "take the row out, or put rows with this label into the training data"
            )
        encoded.append(index[name])
    return encoded


def _draw(task: Task, train: Split, recipe: Recipe) -> Split:
    """The rows to train on: all, or as many as the recipe says, drawn by its seed."""
    count = recipe.max_train_examples
    if count is None or count >= len(train):
        return train
    chosen = random.Random(recipe.seed).sample(range(len(train)), count)
    labels = [train.labels[row] for row in chosen]
    if task.kind == "classification" and len(set(labels)) == 1:
        raise UserError(
            f"--max-train-examples {count} draws only rows of label {task.labels[int(labels[0])]!r}: take more"
        )
    return Split([train.texts[row] for row in chosen], labels)


def _cell(row: Row, column: str, source: str, place: str) -> Any:
    if column not in row:
        raise UserError(f"{source}, {place}: there is no column {column!r}, only {', '.join(map(str, row))}")
    return row[column]


def _number(value: Label) -> float | None:
    """The number that a label is or spells, if it is finite."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value!r:.40}"


def tokenise(texts: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """The rows as token ids, without padding.

    Args:
        texts: One or two texts a row.
        tokenizer: The model's tokenizer.
        max_length: Most tokens a row; the longest text of a row is cut first.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    return [{name: values[row] for name, values in encoded.items()} for row in range(len(texts))]


def collator(tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """What makes a batch of rows: padded to its longest row."""
    return lambda rows: tokenizer.pad(rows, return_tensors="pt")
