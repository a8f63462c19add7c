"""A search as its YAML file describes it: what is searched, how, and the recipe keys that all its trials share."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from ttlora.errors import UserError
from ttlora.experiments.keys import plain, recipe_keys, require_known, require_type
from ttlora.experiments.search.domains import SEARCHABLE, Domain, read_domain
from ttlora.experiments.search.presets import PRESETS, Preset, auto_space
from ttlora.finetune.columns import asks_for_columns, told_columns, usual_columns
from ttlora.finetune.methods import find_method
from ttlora.finetune.named_tasks import find_task
from ttlora.finetune.recipe import Recipe
from ttlora.strict_yaml import read_mapping
from ttlora.text_forms import parse_bytes

MOST_TRIALS = 10_000
# what a search decides for each of its trials
DECIDED = ("output", "resume", "threads", "max_steps", "evaluate_every", "save_every", "push_to_hub")
OWN = (
    "sampler",
    "scheduler",
    "trials",
    "max_adapter_size",
    "target_score",
    "cpus_per_trial",
    "gpus_per_trial",
)
# `scheduler` is the search's here, and not that of the learning rate
SHARED = tuple(item.name for item in fields(Recipe) if item.name not in (*DECIDED, *OWN))
INSTEAD = {
    "output": "give the search's folder as `output`",
    "resume": "a search always goes on where it was",
    "threads": "cpus_per_trial says how many threads a trial has",
    **dict.fromkeys(("max_steps", "evaluate_every", "save_every"), "a search counts in epochs"),
    "push_to_hub": "upload the adapter of a trial that you have chosen",
    "models": "a search has one model",
    "tasks": "a search has one task",
    "methods": "a search has one method",
    "seeds": "a search has one seed",
}

Domains = dict[str, Domain | Literal["auto"]]


@dataclass(frozen=True)
class SearchPlan:
    """What is searched, and how.

    Attributes:
        path: The YAML file.
        asked: What the file and the flags say, as they say it.
        shared: Recipe keys of all trials; model, task and method are among them.
        domains: What each searched key can be; "auto": shapes that are generated.
        preset: Where the shapes come from the paper, what they are for.
        notes: What of a named space is not searched.
        sampler: Which trials there are: random ones, all of a grid, or those that Optuna's TPE proposes.
        scheduler: What stops trials that are behind the others.
        trials: Most trials.
        max_adapter_size: Most bytes of an adapter in 16 bit, the head apart.
        target_score: The score for which the smallest adapter is sought.
        cpus_per_trial: CPU threads of a trial.
        gpus_per_trial: GPUs of a trial, or a share of one; None: a quarter where there are any.
    """

    path: Path
    asked: Mapping[str, Any]
    shared: Mapping[str, Any]
    domains: Mapping[str, Domain | Literal["auto"]]
    preset: Preset | None = None
    notes: tuple[str, ...] = ()
    sampler: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["hyperband", "asha", "none"] = "hyperband"
    trials: int = 24
    max_adapter_size: int | None = None
    target_score: float | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a search.

        Raises:
            UserError: The file describes no search; the message names the key and its place.
        """
        content = read_mapping(path)
        place = str(path)
        require_known(content, ["space", *OWN, *SHARED], place, INSTEAD)
        shared = recipe_keys(content, SHARED, place)
        for name in ("model", "task"):
            if name not in shared:
                raise UserError(f"{place}: {name} is missing, and has to be text")
        shared.setdefault("method", Recipe.method)
        try:
            find_method(shared["method"])
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        domains, preset, notes = _read_space(content.get("space", "auto"), shared, place)
        if preset is not None:
            # its shapes are for their matrices
            shared.setdefault("targets", list(preset.targets))
        own = {name: _read_own(name, content[name], place) for name in OWN if name in content}
        plan = cls(path, content, shared, domains, preset, notes, **own)
        try:
            # the first of all values: whether the keys go together does not depend on which
            recipe = plan.recipe({key: "auto" if domain == "auto" else domain.at(0) for key, domain in domains.items()})
            if asks_for_columns(recipe) and (columns := usual_columns(recipe)):
                recipe = replace(recipe, **columns)
                plan = replace(plan, shared=shared | columns, notes=(*notes, told_columns(recipe)))
            find_task(recipe)
        except UserError as error:
            raise UserError(f"{place}: {plain(error)}") from None
        return plan

    def override(
        self,
        trials: int | None = None,
        max_adapter_size: str | None = None,
        target_score: float | None = None,
    ) -> Self:
        """The plan with what was given on the command line.

        Raises:
            UserError: A value is out of range; the message names it.
        """
        flags = {"trials": trials, "max_adapter_size": max_adapter_size, "target_score": target_score}
        given = {name: value for name, value in flags.items() if value is not None}
        own = {name: _checked(name, value, f"`{name}`") for name, value in given.items()}
        return replace(self, asked={**self.asked, **given}, **own)

    @property
    def seed(self) -> int:
        """Seed of the sampling, and of every trial."""
        return int(self.shared.get("seed", Recipe.seed))

    def recipe(self, settings: Mapping[str, Any], output: str = "-") -> Recipe:
        """The recipe of a trial, with the method's defaults.

        Args:
            settings: The searched keys.
            output: The trial's folder.

        Raises:
            UserError: A key means nothing to the method.
        """
        recipe = Recipe(**{**self.shared, **settings, "output": output})
        return find_method(recipe.method).complete(recipe)


# as the file and the flags have them
HINTS = {**typing.get_type_hints(SearchPlan), "max_adapter_size": int | str, "target_score": float}
LEAST = {"trials": 1, "cpus_per_trial": 1, "gpus_per_trial": 0}


def _read_own(name: str, value: Any, place: str) -> Any:
    require_type(name, value, HINTS[name], place)
    return _checked(name, value, f"{place}: {name}")


def _checked(name: str, value: Any, shown: str) -> Any:
    """The value of one of the search's own keys, after checking its range."""
    if name == "max_adapter_size":
        return parse_bytes(shown, str(value))
    if name in LEAST and not LEAST[name] <= value < math.inf:
        raise UserError(f"{shown} is {value}, and has to be at least {LEAST[name]}")
    if name == "trials" and value > MOST_TRIALS:
        raise UserError(f"{shown} is {value:,}: {MOST_TRIALS:,} are the most")
    if name == "target_score" and not 0 < value <= 1:
        raise UserError(f"{shown} is {value}, and has to be above 0 and at most 1, as 0.8 for 80 percent")
    return value


def _read_space(space: Any, shared: Mapping[str, Any], place: str) -> tuple[Domains, Preset | None, tuple[str, ...]]:
    """What each searched key can be, the preset that was named, and which keys of a named space are fixed."""
    if isinstance(space, dict):
        domains = _read_domains(space, place)
        if both := [key for key in domains if key in shared]:
            raise UserError(f"{place}: {both[0]} is in space and beside it as well: leave one of the two out")
        if domains.get("shape") == "auto":
            _require_trains("shape auto in space", shared, place)
        return domains, None, ()
    if space != "auto" and space not in [*PRESETS]:
        names = ["auto", *PRESETS]
        close = get_close_matches(str(space), names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}, or keys with their values"
        raise UserError(f"{place}: space is {space!r}: {hint}")
    if space in PRESETS:
        _require_trains(f"space {space}", shared, place)
        domains = {**PRESETS[space].domains}
    else:
        domains = auto_space(shared["method"], find_method(shared["method"]))
    fixed = [key for key in domains if key in shared]
    notes = [f"{key} is {shared[key]} in {place}: it is no part of space {space}" for key in fixed]
    domains = {key: domain for key, domain in domains.items() if key not in fixed}
    return domains, PRESETS.get(space) if "shape" in domains else None, tuple(notes)


def _require_trains(what: str, shared: Mapping[str, Any], place: str) -> None:
    if shared["method"] != "tt-lora":
        raise UserError(f"{place}: {what} holds shapes of method tt-lora, and the method is {shared['method']}")


def _read_domains(space: Mapping[str, Any], place: str) -> Domains:
    place = f"{place}: space"
    if "shapes" in space and "shape" not in space:
        space = {"shape" if key == "shapes" else key: value for key, value in space.items()}
    require_known(space, SEARCHABLE, place, {})
    if not space:
        raise UserError(f"{place} is empty: name what is to be searched, such as learning_rate, or write auto")
    # shape and rank first, whatever their order in the file: so they stand in every recipe
    return {
        key: "auto" if key == "shape" and space[key] == "auto" else read_domain(key, space[key], place)
        for key in SEARCHABLE
        if key in space
    }
