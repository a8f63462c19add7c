"""The runs of a comparison: every method on every task of every model with every seed, each with its recipe."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ttlora.errors import UserError
from ttlora.experiments.comparison import Comparison, Member
from ttlora.experiments.keys import plain
from ttlora.experiments.run import Likeness, Run
from ttlora.finetune.columns import asks_for_columns, usual_columns
from ttlora.finetune.methods import OPEN_KEYS, Method, find_method
from ttlora.finetune.methods.peft_method import PeftMethod
from ttlora.finetune.named_tasks import find_task
from ttlora.finetune.recipe import Recipe, is_on_hub
from ttlora.tuners.bottleneck import BottleneckConfig

MOST_RUNS = 100_000
LONGEST_PART = 48


@dataclass(frozen=True)
class ComparedRun(Run):
    """A run of a comparison. Its name stays the same as long as its recipe does, and changes with it.

    Attributes:
        label: The method's label.
        model: The model's label.
        task: The task's label.
        columns_by_name: Whether the names of the columns have told what these mean.
    """

    model: str
    task: str
    columns_by_name: bool = False

    @property
    def method(self) -> str:
        """The method's label."""
        return self.label

    @property
    def title(self) -> str:
        """The labels and the seed."""
        return f"{self.model} {self.task} {self.label} seed {self.recipe.seed}"

    @property
    def likeness(self) -> Likeness:
        """The labels of model, task and method."""
        return self.model, self.task, self.label


def plan_runs(comparison: Comparison, directory: Path) -> list[ComparedRun]:
    """The runs of a comparison, in the order in which they are done: all that have the first seed, then the others.

    Args:
        comparison: What is compared.
        directory: Takes a folder for each run.

    Raises:
        UserError: A method or a task is not known, keys do not go together, or two runs are the same.
    """
    runs: dict[str, ComparedRun] = {}
    columns = _Columns()
    for model, task, method, seed in _combinations(comparison):
        run = _plan(comparison, model, task, method, seed, directory, columns)
        if other := runs.get(run.name):
            raise UserError(f"{comparison.path}: {other.title} and {run.title} are the same run: leave one of them out")
        runs[run.name] = run
    return list(runs.values())


def require_inputs(path: Path, runs: Sequence[ComparedRun]) -> None:
    """Make sure that models and data in local folders are there, since every run would fail without them.

    Args:
        path: The YAML file that names them.
        runs: What is to be done.

    Raises:
        UserError: One is not.
    """
    for run in runs:
        recipe = run.recipe
        places = [("train", place) for place in recipe.places("train")]
        if recipe.validation_share is None:
            places += [("validation", place) for place in recipe.places("validation")]
        if recipe.data is not None:
            places.append(("data", os.path.join(recipe.data, find_task(recipe).folder)))
        if recipe.model.startswith(("/", ".", "~")):
            places.append(("model", os.path.expanduser(recipe.model)))
        for key, place in places:
            if not is_on_hub(place) and not os.path.exists(place):
                raise UserError(f"{path}: {key} {place} is not there, of {run.title}; nothing was begun")


def _combinations(comparison: Comparison) -> Iterator[tuple[Member, Member, Member, int]]:
    seeds = [method.seeds or comparison.seeds for method in comparison.methods]
    count = len(comparison.models) * len(comparison.tasks) * sum(map(len, seeds))
    if count > MOST_RUNS:
        raise UserError(f"{comparison.path} asks for {count:,} runs: {MOST_RUNS:,} are the most")
    for number in range(max(map(len, seeds))):
        for model in comparison.models:
            for task in comparison.tasks:
                for method, its_seeds in zip(comparison.methods, seeds, strict=True):
                    if number < len(its_seeds):
                        yield model, task, method, its_seeds[number]


class _Columns:
    """The columns of training rows that the runs of a comparison share, each file read once."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}

    def told_to(self, recipe: Recipe) -> Recipe:
        """The recipe with the columns that their names tell, where its rows are there."""
        places = recipe.places("train")
        if not asks_for_columns(recipe) or not all(is_on_hub(place) or os.path.exists(place) for place in places):
            return recipe
        if places[0] not in self.known:
            self.known[places[0]] = usual_columns(recipe)
        return replace(recipe, **self.known[places[0]])


def _plan(
    comparison: Comparison,
    model: Member,
    task: Member,
    method: Member,
    seed: int,
    directory: Path,
    columns: _Columns,
) -> ComparedRun:
    try:
        way = find_method(method.name)
    except UserError as error:
        raise UserError(f"{method.place}: {error}") from None
    inherited = {**comparison.shared, **model.keys, **task.keys}
    keys = {key: value for key, value in inherited.items() if _is_for(way, key)} | dict(method.keys)
    try:
        recipe = Recipe(model=model.name, task=task.name, method=method.name, seed=seed, output="-", **keys)
        asked, recipe = recipe, columns.told_to(recipe)
        find_task(recipe)
        is_told = recipe != asked
        recipe = way.complete(recipe)
    except UserError as error:
        place = task.place if str(error).startswith("no task") else comparison.path
        raise UserError(f"{place}: {method.label} on {task.label}: {plain(error)}") from None
    name = _name(recipe)
    recipe = replace(recipe, output=str((directory / name).absolute()))
    return ComparedRun(name, recipe, method.label, model.label, task.label, is_told)


def _is_for(way: Method, key: str) -> bool:
    """Whether a method reads a key that all methods of a comparison share."""
    if key == "targets" and isinstance(way, PeftMethod) and way.config is BottleneckConfig:
        return False  # bottlenecks stand behind other modules than those whose weights are updated
    return key not in OPEN_KEYS or key in way.defaults


def _name(recipe: Recipe) -> str:
    """Model, task, method, rank and seed, and a fingerprint of the whole recipe."""
    rank = f"-r{recipe.r}" if isinstance(recipe.r, int) else ""
    parts = [Path(recipe.model).name, recipe.task, recipe.method + rank, f"seed{recipe.seed}", _fingerprint(recipe)]
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part)[:LONGEST_PART] for part in parts)


def _fingerprint(recipe: Recipe) -> str:
    """A few digits that tell a recipe from another; keys at their defaults, such as those yet to come, do not count."""
    defaults: dict[str, Any] = {item.name: item.default for item in fields(Recipe)}
    content = {key: value for key, value in recipe.as_dict().items() if key != "output" and value != defaults[key]}
    return hashlib.sha256(yaml.safe_dump(content).encode()).hexdigest()[:8]
