"""A comparison as its YAML file describes it: models, tasks, methods and seeds, and what all its runs share."""

import importlib.resources
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from ttlora.errors import UserError
from ttlora.experiments.strict_yaml import read_mapping
from ttlora.experiments.values import fits, short, wanted
from ttlora.finetune.recipe import Recipe

# what a comparison decides for each of its runs
DECIDED = ("model", "task", "method", "seed", "output", "resume", "threads")
SHARED = tuple(item.name for item in fields(Recipe) if item.name not in DECIDED)
HINTS = typing.get_type_hints(Recipe)
NUMBERS = tuple(key for key, hint in HINTS.items() if fits(0.5, hint) and hint is not Any)
INSTEAD = {
    "output": "give the comparison's folder as --output",
    "resume": "a comparison always goes on where it was",
}


@dataclass(frozen=True)
class Entry:
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
    models: tuple[Entry, ...]
    tasks: tuple[Entry, ...]
    methods: tuple[Entry, ...]
    seeds: tuple[int, ...]
    shared: Mapping[str, Any]
    threads: int | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a comparison.

        Raises:
            UserError: The file is none; the message names the key and its place.
        """
        content = read_mapping(path)
        _require_known(content, ["models", "tasks", "methods", "seeds", "threads", *SHARED], str(path))
        threads = content.get("threads")
        if threads is not None and not (fits(threads, int) and threads >= 1):
            raise UserError(f"{path}: threads is {threads!r}, and has to be a whole number from 1 on")
        return cls(
            path,
            _entries("model", content, path),
            _entries("task", content, path),
            _entries("method", content, path),
            _seeds(content.get("seeds", [0]), str(path)),
            _recipe_keys(content, str(path)),
            threads,
        )


def find_config(config: str) -> Path:
    """The YAML file of that name: a file, or else one of the recipes that are shipped.

    Raises:
        UserError: There is neither.
    """
    path = Path(config).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if config not in shipped:
        close = get_close_matches(config, shipped, n=1)
        hint = f"did you mean {close[0]}?" if close else f"name a YAML file, or one of {', '.join(shipped)}"
        raise UserError(f"--config {config} is no file, and no recipe that is shipped: {hint}")
    return shipped[config]


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(importlib.resources.files("ttlora"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _entries(kind: Literal["model", "task", "method"], content: Mapping[str, Any], path: Path) -> tuple[Entry, ...]:
    """The entries of a kind, each with a label of its own.

    Where an entry has none, it is called by its name and by the keys in which the entries of that name differ.

    Raises:
        UserError: There is none, or two have one label.
    """
    values = content.get(f"{kind}s")
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: {kind}s is {_given(content, f'{kind}s')}, and has to be a list of at least one")
    entries = [_entry(kind, value, f"{path}, {kind}s entry {number}") for number, value in enumerate(values, start=1)]
    labelled: dict[str, Entry] = {}
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


def _entry(kind: str, value: Any, place: str) -> Entry:
    keys = {kind: value} if isinstance(value, str) else value
    if not isinstance(keys, dict):
        raise UserError(f"{place} is {value!r}, and has to be a name, or keys with {kind} among them")
    _require_known(keys, [kind, "label", *(["seeds"] if kind == "method" else []), *SHARED], place)
    for name in (kind, "label"):
        text = keys.get(name, "" if name == kind else "none")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{place}: {name} is {_given(keys, name)}, and has to be text")
    seeds = _seeds(keys["seeds"], place) if "seeds" in keys else None
    return Entry(keys[kind], keys.get("label", ""), place, _recipe_keys(keys, place), seeds)


def _seeds(seeds: Any, place: str) -> tuple[int, ...]:
    if not fits(seeds, list[int]) or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{place}: seeds is {seeds!r}, and has to be a list of different whole numbers, as [0, 1, 2]")
    for seed in seeds:
        _check_recipe(place, seed=seed)
    return tuple(seeds)


def _recipe_keys(content: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The recipe keys among others, if each value is of the type and in the range that a recipe wants."""
    keys = {key: value for key, value in content.items() if key in SHARED}
    for key, value in keys.items():
        if not fits(value, HINTS[key]):
            if value is None:
                raise UserError(f"{place}: {key} has no value: give one or leave it out")
            raise UserError(f"{place}: {key} is {value!r}, and has to be {wanted(HINTS[key])}")
    _check_recipe(place, **keys)
    # 16 and 16.0 are the same recipe
    return {key: float(value) if isinstance(value, int) and key in NUMBERS else value for key, value in keys.items()}


def _check_recipe(place: str, **keys: Any) -> None:
    try:
        Recipe(**{"model": "model", "task": "task", "output": "output", **keys})
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _require_known(keys: Iterable[Any], known: Sequence[str], place: str) -> None:
    for key in keys:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = INSTEAD.get(key) or (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
            raise UserError(f"{place}: unknown key {key!r}: {hint}")


def _given(keys: Mapping[str, Any], name: str) -> str:
    return repr(keys[name]) if name in keys else "missing"
