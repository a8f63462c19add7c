"""Tasks: what a row's columns mean, what the labels are, and how predictions are judged."""

import json
import string
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, Self

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.utf8 import half_character
from ttlora.values import complaint, shown

Kind = Literal["classification", "regression", "choice", "generation", "text"]
Label = str | int | float

FILE_METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("spearman", "pearson"),
    "choice": ("accuracy",),
    "generation": ("rouge_l", "exact_match", "perplexity"),
    "text": ("token_accuracy", "perplexity"),
}
METRICS: Mapping[Kind, tuple[str, ...]] = {
    **FILE_METRICS,
    "classification": ("accuracy", "f1", "f1_macro", "matthews"),
    "generation": ("rouge_l", "exact_match", "perplexity", "token_accuracy"),
}
FILE_KEYS = ("train", "validation", "text_column", "text_pair_column", "label_column", "label_kind", "choice_columns")


@dataclass(frozen=True)
class Task:
    """What one row means.

    Attributes:
        name: Name on the command line.
        texts: One text or the two of a pair: each a column, or a template such as "{word}: {sentence}".
        label_column: Column with the label, or with the text to be generated.
        kind: What is predicted; None until the labels have been seen.
        metrics: Names of the metrics, the primary one first.
        hub: Data set and configuration on the Hugging Face hub, for a named task.
        labels: The classes in the order of the model's outputs, once they have been seen; for a choice the columns.
        choices: Columns with the choices, or one that lists them.
        wording: What a column's values are called in templates.
        scoring: Whether a head answers, or the likelihood of each answer after a prompt.
        prompt: The prompt's template.
        answers: What follows the prompt for each label.
        validation: The split that is measured.
    """

    name: str
    texts: tuple[str, ...]
    label_column: str = "label"
    kind: Kind | None = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    hub: tuple[str, str] | None = None
    labels: tuple[str | int, ...] = ()
    choices: tuple[str, ...] = ()
    wording: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    scoring: Literal["head", "prompt"] = "head"
    prompt: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    validation: str = "validation"

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """The task of a finished run, its labels known, as ``task.json`` has it.

        Raises:
            ValueError: It is none; the message says what is wrong.
        """
        hints = typing.get_type_hints(cls)
        if not isinstance(content, dict):
            raise ValueError("it holds no keys with values")
        if unknown := sorted(content.keys() - hints.keys()):
            raise ValueError(f"it has the unknown key {unknown[0]!r}")
        if missing := [name for name in ("name", "texts") if name not in content]:
            raise ValueError(f"it has no {missing[0]}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        for name, value in values.items():
            if problem := complaint(name, value, hints[name]):
                raise ValueError(problem)
        if half := half_character(json.dumps(content, ensure_ascii=False)):
            raise ValueError(f"it holds {half}, which is half a character")
        task = cls(**values)
        task._require_whole()
        return task

    def _require_whole(self) -> None:
        """Refuse fields that do not go together."""
        if not 1 <= len(self.texts) <= 2:
            raise ValueError(f"texts is {shown(self.texts)}, and has to be one or two")
        for template in (*self.texts, *([self.prompt] if self.prompt else [])):
            columns_of(template)
        if self.kind is None:
            raise ValueError("kind has no value")
        if not self.metrics or (strange := [name for name in self.metrics if name not in METRICS[self.kind]]):
            names = strange if self.metrics else self.metrics
            raise ValueError(f"metrics is {shown(names)}, and kind {self.kind} has {', '.join(METRICS[self.kind])}")
        if self.kind == "classification" and len(self.labels) < 2:
            raise ValueError(f"labels is {shown(self.labels)}, and has to be two or more")
        if self.kind == "choice" and not self.choices:
            raise ValueError("choices is empty")
        asks = self.kind == "classification" and self.scoring == "prompt"
        if asks and (unanswered := [label for label in self.labels if str(label) not in self.answers]):
            raise ValueError(f"answers has none for label {unanswered[0]!r}")
        if not self.validation.isidentifier() or (self.hub is None and self.validation != "validation"):
            raise ValueError(f"validation is {shown(self.validation)}, which is no split")

    @property
    def folder(self) -> str:
        """Name of the task's folder in a data directory: sst2 for glue/sst2."""
        return self.hub[1] if self.hub else self.name

    @property
    def is_causal(self) -> bool:
        """Whether a causal model answers with words, and not with a head."""
        return self.scoring == "prompt" or self.kind in ("generation", "text")


def columns_of(template: str) -> list[str]:
    """The columns that a template names; a text without braces is a column itself.

    Raises:
        ValueError: The braces do not fit.
    """
    if "{" not in template and "}" not in template:
        return [template]
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}") from None
    names = [str(name) for _, name, _, _ in parts]
    if not all(names):
        raise ValueError(f"{template!r} has braces without a column's name")
    return names


def fill(template: str, cells: Mapping[str, str]) -> str:
    """The text of a template, or of a column.

    Args:
        template: As `columns_of` reads it.
        cells: Texts by column.
    """
    if "{" not in template:
        return cells[template]
    parts = string.Formatter().parse(template)
    return "".join(before + ("" if column is None else cells[column]) for before, column, _, _ in parts)


def find_task(recipe: Recipe) -> Task:
    """The task that a recipe names, with the recipe's columns if it is ``file``.

    Raises:
        UserError: There is no such task, or the recipe's keys do not go with it.
    """
    from ttlora.finetune.named_tasks import NAMED

    if recipe.task == "file":
        return _file_task(recipe)
    if recipe.task not in NAMED:
        close = get_close_matches(recipe.task, [*NAMED, "file"], n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no task is called {recipe.task!r}: {hint}there are {', '.join(NAMED)} and file")
    for name in (*FILE_KEYS, "prompt", "answers"):
        if getattr(recipe, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} goes with --task file; {recipe.task} has its own")
    task = NAMED[recipe.task]
    if recipe.scoring == "prompt" and task.prompt is None:
        raise UserError(f"--scoring prompt: {recipe.task} has numbers as labels, which no prompt can ask for")
    return task


def _file_task(recipe: Recipe) -> Task:
    if recipe.data is not None:
        raise UserError("--data goes with a named task; --task file takes --train and --validation")
    for name in ("train", "validation"):
        if getattr(recipe, name) is None:
            raise UserError(f"--task file needs --{name}, a JSONL, CSV or Parquet file")
    texts = (recipe.text_column or "text", *([recipe.text_pair_column] if recipe.text_pair_column else []))
    label_column = recipe.label_column or "label"
    kind = recipe.label_kind
    choices = tuple(recipe.choice_columns or ())
    if (kind == "choice") != bool(choices):
        raise UserError("--choice-columns and --label-kind choice go together: one is missing")
    for name, text in zip(("text-column", "text-pair-column"), texts, strict=False):
        _require_template(name, text)
    used = [*texts, *choices, *([] if kind == "text" else [label_column])]
    if len(set(used)) < len(used):
        raise UserError(f"text, choice and label columns have to differ: they are {', '.join(used)}")
    if kind in ("choice", "generation", "text") and len(texts) > 1:
        raise UserError(f"--text-pair-column {texts[1]} does not go with --label-kind {kind}: use one text column")
    if recipe.scoring == "prompt" and kind == "regression":
        raise UserError("--scoring prompt: numbers are labels that no prompt can ask for")
    causal = recipe.scoring == "prompt" or kind in ("generation", "text")
    for name in ("prompt", "answers"):
        allowed = causal and kind != "text" and (name == "prompt" or kind not in ("generation", "choice"))
        if getattr(recipe, name) is not None and not allowed:
            raise UserError(f"--{name} has no use here: it goes with --scoring prompt")
    return Task(
        "file",
        texts,
        label_column,
        kind,
        FILE_METRICS[kind or "classification"],
        choices=choices,
        prompt=_file_prompt(recipe, texts) if causal else None,
        answers=dict(recipe.answers) if isinstance(recipe.answers, dict) else {},
    )


def _file_prompt(recipe: Recipe, texts: tuple[str, ...]) -> str:
    """The prompt that the recipe names, or the texts with "Answer:" where labels are to follow."""
    if recipe.prompt is not None:
        _require_template("prompt", recipe.prompt)
        if recipe.prompt not in columns_of(recipe.prompt):
            return recipe.prompt
        raise UserError(f'--prompt {recipe.prompt!r} names no column in braces, as in "{{{texts[0]}}} Answer:"')
    together = "\n".join(f"{{{column}}}" for column in texts)
    return together if recipe.label_kind in ("generation", "text", "choice") else f"{together}\nAnswer:"


def _require_template(flag: str, template: str) -> None:
    try:
        columns_of(template)
    except ValueError as error:
        raise UserError(f"--{flag}: {error}") from None
    for _, name, form, conversion in string.Formatter().parse(template):
        if form or conversion:
            raise UserError(f"--{flag}: {template!r} formats {name!r}, and a column is always written as it is")
