"""The base model and the rows that several runs share, read once for all of them."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import Split, load_data
from ttlora.finetune.methods import Method, in_head
from ttlora.finetune.objectives import Objective, Rows, objective_of
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task


@dataclass(frozen=True)
class Encoded:
    """A task's rows as token ids.

    Attributes:
        training: Rows to train on.
        validation: Rows that are measured after every epoch.
        cut: How many of each were too long.
    """

    training: Rows
    validation: Rows
    cut: tuple[int, int]


@dataclass(frozen=True)
class TaskData:
    """A task with its rows.

    Attributes:
        task: The task, its labels known.
        training: Rows to train on.
        validation: Rows that decide which weights are kept.
        encoded: Both as token ids; None: each run makes its own.
    """

    task: Task
    training: Split
    validation: Split
    encoded: Encoded | None = None

    @classmethod
    def read(cls, recipe: Recipe) -> "TaskData":
        """Read the rows.

        Raises:
            UserError: They are not there, or something in them cannot be used.
        """
        return cls(*load_data(recipe))

    def with_tokens(self, recipe: Recipe, method: Method) -> "TaskData":
        """The rows with their token ids, from a model without weights.

        Raises:
            UserError: The model is not there, or the recipe does not fit it.
        """
        base = method.adapt(load_base(recipe.model, self.task, on_meta=True), recipe)
        return replace(self, encoded=self.encode(objective_of(self.task, base, recipe)))

    def encode(self, objective: Objective) -> Encoded:
        """The rows as token ids, as an objective puts them to its model.

        Raises:
            UserError: The model can do nothing with a row.
        """
        rows, cut = objective.encode_for_training(self.training)
        validation_rows, validation_cut = objective.encode(self.validation)
        return Encoded(rows, validation_rows, (cut, validation_cut))


@dataclass(frozen=True)
class Prepared:
    """A base model and a task's data, ready for runs that differ in method and settings alone.

    Attributes:
        data: The task with its rows.
        base: The base model, which no run changes.
        random_state: State of PyTorch's random numbers after the model was loaded, where every run begins.
    """

    data: TaskData
    base: Base
    random_state: Tensor

    @classmethod
    def load(cls, recipe: Recipe, method: Method, data: TaskData) -> "Prepared":
        """Load the model.

        Raises:
            UserError: It is not there, or does not fit the task.
        """
        base = load_base(recipe.model, data.task, recipe.seed, method.base_dtype)
        return cls(data, base, torch.get_rng_state())

    def copy_base(self, whole: bool) -> Base:
        """The base model for one run: modules and head of its own, and the weights too if `whole`, else shared ones."""
        named = self.base.model.named_parameters(remove_duplicate=False)
        shared = [] if whole else [weight for name, weight in named if not in_head(name, self.base.head)]
        model = copy.deepcopy(self.base.model, {id(weight): weight for weight in shared})
        return replace(self.base, model=model)

    def adapt(self, method: Method, recipe: Recipe) -> Base:
        """A copy with what trains in it; it shares the weights that do not train."""
        shared = {id(weight) for weight in self.base.model.parameters()}
        for whole in (False, True):
            torch.set_rng_state(self.random_state)
            base = method.adapt(self.copy_base(whole), recipe)
            if not any(weight.requires_grad and id(weight) in shared for weight in base.model.parameters()):
                break
        return base
