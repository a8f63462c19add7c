"""From rows to what is put to a model: every row is checked, and what is wrong is named with its place."""

import hashlib
import json
import math
import os
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from ttlora.errors import UserError, one_line
from ttlora.finetune.files import Row, read_rows
from ttlora.finetune.named_tasks import find_task
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import FILE_METRICS, Kind, Label, Task, columns_of, fill
from ttlora.hub import require_on_hub
from ttlora.utf8 import half_character
from ttlora.values import shown

MOST_CLASSES = 100

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Prompted:
    """A prompt, or the messages of a chat, and the answers that may follow."""

    prompt: str | Messages
    answers: tuple[str, ...]


# what a head reads: the texts of a row, or those of each choice
Texts = tuple[str, ...]
Input = Texts | tuple[Texts, ...] | Prompted


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
            content = asdict(given) if isinstance(given, Prompted) else given
            digest.update(json.dumps([content, label]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Example:
    """A row's cells that the task reads, and its label."""

    place: str
    cells: dict[str, Any]
    label: Any


def load_data(recipe: Recipe) -> tuple[Task, Split, Split]:
    """The recipe's task, with its kind and labels as the training rows show them, and both splits.

    Raises:
        UserError: The data are not there, or something in them cannot be used.
    """
    task = replace(find_task(recipe), scoring=recipe.scoring)
    train_source, train_rows = _open_split(recipe, task, "train")
    validation_source, validation_rows = _open_split(recipe, task, task.validation)
    train_examples = [_read(task, train_source, place, row) for place, row in train_rows]
    validation_examples = [_read(task, validation_source, place, row) for place, row in validation_rows]
    task = _with_answers(_with_labels(task, train_source, [example.label for example in train_examples]))
    train = _split(task, train_source, train_examples)
    validation = _split(task, validation_source, validation_examples)
    _require_measurable(task, validation)
    return task, _draw(task, train, recipe), validation


def load_validation(recipe: Recipe, task: Task) -> Split:
    """The validation rows alone, for a task whose labels are known.

    Runs of earlier versions took 007 and 7.0 for class 7; their rows still mean what they meant in training.

    Raises:
        UserError: The data are not there, or something in them cannot be used.
    """
    source, rows = _open_split(recipe, task, task.validation)
    validation = _split(task, source, [_read(task, source, place, row) for place, row in rows], by_value=True)
    _require_measurable(task, validation)
    return validation


def label_name(label: Label) -> str:
    """The name of the class that a label stands for: the label as text, whatever the type that its file gives it.

    The text 1, the number 1 and the number 1.0 are one class, as are the text true and JSON's true. The texts 007, 1.0
    and 1 are three: they are written differently.
    """
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def input_of(task: Task, row: Row, source: str, place: str) -> Input:
    """What is put to the model for one row without a label.

    Raises:
        UserError: A column is not there, or holds no text.
    """
    return _input(task, _cells(task, row, source, place, labelled=False))


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
        if os.path.lexists(path):
            return str(path), read_rows(path)
    raise UserError(
        f"{folder / split}.jsonl is not there (nor .csv, .parquet): `data` is the folder above {task.folder}/"
    )


def _open_hub(hub: tuple[str, str], split: str) -> tuple[str, Iterable[tuple[str, Row]]]:
    import datasets

    name, config = hub
    way_out = f"give the data with `data` DIR, where DIR/{config}/train.jsonl and {split}.jsonl are"
    require_on_hub("dataset", name, way_out)
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name} could not be fetched from the hub: {one_line(error)}; {way_out}") from None
    return name, ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _read(task: Task, source: str, place: str, row: Row) -> _Example:
    cells = _cells(task, row, source, place)
    if task.kind == "text" or _chat(cells) is not None:
        return _Example(place, cells, None)
    label = _cell(row, task.label_column, source, place)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{source}, {place} has no label: column {task.label_column!r} is empty")
    if isinstance(label, str):
        _whole(label, task.label_column, source, place)
    if task.kind == "choice":
        cells, label = _choose(task, source, place, cells, label)
    elif not _is_scalar(label):
        raise UserError(f"{source}, {place}: label {shown(label)} is neither text nor a number")
    elif task.kind == "generation":
        label = _text(label, task.label_column, source, place)
    return _Example(place, cells, str(label).lower() if isinstance(label, bool) else label)


def _cells(task: Task, row: Row, source: str, place: str, labelled: bool = True) -> dict[str, Any]:
    """The row's texts by column; of a choice, the choices as a list of their own under the name ""."""
    templates = [task.prompt or task.texts[0]] if task.is_causal else list(task.texts)
    cells: dict[str, Any] = {}
    for column in dict.fromkeys(column for template in templates for column in columns_of(template)):
        value = _cell(row, column, source, place)
        if task.kind == "generation" and isinstance(value, list):
            cells[column] = _messages(value, column, source, place, labelled)
        else:
            text = _text(value, column, source, place)
            cells[column] = task.wording.get(column, {}).get(text, text)
    if task.kind == "choice":
        cells[""] = _choices(task, row, source, place)
    return cells


def _choices(task: Task, row: Row, source: str, place: str) -> list[str]:
    values = [_cell(row, column, source, place) for column in task.choices]
    listed = len(task.choices) == 1 and isinstance(values[0], list)
    texts = [_text(value, ", ".join(task.choices), source, place) for value in (values[0] if listed else values)]
    if listed:
        texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        raise UserError(
            f"{source}, {place}: there is but one choice in {task.choices[0]!r}: a choice needs two or more"
        )
    return texts


def _choose(task: Task, source: str, place: str, cells: dict[str, Any], label: Any) -> tuple[dict[str, Any], int]:
    """The index of the right choice; where several are right, all but the first are taken out."""
    choices = cells[""]
    if isinstance(label, list):
        names = {label_name(item) for item in label if _is_scalar(item)}
        right = [choice for choice in choices if choice in names]
        if not right or len(right) == len(choices):
            raise UserError(f"{source}, {place}: of the choices, {len(right)} are in {task.label_column!r}")
        choices = [choice for choice in choices if choice == right[0] or choice not in right]
        if len(choices) < 2:
            raise UserError(f"{source}, {place}: all choices but one are in {task.label_column!r}")
        return {**cells, "": choices}, choices.index(right[0])
    meant = set()
    if _is_scalar(label):
        name = label_name(label)
        number = _whole_number(name)
        if number is not None and 0 <= number < len(choices):
            meant.add(number)
        if isinstance(label, str) or not meant:
            meant |= {names.index(name) for names in (list(task.choices), choices) if name in names}
    if len(meant) == 1:
        return cells, meant.pop()
    if meant:
        raise UserError(
            f"{source}, {place}: label {shown(label)} can be a choice's number, from 0 on, and a choice itself, which "
            "is another one: write the number as a number, or the choice's column"
        )
    raise UserError(
        f"{source}, {place}: label {shown(label)} names none of the {len(choices)} choices: it has to be a number from "
        "0 on, a choice's column, or a choice itself"
    )


def _messages(value: list[Any], column: str, source: str, place: str, labelled: bool) -> Messages:
    """The messages of a chat, each with its role and its content."""
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(
                f"{source}, {place}: column {column!r} holds {shown(message)}, no message with role and content"
            )
    if not value or (labelled and (len(value) < 2 or value[-1]["role"] != "assistant")):
        raise UserError(f"{source}, {place}: the chat in column {column!r} has to end with the assistant's answer")
    return tuple({key: _whole(message[key], column, source, place) for key in ("role", "content")} for message in value)


def _chat(cells: dict[str, Any]) -> Messages | None:
    return next((value for value in cells.values() if isinstance(value, tuple)), None)


def _text(value: Any, column: str, source: str, place: str) -> str:
    """A cell as text: text to the letter, and what has one spelling as it is spelt."""
    if not (_is_scalar(value) or isinstance(value, Decimal | date)):
        raise UserError(f"{source}, {place}: column {column!r} holds no text but {shown(value)}")
    if isinstance(value, bool):
        return str(value).lower()
    return _whole(str(value), column, source, place)


def _whole(text: str, column: str, source: str, place: str) -> str:
    """The text, if it holds no half of a character, which no tokenizer takes."""
    if half := half_character(text):
        raise UserError(f"{source}, {place}: column {column!r} holds {half}, which is half a character: mend the text")
    return text


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _input(task: Task, cells: dict[str, Any], answer: Any = None) -> Input:
    """What is put to the model; of a generation with the answer that is to be learned."""
    if task.kind == "text":
        return Prompted("", (fill(task.texts[0], cells),))
    if (chat := _chat(cells)) is not None:
        answered = chat[-1]["role"] == "assistant"
        return Prompted(chat[:-1], (chat[-1]["content"],)) if answered else Prompted(chat, ())
    if not task.is_causal:
        texts = tuple(fill(template, cells) for template in task.texts)
        return tuple((*texts, choice) for choice in cells[""]) if task.kind == "choice" else texts
    prompt = fill(task.prompt or task.texts[0], cells)
    if task.kind == "choice":
        return Prompted(prompt, tuple(cells[""]))
    if task.kind == "generation":
        return Prompted(prompt, () if answer is None else (str(answer),))
    return Prompted(prompt, tuple(task.answers[str(label)] for label in task.labels))


def _split(task: Task, source: str, examples: list[_Example], by_value: bool = False) -> Split:
    inputs = [_input(task, example.cells, example.label) for example in examples]
    places = [f"{source}, {example.place}" for example in examples]
    if task.kind in ("generation", "text"):
        return Split(inputs, [0] * len(inputs), places)
    labels = [(example.place, example.label) for example in examples]
    return Split(inputs, _encode(task, source, labels, by_value), places)


def _with_labels(task: Task, source: str, labels: list[Label]) -> Task:
    """The task with the kind and the classes that the training labels show."""
    if task.kind in ("generation", "text"):
        return task
    if task.kind == "choice":
        return replace(task, labels=task.choices if len(task.choices) > 1 else ())
    kind = task.kind or _kind(source, set(map(str, labels)))
    if kind == "regression":
        if len({_number(label) for label in labels}) == 1:
            raise UserError(f"{source}: all labels are {labels[0]!r}, so there is nothing to learn")
        return replace(task, kind=kind, metrics=task.metrics if task.kind else FILE_METRICS[kind])
    names = sorted(set(map(label_name, labels)))
    numbers = [number for name in names if (number := _whole_number(name)) is not None]
    classes = sorted(numbers) if len(numbers) == len(names) else names
    if len(classes) == 1:
        raise UserError(f"{source}: all labels are {classes[0]!r}, so there is nothing to learn")
    return replace(task, kind=kind, metrics=task.metrics if task.kind else FILE_METRICS[kind], labels=tuple(classes))


def _kind(source: str, labels: set[str]) -> Kind:
    """Classes or numbers, seen from the distinct labels as they are written."""
    numbers = [_number(label) for label in labels]
    if None in numbers:
        return "classification"
    if not all(number.is_integer() for number in numbers if number is not None):
        return "regression"
    if len(labels) > MOST_CLASSES or any("." in label for label in labels):
        raise UserError(
            f"{source}: the labels (such as {max(labels)!r}) can be classes or amounts: "
            "say `label_kind` classification or `label_kind` regression"
        )
    return "classification"


def _with_answers(task: Task) -> Task:
    """The task with an answer for each label, where a prompt asks for labels."""
    if task.scoring != "prompt" or task.kind in ("choice", "generation", "text"):
        return task
    if task.kind == "regression":
        raise UserError("`scoring` prompt: the labels are numbers, which no prompt can ask for")
    labels = [str(label) for label in task.labels]
    answers = task.answers or {label: label for label in labels}
    for names, others, complaint in ((labels, answers, "have no answer"), (answers, labels, "are no labels")):
        if strange := [name for name in names if name not in others]:
            raise UserError(f"`answers`: {', '.join(strange[:10])} {complaint}: labels are {', '.join(labels[:10])}")
    if len(set(answers.values())) < len(answers):
        raise UserError(f"`answers`: two labels have the same answer ({', '.join(answers.values())})")
    return replace(task, answers=dict(answers))


def _encode(
    task: Task, source: str, labels: list[tuple[str, Label]], by_value: bool = False
) -> list[int] | list[float]:
    if task.kind == "choice":
        return [int(label) for _, label in labels]
    if task.kind == "regression":
        numbers = []
        for place, label in labels:
            number = _number(label)
            if number is None:
                raise UserError(f"{source}, {place}: label {shown(label)} is no number, which regression needs")
            numbers.append(number)
        return numbers
    index = {str(label): number for number, label in enumerate(task.labels)}
    whole = all(isinstance(label, int) for label in task.labels)
    encoded = []
    for place, label in labels:
        name = label_name(label)
        if by_value and whole and name not in index and (number := _number(label)) is not None and number.is_integer():
            name = str(int(number))
        if name not in index:
            known = ", ".join(map(repr, task.labels[:10])) + (", ..." if len(task.labels) > 10 else "")
            raise UserError(
                f"{source}, {place}: label {shown(label)} is none of the training labels ({known}); "
                "take the row out, or put rows with this label into the training data"
            )
        encoded.append(index[name])
    return encoded


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
    return Split([train.inputs[row] for row in chosen], labels, [train.places[row] for row in chosen])


def _cell(row: Row, column: str, source: str, place: str) -> Any:
    if column not in row:
        raise UserError(f"{source}, {place}: there is no column {column!r}, only {', '.join(map(str, row))}")
    return row[column]


def _number(value: Label) -> float | None:
    """The number that a label is or spells, if it is finite."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole_number(name: str) -> int | None:
    """The whole number that is written so and not otherwise: 7 for "7", and none for "007" and "7.0"."""
    try:
        number = int(name)
    except ValueError:
        return None
    return number if str(number) == name else None
