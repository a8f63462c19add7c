"""Methods that are configs of PEFT."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from ttlora.adapters.weights import read_weights
from ttlora.errors import UserError, one_line
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.methods.method import Method, in_float32
from ttlora.finetune.methods.targets import find_targets, with_poolers
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.tuners.targets import require_matches, require_modules
from ttlora.tuners.tt_lora import TTLoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Fields of a config that follow from the model, the task and the recipe's own keys.
NOT_SETTINGS = {field.name for field in fields(PeftConfig)} | {"target_modules", "modules_to_save"}


@dataclass(frozen=True)
class PeftMethod(Method):
    """A method that is a PEFT config; head and adapter are saved in PEFT's form.

    Its `defaults` for ``settings`` are those fields of the config for which ttlora has another default than PEFT.

    Attributes:
        config: The config's class.
        keys: The recipe's keys that are fields of the config, and the names of these.
    """

    config: type[PeftConfig]
    keys: Mapping[str, str]

    files: ClassVar[Mapping[str, str]] = {CONFIG: CONFIG, WEIGHTS: WEIGHTS}
    trains_base: ClassVar[bool] = False

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with the method's defaults for keys and settings that are not set.

        Raises:
            UserError: The recipe sets a key that the method does not read, or something that is no setting.
        """
        completed = super().complete(recipe)
        settings = {**self.defaults["settings"], **(completed.settings or {})}  # type: ignore[dict-item]
        own_keys = {field: key for key, field in self.keys.items()} | {"target_modules": "targets"}
        known = {field.name for field in fields(self.config) if field.init} - NOT_SETTINGS - own_keys.keys()
        for name in settings:
            if name in own_keys and own_keys[name] in self.defaults:
                raise UserError(f"`settings` names {name}, which has a key of its own: use `{own_keys[name]}`")
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise UserError(
                    f"`settings` names {name!r}, which is no setting of method {recipe.method}: {hint}"
                    f"there are {', '.join(sorted(known))}"
                )
        if isinstance(completed.r, list) and self.config is not TTLoraConfig:
            raise UserError(f"`r` is {completed.r}: method {recipe.method} takes one rank")
        return replace(completed, settings=settings or None)

    def adapt(self, base: Base, recipe: Recipe) -> Base:
        """As of every method; a pooler that moves by a train is no part of the head."""
        return super().adapt(base.without_poolers() if recipe.head == "train" else base, recipe)

    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """Put the adapter into the targets; PEFT makes the copy of the head that trains."""
        try:
            config = self._make_config(base, recipe)
            # "auto" shapes become patterns of their own when the adapter is made
            patterns = _patterns(config)
            model = get_peft_model(base.model, config)
            _require_used(patterns, model)
            return in_float32(model)
        except UserError:
            raise
        except Exception as error:  # values of a wrong type, and models of a wrong kind, make PEFT stumble in any way
            hint = "; name them with `targets`" if "target_modules" in str(error) and recipe.targets is None else ""
            raise UserError(
                f"method {recipe.method} does not fit model {recipe.model}: {one_line(error)}{hint}"
            ) from None

    def save(self, model: Any, folder: Path) -> None:
        """Save in PEFT's form."""
        # the embeddings never train; without False, PEFT asks the hub whether they have been resized
        model.save_pretrained(folder, save_embedding_layers=False)

    def load(self, recipe: Recipe, task: Task, folder: Path, base: Base | None = None) -> Base:
        """Load from PEFT's form."""
        base = self._load_untrained(recipe, task, folder, base)
        wanted = get_peft_model_state_dict(base.model, save_embedding_layers=False)
        set_peft_model_state_dict(base.model, read_weights(folder / WEIGHTS, recipe.model, wanted))
        return base

    def _make_config(self, base: Base, recipe: Recipe) -> Any:
        values = {field: getattr(recipe, key) for key, field in self.keys.items()}
        if self.config is TTLoraConfig and isinstance(recipe.shape, dict):
            values["shape_pattern"] = values.pop("shape")
        config: Any = self.config(**values, **(recipe.settings or {}))  # type: ignore[arg-type]
        if "targets" in self.defaults:
            config.target_modules = find_targets(base, recipe.targets, config)
            if recipe.head == "train":
                config.target_modules = with_poolers(config.target_modules, base.plain)
        config.task_type = base.task_type
        _require_excluded(base, getattr(config, "exclude_modules", None))
        # of a classifier PEFT adds these two itself
        config.modules_to_save = [module for module in base.head if module not in ("classifier", "score")] or None
        return config

    def _load_untrained(self, recipe: Recipe, task: Task, folder: Path, base: Base | None) -> Base:
        """A fresh base model with the adapter of a folder, which does not have its weights yet."""
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} holds no {CONFIG}: it is no whole adapter folder")
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / CONFIG} is damaged: {one_line(error)}") from None
        config.inference_mode = False
        base = base or load_base(recipe.model, task, form=self.form(recipe))
        if recipe.head == "train":
            base = base.without_poolers()
        try:
            return replace(base, model=in_float32(get_peft_model(base.model, config)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder} does not fit model {recipe.model}: {one_line(error)}") from None


def _require_excluded(base: Base, excluded: Any) -> None:
    """Refuse `exclude_modules` that match no module.

    Raises:
        ValueError: The regular expression, or a name of a list, fits no module.
    """
    if isinstance(excluded, str):
        if not any(re.fullmatch(excluded, path) for path, _ in base.model.named_modules()):
            raise ValueError(f"exclude_modules is {excluded!r}, a regular expression that fits no module")
    elif excluded:
        require_modules(base.model, excluded, base.head)


def _patterns(config: PeftConfig) -> dict[str, list[str]]:
    """The module names of each ``*_pattern`` field of a config, by the field's name without ``_pattern``."""
    found = {field.name: getattr(config, field.name) for field in fields(config) if field.name.endswith("_pattern")}
    return {name.removesuffix("_pattern"): [*names] for name, names in found.items() if isinstance(names, dict)}


def _require_used(patterns: Mapping[str, list[str]], model: Any) -> None:
    """Refuse patterns that match no adapted module.

    Raises:
        ValueError: A pattern matches none.
    """
    tuner = model.base_model
    adapted = [*getattr(tuner, "targeted_module_names", ()), *getattr(tuner, "targeted_parameter_names", ())]
    for what, names in patterns.items():
        require_matches(what, names, adapted)
