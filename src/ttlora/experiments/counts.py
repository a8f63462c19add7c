"""How many parameters a method trains, counted on models without weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ttlora.errors import UserError
from ttlora.experiments.printed import PUBLISHED, Printed, find_printed
from ttlora.experiments.runs import ComparedRun
from ttlora.finetune.base import Base, head_of
from ttlora.finetune.methods import count_parameters, find_method
from ttlora.finetune.named_tasks import find_task
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.models.skeleton import read_config, without_weights

LORA_R = 8


@dataclass(frozen=True)
class Count:
    """What a method trains in a model.

    Attributes:
        model: The model's label.
        method: The method's label.
        r: Its rank, where it has one for all matrices.
        task: The task's label, which decides the head's size.
        adapter: Trained parameters outside the head.
        head: Trained parameters of the head.
        full: All parameters of the model, head included.
        lora: Trained parameters, outside the head, of LoRA r=8 on the default targets.
        printed: What the paper prints for this method and model, or None.
    """

    model: str
    method: str
    r: int | None
    task: str
    adapter: int
    head: int
    full: int
    lora: int
    printed: Printed | None

    @property
    def as_printed(self) -> int:
        """What the paper counts: the adapter, or the whole model where that trains."""
        return self.full if self.adapter + self.head == self.full else self.adapter


@dataclass(frozen=True)
class _Ending:
    """The number of outputs that a task needs, two where only the data tell it, and whether it needs a causal model."""

    outputs: int
    is_causal: bool

    @classmethod
    def of(cls, task: Task) -> "_Ending":
        outputs = 1 if task.kind in ("regression", "choice") else len(task.labels or task.answers) or 2
        return cls(outputs, task.is_causal)


def count_all(runs: Sequence[ComparedRun]) -> list[Count]:
    """The counts of every method on every model, on the first task that the method is run on.

    Each is counted on the model itself, on the meta device, adapted as a run would adapt it.

    Raises:
        UserError: A method does not fit a model.
    """
    first: dict[tuple[str, str], ComparedRun] = {}
    for run in runs:
        first.setdefault((run.model, run.method), run)
    return [_count(run) for run in first.values()]


def skeleton_of(recipe: Recipe) -> Base:
    """A recipe's model as `ttlora.finetune.base.load_base` gives it, without weights and tokenizer.

    Raises:
        UserError: There is no such model, or it cannot do the task.
    """
    return _skeleton(recipe.model, _ending(recipe))


def count_trained(base: Base, recipe: Recipe) -> tuple[int, int]:
    """How many parameters a recipe trains outside the head and in it.

    Args:
        base: A model, which is adapted.
        recipe: A recipe with its method's defaults.

    Raises:
        UserError: The method does not fit the model.
    """
    adapted = find_method(recipe.method).adapt(base, recipe)
    return count_parameters(adapted.model, adapted.head)


def _count(run: ComparedRun) -> Count:
    recipe = run.recipe
    ending = _ending(recipe)
    base = _skeleton(recipe.model, ending)
    full = sum(weight.numel() for weight in base.model.parameters())
    try:
        adapter, head = count_trained(base, recipe)
    except UserError as error:
        raise UserError(f"{run.method} on {run.model}: {error}") from None
    printed = find_printed(recipe.model, recipe.method, recipe.r)
    lora = _count_lora(recipe.model, ending)
    r = recipe.r if isinstance(recipe.r, int) else None
    return Count(run.model, run.method, r, run.task, adapter, head, full, lora, printed)


def _ending(recipe: Recipe) -> _Ending:
    return _Ending.of(replace(find_task(recipe), scoring=recipe.scoring))


@cache
def _count_lora(model: str, ending: _Ending) -> int:
    recipe = Recipe(model=model, task="-", output="-", method="lora", r=LORA_R)
    return count_trained(_skeleton(model, ending), find_method("lora").complete(recipe))[0]


@cache
def _config(name: str) -> Any:
    return read_config(PUBLISHED.get(name, name))


def _skeleton(name: str, ending: _Ending) -> Base:
    """A model as `ttlora.finetune.base.load_base` gives it, without weights and tokenizer."""
    config = copy.deepcopy(_config(name))
    config.num_labels = ending.outputs
    auto = AutoModelForCausalLM if ending.is_causal else AutoModelForSequenceClassification
    try:
        model = without_weights(auto, config)
    except ValueError:
        kind = "causal model" if ending.is_causal else "model with a head"
        raise UserError(f"model {name} is a {config.model_type}, of which there is no {kind}") from None
    return Base(name, model, None, head_of(model, ending.is_causal))
