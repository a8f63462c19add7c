"""Tasks: which columns hold texts and labels, what the labels are, and how predictions are judged."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe

Kind = Literal["classification", "regression"]
Label = str | int | float

FILE_METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("spearman", "pearson"),
}


@dataclass(frozen=True)
class Task:
    """What one row means.

    Attributes:
        name: Name on the command line.
        text_columns: One text column, or the two of a pair.
        label_column: Column with the label.
        kind: Whether labels are classes or numbers; None until the labels have been seen.
        metrics: Names of the metrics, the primary one first.
        hub: Data set and configuration on the Hugging Face hub, for a named task.
        labels: The classes in the order of the model's outputs, once they have been seen.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str = "label"
    kind: Kind | None = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str] | None = None
    labels: tuple[str | int, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the task's folder in a data directory: sst2 for glue/sst2."""
        return self.name.rpartition("/")[2]


def _glue(
    name: str, *text_columns: str, metrics: tuple[str, ...] = ("accuracy",), kind: Kind = "classification"
) -> Task:
    return Task(f"glue/{name}", text_columns, kind=kind, metrics=metrics, hub=("nyu-mll/glue", name))


NAMED = {
    task.name: task
    for task in (
        _glue("cola", "sentence", metrics=("matthews", "accuracy")),
        _glue("mrpc", "sentence1", "sentence2", metrics=("f1", "accuracy")),
        _glue("rte", "sentence1", "sentence2"),
        _glue("sst2", "sentence"),
        _glue("stsb", "sentence1", "sentence2", metrics=("spearman", "pearson"), kind="regression"),
    )
}


def find_task(recipe: Recipe) -> Task:
    """The task that a recipe names, with the recipe's columns if it is ``file``.

    Raises:
        UserError: There is no such task, or the recipe's keys do not go with it.
    """
    if recipe.task == "file":
        return _file_task(recipe)
    if recipe.task not in NAMED:
        close = get_close_matches(recipe.task, [*NAMED, "file"], n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no task is called {recipe.task!r}: {hint}there are {', '.join(NAMED)} and file")
    for name in ("train", "validation", "text_column", "text_pair_column", "label_column", "label_kind"):
        if getattr(recipe, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} goes with --task file; {recipe.task} has its own")
    return NAMED[recipe.task]


def _file_task(recipe: Recipe) -> Task:
    if recipe.data is not None:
        raise UserError("--data goes with a named task; --task file takes --train and --validation")
    for name in ("train", "validation"):
        if getattr(recipe, name) is None:
            raise UserError(f"--task file needs --{name}, a JSONL, CSV or Parquet file")
    columns = (recipe.text_column or "text", *([recipe.text_pair_column] if recipe.text_pair_column else []))
    label_column = recipe.label_column or "label"
    if len({*columns, label_column}) <= len(columns):
        raise UserError(f"text and label columns have to differ: they are {', '.join((*columns, label_column))}")
    metrics = FILE_METRICS[recipe.label_kind or "classification"]
    return Task("file", columns, label_column, kind=recipe.label_kind, metrics=metrics)
