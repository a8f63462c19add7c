"""A finished run, loaded again: to measure it, and to label new rows."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttlora.errors import UserError
from ttlora.finetune.data import Split, load_validation
from ttlora.finetune.files import Row, read_rows
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.inputs import Input, Prompted, input_of
from ttlora.finetune.machine import cpu_threads, require_one_process
from ttlora.finetune.measure import generate, measure, outputs_of
from ttlora.finetune.methods import find_method
from ttlora.finetune.metrics import measure_tokens
from ttlora.finetune.objective import Objective
from ttlora.finetune.objectives import objective_of
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.record import Record
from ttlora.values import shown


@dataclass(frozen=True)
class Evaluation:
    """What a finished run measures on its validation rows.

    Attributes:
        record: What ``result.json`` holds.
        metrics: Metric name to value.
        validation_loss: The mean loss.
    """

    record: Record
    metrics: dict[str, float]
    validation_loss: float


def evaluate(run: str | Path, model: str | None = None) -> Evaluation:
    """Load the saved adapter of a finished run into its base model and measure it on the run's validation rows.

    Args:
        run: Output folder of `train`.
        model: Where the base model is now; None: where the run's recipe says.

    Raises:
        UserError: The folder holds no finished run, or the base model or the validation rows are no longer there.

    Examples:
        >>> import ttlora
        >>> evaluation = ttlora.evaluate("run")
        >>> evaluation.metrics == evaluation.record.metrics
        True
    """
    return FinishedRun.load(run, model).evaluate()


def predict(run: str | Path, rows: str | Path | Iterable[Row], model: str | None = None) -> list[Row]:
    """The rows with the predictions of a finished run.

    A row gets the label as ``prediction`` and the probabilities of all labels, or a number, or what the model writes,
    or a text's perplexity, or of two answers the column of the one that the model prefers, with both rewards.

    Args:
        run: Output folder of `train`; or of `route`, whose rows also get the name of the ``expert`` that answers.
        rows: A JSONL, CSV or Parquet file, or rows as dicts, with the text columns that the run was trained on.
        model: Where the base model is now; None: where the run's recipe says.

    Raises:
        UserError: The folder holds no finished run, or the base model is no longer there; or the rows cannot be read,
            lack a text, or have a column of the name that a prediction gets.

    Examples:
        >>> import ttlora
        >>> [row] = ttlora.predict("run", [{"text": "a fine film"}])
        >>> sorted(row)
        ['prediction', 'probabilities', 'text']
    """
    from ttlora.finetune.routed import RoutedExperts, is_router  # which reads this module

    loaded = RoutedExperts.load(run, model) if is_router(run) else FinishedRun.load(run, model)
    return list(loaded.predict(rows))


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, its trained model loaded: for more than one call of `evaluate` and `predict`.

    Attributes:
        record: What ``result.json`` holds.
        recipe: How the run was trained.
        objective: How its task is put to the trained model.
    """

    record: Record
    recipe: Recipe
    objective: Objective

    @classmethod
    def load(cls, directory: str | Path, model: str | None = None) -> "FinishedRun":
        """Load a run from its output folder.

        Args:
            directory: The output folder.
            model: Where the base model is now; None: where the recipe says.

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
            base = find_method(recipe.method).load(recipe, task, folder.adapter)
        return cls(record, recipe, objective_of(task, base, recipe))

    @property
    def task(self) -> Task:
        """The run's task, its labels known."""
        return self.objective.task

    def evaluate(self) -> Evaluation:
        """As the function `evaluate`."""
        validation = load_validation(self.recipe, self.task)
        with cpu_threads(self.recipe.threads):
            return Evaluation(self.record, *measure(self.objective, validation))

    def predict(self, rows: str | Path | Iterable[Row]) -> Iterator[Row]:
        """As the function `predict`; all rows are checked before the model goes to work."""
        source, placed = with_places(rows)
        given, inputs, places = [], [], []
        for place, row in placed:
            require_predictable(self.task, row, f"{source}, {place}")
            given.append(row)
            inputs.append(input_of(self.task, row, source, place))
            places.append(f"{source}, {place}")
        if not given:
            raise UserError(f"{source} has no rows")
        split = Split(inputs, [0] * len(given), places)
        with cpu_threads(self.recipe.threads):
            if self.task.kind == "generation":
                written = generate(self.objective, split)
                return ({**row, "prediction": answer} for row, answer in zip(given, written, strict=True))
            outputs = outputs_of(self.objective, split)
        require_numbers(outputs, places)
        return (
            {**row, **prediction_of(self.task, each, output)}
            for row, each, output in zip(given, split.inputs, outputs, strict=True)
        )


def with_places(rows: str | Path | Iterable[Row]) -> tuple[str, Iterable[tuple[str, Row]]]:
    """What rows are called in messages, and each with its place there.

    Args:
        rows: A file, or the rows.
    """
    if isinstance(rows, str | Path):
        return str(rows), read_rows(Path(rows))
    return "rows", ((f"row {number}", row) for number, row in enumerate(rows, 1))


def require_predictable(task: Task, row: Row, place: str) -> None:
    """Refuse a row that has a column that a prediction gets, and one that a line of JSON in UTF-8 cannot hold, before
    the model has gone to work on it.

    Raises:
        UserError: It is such a row.
    """
    added = {
        "classification": ("prediction", "probabilities"),
        "choice": ("prediction", "probabilities"),
        "text": ("perplexity",),
        "preference": ("prediction", "rewards"),
    }.get(str(task.kind), ("prediction",))
    if taken := [name for name in added if name in row]:
        raise UserError(f"{place}: column {taken[0]!r} is there already: rename it")
    for column, value in row.items():
        try:
            json.dumps([column, value], ensure_ascii=False, allow_nan=False, default=str).encode("utf-8")
        except ValueError:
            raise UserError(
                f"{place}: column {column!r} holds {shown(value)}, which no line of JSON in UTF-8 can: mend it, or "
                "take the column out"
            ) from None


def require_numbers(outputs: Iterable[np.ndarray], places: Sequence[str]) -> None:
    """Refuse a model that answers with NaN.

    Raises:
        UserError: It does; the message names the first row's place.
    """
    if broken := [place for place, output in zip(places, outputs, strict=True) if np.isnan(output).any()]:
        raise UserError(f"{broken[0]}: the model answers with what is no number (NaN): its weights are no good")


def prediction_of(task: Task, given: Input, output: Any) -> Row:
    """The columns that a row's prediction adds to it.

    Args:
        task: The task.
        given: What was put to the model.
        output: What `outputs_of` gives for it.
    """
    if task.kind == "regression":
        return {"prediction": float(output.reshape(()))}
    if task.kind == "text":
        return {"perplexity": measure_tokens(output[None])["perplexity"]}
    if task.kind == "preference":
        rewards = dict(zip(task.choices, map(float, output), strict=True))
        return {"prediction": max(rewards, key=rewards.__getitem__), "rewards": rewards}
    names = list(task.labels) or _choices(given)
    chosen = names[int(output.argmax())]
    # of rows with fewer choices than others, the outputs are filled up
    probabilities = zip(map(str, names), output, strict=False)
    return {"prediction": chosen, "probabilities": {name: round(float(value), 6) for name, value in probabilities}}


def _choices(given: Input) -> list[Any]:
    """The choices of a row that lists its own."""
    if isinstance(given, Prompted):
        return list(given.answers)
    return [texts[-1] for texts in given] if isinstance(given, tuple) else []
