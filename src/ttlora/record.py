"""The result record: the measurements of one run. A run writes it; experiments and reports read it."""

import json
import typing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ttlora.values import complaint, from_fields, is_number, shown
from ttlora.whole_files import write_json

SCHEMA = 1
# no run counts further
LARGEST_COUNT = 2**63


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run's results, as they stand in ``result.json``.

    Attributes:
        schema: Version of this record's form.
        method: Name of the method, such as "tt-lora".
        model: Base model: a folder or a hub name.
        task: Name of the task, such as "glue/sst2".
        seed: Seed of the run.
        adapter_parameters: Trained parameters outside the task's head.
        head_parameters: Trained parameters of the task's head.
        trainable_parameters: All trained parameters.
        adapter_bytes: Size of the saved weights on disk, head included.
        metrics: Metric name to value, measured with the saved adapter in a freshly loaded model.
        primary_metric: The key of `metrics` by which the task is judged.
        validation_loss: Measured together with `metrics`.
        best_epoch: The epoch whose weights were kept, from 1.
        epochs: Epochs that were trained.
        train_seconds: Duration of the training, with its validation and checkpoints, over all resumed parts.
        seconds_per_step: Mean duration of an optimisation step alone.
        peak_memory_bytes: Most memory in use: on the accelerator if there is one, or else of the whole process.
        recipe: The recipe with every default written out.
        versions: Versions of Python and the libraries.

    Raises:
        ValueError: A value is of the wrong type or not finite.
    """

    schema: int = SCHEMA
    method: str
    model: str
    task: str
    seed: int
    adapter_parameters: int
    head_parameters: int
    trainable_parameters: int
    adapter_bytes: int
    metrics: dict[str, float]
    primary_metric: str
    validation_loss: float
    best_epoch: int
    epochs: int
    train_seconds: float
    seconds_per_step: float
    peak_memory_bytes: int
    recipe: dict[str, Any]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if problem := complaint(name, value, hint):
                raise ValueError(problem)
            if isinstance(value, int) and abs(value) >= LARGEST_COUNT:
                raise ValueError(f"{name} is {shown(value)}, which is more than any run counts")
        measured = {f"metrics of {name}": value for name, value in self.metrics.items()}
        measured |= {name: getattr(self, name) for name in ("validation_loss", "train_seconds", "seconds_per_step")}
        for name, value in measured.items():
            if not is_number(value):
                raise ValueError(f"{name} is {shown(value)}, which is no finite number")
        if self.primary_metric not in self.metrics:
            raise ValueError(f"primary_metric {self.primary_metric!r} is not among metrics ({', '.join(self.metrics)})")

    @property
    def planned_epochs(self) -> int:
        """The epochs that the run was to train at most."""
        if self._counts_steps:
            return self.epochs
        planned = self.recipe.get("epochs")
        return max(planned, self.epochs) if isinstance(planned, int) else self.epochs

    @property
    def stopped_early(self) -> bool:
        """Whether the run was stopped before its epochs or its patience had run out."""
        if self._counts_steps:  # and not in epochs, after which schedulers stop a run
            return False
        patience = self.recipe.get("patience")
        waited = self.epochs - self.best_epoch
        return self.epochs < self.planned_epochs and not (isinstance(patience, int) and waited >= patience)

    @property
    def _counts_steps(self) -> bool:
        return any(self.recipe.get(name) is not None for name in ("max_steps", "evaluate_every"))

    def write(self, path: Path) -> None:
        """Write the record as JSON; the file appears whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file holds no record of this schema; the message names the file and what is wrong.
        """
        try:
            content = json.loads(path.read_text("utf-8"), parse_constant=_finite, parse_float=_finite)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no result record: line {error.lineno} is no JSON") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no result record: {error}") from None
        if isinstance(content, dict) and content.get("schema") != SCHEMA:
            raise ValueError(
                f"{path} is no result record of this version: its schema is {content.get('schema')!r}, not {SCHEMA}"
            )
        try:
            return from_fields(cls, content)
        except ValueError as error:
            raise ValueError(f"{path} is no result record: {error}") from None


def _finite(text: str) -> float:
    """A finite number from JSON, in which Python also reads NaN and Infinity."""
    value = float(text)
    if not is_number(value):
        raise ValueError(f"it holds {text}, which is no finite number")
    return value
