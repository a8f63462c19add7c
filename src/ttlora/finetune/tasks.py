"""Tasks: what a row's columns mean, what the labels are, and how predictions are judged."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from ttlora.utf8 import half_character
from ttlora.values import from_fields, shown

Kind = Literal["classification", "regression", "choice", "generation", "text", "preference"]
# those of causal models whose rows have no label: TRL trains them
LANGUAGE_KINDS: tuple[Kind, ...] = ("generation", "text", "preference")
# the named tasks of these kinds: a recipe has other defaults for them
LANGUAGE_TASKS = ("metamathqa",)
Label = str | int | float

FILE_METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("spearman", "pearson"),
    "choice": ("accuracy",),
    "generation": ("rouge_l", "exact_match", "perplexity"),
    "text": ("token_accuracy", "perplexity"),
    "preference": ("accuracy", "reward_margin"),
}
METRICS: Mapping[Kind, tuple[str, ...]] = {
    **FILE_METRICS,
    "classification": ("accuracy", "f1", "f1_macro", "matthews"),
    "generation": ("rouge_l", "exact_match", "last_number", "perplexity", "token_accuracy"),
}


@dataclass(frozen=True)
class Task:
    """What the columns of a row mean, and how predictions are judged.

    Attributes:
        name: Name on the command line.
        texts: One text or the two of a pair: each a column, or a template such as "{word}: {sentence}".
        label_column: Column with the label, or with the text to be generated.
        kind: What is predicted; None until the labels have been seen.
        metrics: Names of the metrics, the primary one first.
        hub: Data set and configuration on the Hugging Face hub, for a named task.
        labels: The classes in the order of the model's outputs, once they have been seen; for a choice the columns.
        choices: Columns with the choices, or one that lists them; of a preference, those with both answers.
        wording: What a column's values are called in templates.
        scoring: Whether a head answers, or the likelihood of each answer after a prompt.
        prompt: The prompt's template.
        answers: What follows the prompt for each label.
        validation: The split that is measured.
        validation_hub: Data set and configuration of the split that is measured, where it is another than `hub`.
        validation_columns: What the columns of that split are called in the training rows, where it is something else.
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
    validation_hub: tuple[str, str] | None = None
    validation_columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """The task that a finished run has written to ``task.json``.

        Raises:
            ValueError: The content is not a task; the message says why.
        """
        task = from_fields(cls, content)
        if half := half_character(json.dumps(content, ensure_ascii=False)):
            raise ValueError(f"it holds {half}, which is half a character")
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
        if self.kind == "preference" and len(self.choices) != 2:
            raise ValueError(f"choices is {shown(self.choices)}, and a preference has two")
        asks = self.kind == "classification" and self.scoring == "prompt"
        if asks and (unanswered := [label for label in self.labels if str(label) not in self.answers]):
            raise ValueError(f"answers has none for label {unanswered[0]!r}")
        if not self.validation.isidentifier() or (self.hub is None and self.validation != "validation"):
            raise ValueError(f"validation is {shown(self.validation)}, which is no split")

    @property
    def folder(self) -> str:
        """Name of the task's folder in a data directory: sst2 for glue/sst2."""
        # the hub calls the configuration of a data set that has but one so
        return self.hub[1] if self.hub and self.hub[1] != "default" else self.name

    @property
    def is_causal(self) -> bool:
        """Whether a causal model answers with words, and not with a head."""
        return self.scoring == "prompt" or self.learns_language

    @property
    def learns_language(self) -> bool:
        """Whether a causal model learns what it is to write, or to prefer."""
        return self.kind in LANGUAGE_KINDS


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
