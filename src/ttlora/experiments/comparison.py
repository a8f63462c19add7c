"""A comparison as its YAML file describes it: models, tasks, methods and seeds, and what all its runs share."""

import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from ttlora.errors import UserError
from ttlora.experiments.keys import check_recipe, given, recipe_keys, require_known
from ttlora.finetune.recipe import Recipe
from ttlora.strict_yaml import read_mapping
from ttlora.values import complaint, fits, short, shown

# what a comparison decides for each of its runs
DECIDED = ("model", "task", "method", "seed", "output", "resume", "threads", "push_to_hub")
SHARED = tuple(item.name for item in fields(Recipe) if item.name not in DECIDED)
INSTEAD = {
    "output": "give the comparison's folder as `output`",
    "resume": "a comparison always goes on where it was",
    "push_to_hub": "upload the adapter of a run that you have chosen",
}


@dataclass(frozen=True)
class Member:
    """A model, a task or a method of a comparison.

    Attributes:
        name: The model, the task or the method, as a recipe names it.
        label: What it is called in tables.
        place: Where it stands, for messages.
        keys: The recipe keys that it sets; None takes back what was set before it.
        seeds: A method's own seeds; None: the comparison's.
    """

    name: str
    label: str
    place: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        path: The YAML file.
        models: Base models.
        tasks: Tasks.
        methods: Methods, each with its settings; a method may be there several times.
        seeds: Seeds of the methods that have none of their own.
        shared: Recipe keys of all runs. Those of a model, a task and a method go before them, in this order.
        threads: CPU threads of all processes together; None: as many as PyTorch takes.
    """

    path: Path
    models: tuple[Member, ...]
    tasks: tuple[Member, ...]
    methods: tuple[Member, ...]
    seeds: tuple[int, ...]
    shared: Mapping[str, Any]
    threads: int | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a comparison.

        Raises:
            UserError: The file describes no comparison; the message names the key and its place.
        """
        content = read_mapping(path)
        require_known(content, ["models", "tasks", "methods", "seeds", "threads", *SHARED], str(path), INSTEAD)
        threads = recipe_keys(content, ["threads"], str(path)).get("threads")
        return cls(
            path,
            _members("model", content, path),
            _members("task", content, path),
            _members("method", content, path),
            _seeds(content.get("seeds", [0]), str(path)),
            recipe_keys(content, SHARED, str(path)),
            threads,
        )


def find_config(config: str) -> Path:
    """The YAML file that a user names: a file, or else a comparison that comes with the package.

    Raises:
        UserError: There is neither.
    """
    path = Path(os.path.expanduser(config))
    # unlike Path's, it takes a name that is too long for a path as none
    if os.path.isfile(path):
        return path
    if os.path.lexists(path):
        raise UserError(f"`config` {config} is no file")
    shipped = shipped_recipes()
    if config not in shipped:
        close = get_close_matches(config, shipped, n=1)
        hint = f"did you mean {close[0]}?" if close else f"name a YAML file, or one of {', '.join(shipped)}"
        raise UserError(f"`config` {config} is no file, and no recipe that is shipped: {hint}")
    return shipped[config]


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(importlib.resources.files("ttlora"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _members(kind: Literal["model", "task", "method"], content: Mapping[str, Any], path: Path) -> tuple[Member, ...]:
    """The entries of a kind, each with a label of its own.

    Where an entry has none, it is called by its name and by the keys in which the entries of that name differ.

    Raises:
        UserError: The list is empty, or two members have the same label.
    """
    values = content.get(f"{kind}s")
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: {kind}s is {given(content, f'{kind}s')}, and has to be a list of at least one")
    entries = [_member(kind, value, f"{path}, {kind}s entry {number}") for number, value in enumerate(values, start=1)]
    labelled: dict[str, Member] = {}
    for entry in entries:
        label = entry.label
        if not label:
            alike = [other.keys for other in entries if other.name == entry.name]
            differing = [key for key in SHARED if any(keys.get(key) != alike[0].get(key) for keys in alike)]
            parts = [f"{key}={short(entry.keys[key])}" for key in differing if key in entry.keys]
            label = " ".join([Path(entry.name).name if kind == "model" else entry.name, *parts])
        if label in labelled:
            raise UserError(f"{entry.place} is called {label!r}, as is {labelled[label].place}: give one another label")
        labelled[label] = replace(entry, label=label)
    return tuple(labelled.values())


def _member(kind: str, value: Any, place: str) -> Member:
    keys = {kind: value} if isinstance(value, str) else value
    if not isinstance(keys, dict):
        raise UserError(f"{place} is {shown(value)}, and has to be a name, or keys with {kind} among them")
    require_known(keys, [kind, "label", *(["seeds"] if kind == "method" else []), *SHARED], place, INSTEAD)
    for name in (kind, "label"):
        text = keys.get(name, "" if name == kind else "none")
        if problem := name in keys and complaint(name, text, str):
            raise UserError(f"{place}: {problem}")
        if not text.strip():
            raise UserError(f"{place}: {name} is {given(keys, name)}, and has to be text")
    seeds = _seeds(keys["seeds"], place) if "seeds" in keys else None
    return Member(keys[kind], keys.get("label", ""), place, recipe_keys(keys, SHARED, place), seeds)


def _seeds(seeds: Any, place: str) -> tuple[int, ...]:
    if not fits(seeds, list[int]) or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{place}: seeds is {shown(seeds)}, and has to be a list of different whole numbers, as [0, 1, 2]"
        )
    for seed in seeds:
        check_recipe(place, seed=seed)
    return tuple(seeds)
