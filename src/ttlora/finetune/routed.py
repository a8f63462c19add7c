"""A router's folder, loaded: rows of unknown task are given to the expert that the router chooses, and answered."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttlora.errors import UserError, one_line
from ttlora.finetune.data import Split, load_validation, rows_at
from ttlora.finetune.files import Row
from ttlora.finetune.finished import prediction_of, require_numbers, require_predictable, with_places
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.inputs import Input, input_of
from ttlora.finetune.labels import label_name
from ttlora.finetune.machine import cpu_threads, require_one_process
from ttlora.finetune.metrics import measure_metrics
from ttlora.finetune.mixture import Expert, Mixture, require_fit_together
from ttlora.finetune.router import Router, Sight, columns_read, features_of, texts_of
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import TokenRow
from ttlora.values import from_fields, shown
from ttlora.whole_files import write_json

RECORD, WEIGHTS, EXPERTS = "router.json", "router.safetensors", "experts"
# what makes a run's folder one that can be loaded
_OF_A_RUN = ("recipe.yaml", "result.json")
_OF_AN_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "task.json", "README.md")


@dataclass(frozen=True)
class Found:
    """How well the rows of an expert are found.

    Attributes:
        rows: How many validation rows were looked at.
        found: The share of them that the router gives to this expert, among those that can read the row's columns.
        by_text: The share where it chooses among all experts, by the text alone.
    """

    rows: int
    found: float
    by_text: float


@dataclass(frozen=True)
class RouterRecord:
    """The content of ``router.json``.

    Attributes:
        model: The base model.
        base: Its `fingerprint`.
        experts: Names of the experts, which are folders in ``experts/``, in the order of the router's outputs.
        seed: Seed of the router's training.
        max_length: Most tokens of a row that the router reads.
        found: How well each expert's rows are found.
    """

    model: str
    base: str
    experts: tuple[str, ...]
    seed: int
    max_length: int
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, expert: str) -> Found:
        """How well an expert's rows are found."""
        return from_fields(Found, self.found[expert])

    @classmethod
    def read(cls, folder: Path) -> "RouterRecord":
        """Read a router's folder.

        Raises:
            UserError: It is none, or damaged.
        """
        path = folder / RECORD
        try:
            record = from_fields(cls, json.loads(path.read_text("utf-8")))
            for name in record.experts:
                if not (folder / EXPERTS / name).is_dir() or Path(name).name != name or name == "..":
                    raise ValueError(f"experts names {shown(name)}, which is no folder in {EXPERTS}")
                record.of(name)
            if len(set(record.experts)) != len(record.experts) or len(record.experts) < 2:
                raise ValueError(
                    f"experts is {shown(list(record.experts))}, and has to be two names or more, each once"
                )
            if record.max_length < 1:
                raise ValueError(f"max_length is {record.max_length}")
        except KeyError as error:
            raise UserError(f"{path} is damaged: found has no {error}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {one_line(error)}") from None
        return record


def is_router(folder: str | Path) -> bool:
    """Whether a folder is the output folder of `route`."""
    # unlike Path's, it takes a name that is too long for a path as none
    return os.path.isfile(os.path.join(os.path.expanduser(folder), RECORD))


@dataclass(frozen=True)
class RoutedTask:
    """What the mixture measures on the validation rows of an expert.

    Attributes:
        expert: The expert's name.
        task: Its task.
        found: How well its rows are found.
        metrics: The task's metrics of what the mixture answers.
        told: The same of the expert alone, as its own record has them.
        seconds_a_row: How long a row takes: choice and answer.
    """

    expert: str
    task: str
    found: Found
    metrics: dict[str, float]
    told: dict[str, float]
    seconds_a_row: float


class RoutedExperts:
    """Experts in one model, and the router that chooses among them.

    Attributes:
        mixture: The experts.
        router: The router.
    """

    def __init__(self, mixture: Mixture, router: Router, max_length: int) -> None:
        self.mixture, self.router = mixture, router
        self.sight = sight_of(mixture, max_length)
        self._tasks = [expert.task for expert in mixture.experts]
        self._columns = columns_read(self._tasks)

    @classmethod
    def load(cls, directory: str | Path, model: str | None = None) -> "RoutedExperts":
        """Load a router's folder.

        Args:
            directory: Output folder of `route`.
            model: Where the base model is now; None: where the experts' recipes say.

        Raises:
            UserError: The folder is none, or damaged, or the model is another one.
        """
        require_one_process()
        folder = Path(os.path.expanduser(directory))
        record = RouterRecord.read(folder)
        experts = [Expert.read(folder / EXPERTS / name) for name in record.experts]
        require_fit_together(experts)
        with cpu_threads(experts[0].recipe.threads):
            mixture = Mixture.load(experts, model)
        if mixture.fingerprint != record.base:
            raise UserError(
                f"{folder} is the router of another base: the weights of {mixture.base.name} are not those that it was "
                "trained with"
            )
        router = Router.read(folder / WEIGHTS, len(experts), features_of(mixture.base))
        return cls(mixture, router, record.max_length)

    def choose(self, rows: Sequence[Row], places: Sequence[str]) -> tuple[list[int], list[int]]:
        """The number of each row's expert: among those that can read the row's columns, and among all.

        Raises:
            UserError: No expert can read a row.
        """
        texts = [texts_of(row, self._columns, place) for row, place in zip(rows, places, strict=True)]
        able = torch.tensor([[_can_read(task, row) for task in self._tasks] for row in rows])
        for row, place, any_is in zip(rows, places, able.any(1).tolist(), strict=True):
            if not any_is:
                forms = dict.fromkeys(", ".join(columns_read([task])) for task in self._tasks)
                raise UserError(
                    f"{place}: no expert can read columns {', '.join(map(str, row))}: they take {'; '.join(forms)}"
                )
        states = self.sight.states(texts, places)
        return self.router.choose(states, able).tolist(), self.router.choose(states).tolist()

    def found(self, expert: int, rows: Sequence[Row], places: Sequence[str]) -> Found:
        """How well an expert's rows are found.

        Args:
            expert: The expert's number.
            rows: Rows of its task, without labels.
            places: Where each stands, for messages.
        """
        return found_of(expert, *self.choose(rows, places))

    def predict(self, rows: str | Path | Iterable[Row]) -> list[Row]:
        """The rows with the expert of each, and its prediction.

        Args:
            rows: A file, or rows as dicts; they may be of several tasks.

        Raises:
            UserError: The rows cannot be read, or no expert can read one of them.
        """
        source, placed = with_places(rows)
        numbered = [(f"{source}, {place}", row) for place, row in placed]
        if not numbered:
            raise UserError(f"{source} has no rows")
        places, given = [place for place, _ in numbered], [row for _, row in numbered]
        for place, row in numbered:
            if "expert" in row:
                raise UserError(f"{place}: column 'expert' is there already: rename it")
        with cpu_threads(self.mixture.experts[0].recipe.threads):
            chosen, _ = self.choose(given, places)
            for expert, row, place in zip(chosen, given, places, strict=True):
                require_predictable(self._tasks[expert], row, place)
            inputs, outputs = self.answer(chosen, given, places)
        return [
            {**row, "expert": self.mixture.experts[expert].name, **prediction_of(self._tasks[expert], each, output)}
            for row, expert, each, output in zip(given, chosen, inputs, outputs, strict=True)
        ]

    def evaluate(self) -> list[RoutedTask]:
        """Measure the mixture on all experts' validation rows, which are mixed and do not tell their task.

        Raises:
            UserError: The data are not there any more.
        """
        experts = self.mixture.experts
        splits = [load_validation(expert.recipe, expert.task) for expert in experts]
        rows = [
            without_label(expert.task, row)
            for expert, split in zip(experts, splits, strict=True)
            for row in rows_at(expert.recipe, expert.task, split, is_measured=True)
        ]
        places = [place for split in splits for place in split.places]
        with cpu_threads(experts[0].recipe.threads):
            began = time.perf_counter()
            chosen, by_text = self.choose(rows, places)
            inputs, outputs = self.answer(chosen, rows, places)
            seconds = (time.perf_counter() - began) / len(rows)
        measured, start = [], 0
        for index, (expert, split) in enumerate(zip(experts, splits, strict=True)):
            part = slice(start, start := start + len(split))
            answers = [
                _judged(experts[by].task, expert.task, given, output, label, split)
                for by, given, output, label in zip(
                    chosen[part], inputs[part], outputs[part], split.labels, strict=True
                )
            ]
            measured.append(
                RoutedTask(
                    expert.name,
                    expert.task.name,
                    found_of(index, chosen[part], by_text[part]),
                    measure_metrics(expert.task.metrics, np.array(split.labels), np.array(answers)),
                    {name: expert.record.metrics[name] for name in expert.task.metrics},
                    seconds,
                )
            )
        return measured

    def answer(
        self, chosen: Sequence[int], rows: Sequence[Row], places: Sequence[str]
    ) -> tuple[list[Input], list[np.ndarray]]:
        """What is put to each row's expert, and its outputs.

        Args:
            chosen: The number of each row's expert.
            rows: The rows.
            places: Where each stands, for messages.
        """
        inputs = [
            input_of(self._tasks[expert], row, *place.rsplit(", ", 1))
            for expert, row, place in zip(chosen, rows, places, strict=True)
        ]
        encoded: list[TokenRow] = [{}] * len(rows)
        for expert in set(chosen):
            its = [index for index, by in enumerate(chosen) if by == expert]
            given = self.mixture.encode(expert, [inputs[index] for index in its], [places[index] for index in its])
            for index, row in zip(its, given, strict=True):
                encoded[index] = row
        outputs = [output.numpy() for output in self.mixture.answers(chosen, encoded)]
        require_numbers(outputs, places)
        return inputs, outputs


def sight_of(mixture: Mixture, max_length: int) -> Sight:
    """The base model of a mixture as its router looks through it."""
    return Sight(mixture.base, mixture.padding, max_length, mixture.experts[0].recipe.batch_size)


def found_of(expert: int, chosen: Sequence[int], by_text: Sequence[int]) -> Found:
    """How many of an expert's rows are given to it.

    Args:
        expert: Its number.
        chosen: The expert of each of its rows.
        by_text: The same by the text alone.
    """
    shares = [sum(by == expert for by in choice) / len(choice) for choice in (chosen, by_text)]
    return Found(len(chosen), *shares)


def without_label(task: Task, row: Row) -> Row:
    """A row as somebody asks for its label."""
    return {column: value for column, value in row.items() if column != task.label_column}


def copy_expert(expert: Expert, target: Path) -> None:
    """Copy what makes a run one that can be loaded and measured.

    Args:
        expert: The expert.
        target: A folder that is not there yet.
    """
    copied = RunFolder(target)
    copied.adapter.mkdir(parents=True)
    for names, source, place in (
        (_OF_A_RUN, expert.folder.path, copied.path),
        (_OF_AN_ADAPTER, expert.folder.adapter, copied.adapter),
    ):
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, place / name)


def write_router(
    folder: Path, mixture: Mixture, router: Router, found: Mapping[str, Found], seed: int, max_length: int
) -> None:
    """Write a router and its experts to a folder, ``router.json`` last."""
    for expert in mixture.experts:
        copy_expert(expert, folder / EXPERTS / expert.name)
    router.write(folder / WEIGHTS)
    names = tuple(expert.name for expert in mixture.experts)
    of_each = {name: asdict(part) for name, part in found.items()}
    record = RouterRecord(mixture.base.name, mixture.fingerprint, names, seed, max_length, of_each)
    write_json(folder / RECORD, asdict(record))


def _can_read(task: Task, row: Row) -> bool:
    try:
        input_of(task, row, "", "")
    except UserError:
        return False
    return True


def _judged(by: Task, task: Task, given: Input, output: np.ndarray, label: float, split: Split) -> float:
    """The answer of an expert as one of the task that the row is of.

    What an expert of another task says counts if it is an answer of this task, too: a label of the same name, or a
    number for a number. Anything else is the wrong answer: another class, or the number farthest from the right one.
    """
    is_same_form = by.kind == task.kind and (
        by.kind == "regression" or (by.kind == "choice" and by.texts == task.texts)
    )
    if by is task or is_same_form:
        return float(output[0]) if task.kind == "regression" else int(output.argmax())
    if task.kind == "regression":
        return max(split.labels, key=lambda number: abs(number - label))
    names = [label_name(name) for name in task.labels]
    if by.kind == task.kind == "classification":
        said = label_name(prediction_of(by, given, output)["prediction"])
        if said in names:
            return names.index(said)
    return 1 - int(label) if int(label) < 2 else 0
