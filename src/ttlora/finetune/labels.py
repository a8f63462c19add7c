"""What the labels of the training rows say: classes or numbers, which classes there are, and the index of each."""

import math
from collections.abc import Iterable
from dataclasses import replace

from ttlora.errors import UserError
from ttlora.finetune.tasks import FILE_METRICS, Kind, Label, Task
from ttlora.values import shown

MOST_CLASSES = 100


def label_name(label: Label) -> str:
    """The name of the class that a label stands for: the label as text, whatever its type in the file.

    The text 1, the number 1 and the number 1.0 are one class, as are the text true and JSON's true. The texts 007, 1.0
    and 1 are three: they are written differently.
    """
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def with_labels(task: Task, source: str, labels: list[Label]) -> Task:
    """The task with the kind and the classes that the training labels show.

    Raises:
        UserError: All labels are the same, or they can be classes as well as numbers.
    """
    if task.learns_language:
        return task
    if task.kind == "choice":
        return replace(task, labels=task.choices if len(task.choices) > 1 else ())
    kind = task.kind or _kind(source, set(map(str, labels)))
    if kind == "regression":
        if len({_number(label) for label in labels}) == 1:
            raise UserError(f"{source}: all labels are {labels[0]!r}, so there is nothing to learn")
        return replace(task, kind=kind, metrics=task.metrics if task.kind else FILE_METRICS[kind])
    names = sorted(set(map(label_name, labels)))
    numbers = [number for name in names if (number := whole_number(name)) is not None]
    classes = sorted(numbers) if len(numbers) == len(names) else names
    if len(classes) == 1:
        raise UserError(f"{source}: all labels are {classes[0]!r}, so there is nothing to learn")
    return replace(task, kind=kind, metrics=task.metrics if task.kind else FILE_METRICS[kind], labels=tuple(classes))


def _kind(source: str, labels: set[str]) -> Kind:
    """Whether the labels are classes or numbers, judged by how the distinct ones are written."""
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


def with_answers(task: Task) -> Task:
    """The task with an answer for each label, where a prompt asks for labels.

    Raises:
        UserError: The answers are not those of the labels.
    """
    if task.scoring != "prompt" or task.kind == "choice" or task.learns_language:
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


def encode_labels(task: Task, labels: Iterable[tuple[str, Label]], by_value: bool = False) -> list[int] | list[float]:
    """The label of each row as a model learns it: the index of its class or choice, or a number.

    Args:
        task: The task, its labels known.
        labels: The place of each row, and its label.
        by_value: Whether 007 and 7.0 are class 7 too.

    Raises:
        UserError: A label is no class of the task, or no number.
    """
    if task.kind == "choice":
        return [int(label) for _, label in labels]
    if task.kind == "regression":
        numbers = []
        for place, label in labels:
            number = _number(label)
            if number is None:
                raise UserError(f"{place}: label {shown(label)} is no number, which regression needs")
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
                f"{place}: label {shown(label)} is none of the training labels ({known}); "
                "take the row out, or put rows with this label into the training data"
            )
        encoded.append(index[name])
    return encoded


def _number(value: Label) -> float | None:
    """The finite number that a label is or spells; None: it is none."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def whole_number(name: str) -> int | None:
    """The whole number in its usual spelling: 7 for "7", and None for "007" and "7.0"."""
    try:
        number = int(name)
    except ValueError:
        return None
    return number if str(number) == name else None
