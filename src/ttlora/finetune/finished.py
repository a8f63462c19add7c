"""What one does with a finished run: measure it again, and label new rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.data import Row, load_validation, read_rows, texts_of
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.measure import cpu_threads, measure, predict
from ttlora.finetune.methods import find_method
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.record import Record


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
        """The rows of a file, each with its prediction: the label and the classes' probabilities, or a number.

        Args:
            path: JSONL, CSV or Parquet with the task's text columns; a label column is not needed.

        Raises:
            UserError: The rows cannot be read, lack a text, or have a column of the name that a prediction gets.
        """
        rows: list[Row] = []
        texts: list[tuple[str, ...]] = []
        added = ("prediction",) if self.task.kind == "regression" else ("prediction", "probabilities")
        for place, row in read_rows(path):
            if taken := [name for name in added if name in row]:
                raise UserError(f"{path}, {place}: column {taken[0]!r} is there already: rename it")
            rows.append(row)
            texts.append(texts_of(row, self.task.text_columns, str(path), place))
        with cpu_threads(self.recipe.threads):
            outputs = predict(self.base, texts, self.recipe)
        return ({**row, **self._prediction(output)} for row, output in zip(rows, outputs, strict=True))

    def _prediction(self, output: Any) -> Row:
        if self.task.kind == "regression":
            return {"prediction": float(output.reshape(()))}
        names = [str(label) for label in self.task.labels]
        return {
            "prediction": self.task.labels[int(output.argmax())],
            "probabilities": {name: round(float(value), 6) for name, value in zip(names, output, strict=True)},
        }
