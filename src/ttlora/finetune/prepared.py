"""What runs on one model and one task have in common: made once, it serves them all."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import Split, load_data
from ttlora.finetune.measure import longest_prompt
from ttlora.finetune.methods import Method, in_head, virtual_tokens
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

    @classmethod
    def of(cls, objective: Objective, training: Split, validation: Split) -> "Encoded":
        """The rows as an objective puts them to its model."""
        rows, cut = objective.encode_for_training(training)
        validation_rows, validation_cut = objective.encode(validation)
        return cls(rows, validation_rows, (cut, validation_cut))


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
        base = adapted(load_base(recipe.model, self.task, on_meta=True), method, recipe)
        return replace(self, encoded=self.encode(base, recipe))

    def encode(self, base: Base, recipe: Recipe) -> Encoded:
        """The rows as token ids of a model.

        Raises:
            UserError: The model can do nothing with a row, or has no room for the answers that the recipe asks for.
        """
        if self.task.kind == "generation":
            longest_prompt(base, recipe)
        return Encoded.of(objective_of(self.task, base, recipe.max_length), self.training, self.validation)


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

    def trains_shared(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether a run would train weights that are shared."""
        own = {id(weight) for weight in self.base.model.parameters()}
        return any(weight.requires_grad and id(weight) in own for weight in parameters)


def adapted(base: Base, method: Method, recipe: Recipe) -> Base:
    """A base model with what trains in it.

    Raises:
        UserError: The recipe does not fit the model.
    """
    if recipe.head_learning_rate is not None and not base.head:
        raise UserError(
            f"--head-learning-rate is {recipe.head_learning_rate:g}, and {base.name} has no head for this task: leave "
            "it out; --learning-rate is that of the adapter"
        )
    model = method.adapt(base, recipe)
    return replace(base, model=model, virtual_tokens=virtual_tokens(model))
