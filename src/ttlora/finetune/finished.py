"""What one does with a finished run: measure it again, and label new rows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.data import Input, Prompted, Split, input_of, load_validation
from ttlora.finetune.files import Row, read_rows
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.measure import cpu_threads, generate, measure, predict
from ttlora.finetune.methods import find_method
from ttlora.finetune.metrics import measure_tokens
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import require_one_process
from ttlora.finetune.tasks import Task
from ttlora.record import Record
from ttlora.values import shown


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, its trained model loaded.

    Attributes:
        record: What ``result.json`` holds.
        recipe: How the run was trained.
        task: The task, its labels known.
        base: The trained model.
    """

    record: Record
    recipe: Recipe
    task: Task
    base: Base

    @classmethod
    def load(cls, directory: str, model: str | None = None) -> "FinishedRun":
        """Load a run from its output folder.

        Args:
            directory: The output folder.
            model: Where the base model is now, if it is no longer where the recipe says.

        Raises:
            UserError: The folder holds no finished run, or one that is damaged, or the model is another one.
        """
        require_one_process()
        folder = RunFolder(directory)
        record = folder.read_result()
        recipe = Recipe.read(folder.recipe)
        if model is not None:
            recipe = replace(recipe, model=model).with_defaults({})
        task = folder.read_task()
        with cpu_threads(recipe.threads):
            base = find_method(recipe.method).load(recipe.model, task, folder.adapter)
        return cls(record, recipe, task, base)

    def evaluate(self) -> tuple[dict[str, float], float]:
        """The metrics and the loss on the validation rows of the recipe.

        Raises:
            UserError: The validation rows are no longer there.
        """
        validation = load_validation(self.recipe, self.task)
        with cpu_threads(self.recipe.threads):
            return measure(self.base, validation, self.task, self.recipe)

    def predict(self, path: Path) -> Iterator[Row]:
        """The rows of a file, each with its prediction.

        That is the label and the probabilities of all, a number, what was generated, or a text's perplexity.

        Args:
            path: JSONL, CSV or Parquet with the task's text columns; a label column is not needed.

        Raises:
            UserError: The rows cannot be read, lack a text, or have a column of the name that a prediction gets.
        """
        rows: list[Row] = []
        split = Split([], [], [])
        added = {
            "classification": ("prediction", "probabilities"),
            "choice": ("prediction", "probabilities"),
            "text": ("perplexity",),
        }.get(str(self.task.kind), ("prediction",))
        for place, row in read_rows(path):
            if taken := [name for name in added if name in row]:
                raise UserError(f"{path}, {place}: column {taken[0]!r} is there already: rename it")
            _require_writable(row, f"{path}, {place}")
            rows.append(row)
            split.inputs.append(input_of(self.task, row, str(path), place))
            split.places.append(f"{path}, {place}")
        split = replace(split, labels=[0] * len(rows))
        with cpu_threads(self.recipe.threads):
            if self.task.kind == "generation":
                written = generate(self.base, split, self.recipe)
                return ({**row, "prediction": answer} for row, answer in zip(rows, written, strict=True))
            outputs = predict(self.base, split, self.task, self.recipe)
        if broken := [place for place, output in zip(split.places, outputs, strict=True) if np.isnan(output).any()]:
            raise UserError(f"{broken[0]}: the model answers with what is no number (NaN): its weights are no good")
        return (
            {**row, **self._prediction(given, output)}
            for row, given, output in zip(rows, split.inputs, outputs, strict=True)
        )

    def _prediction(self, given: Input, output: Any) -> Row:
        if self.task.kind == "regression":
            return {"prediction": float(output.reshape(()))}
        if self.task.kind == "text":
            return {"perplexity": measure_tokens(output[None])["perplexity"]}
        names = list(self.task.labels) or _choices(given)
        chosen = names[int(output.argmax())]
        # of rows with fewer choices than others, the outputs are filled up
        probabilities = zip(map(str, names), output, strict=False)
        return {"prediction": chosen, "probabilities": {name: round(float(value), 6) for name, value in probabilities}}


def _require_writable(row: Row, place: str) -> None:
    """Refuse a row that a line of JSON in UTF-8 cannot hold, before the model has gone to work on it."""
    for column, value in row.items():
        try:
            json.dumps([column, value], ensure_ascii=False, allow_nan=False, default=str).encode("utf-8")
        except ValueError:
            raise UserError(
                f"{place}: column {column!r} holds {shown(value)}, which no line of JSON in UTF-8 can: mend it, or "
                "take the column out"
            ) from None


def _choices(given: Input) -> list[Any]:
    """The choices of a row that lists its own."""
    return list(given.answers) if isinstance(given, Prompted) else [texts[-1] for texts in given]
