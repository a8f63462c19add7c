"""The base model and the rows that several runs share, read once for all of them."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import TaskData
from ttlora.finetune.methods import Method, in_head
from ttlora.finetune.objectives import objective_of
from ttlora.finetune.recipe import Recipe


def with_tokens(data: TaskData, recipe: Recipe, method: Method) -> TaskData:
    """The rows with their token ids, from a model without weights.

    Raises:
        UserError: The model is not there, or the recipe does not fit it, or it can do nothing with a row.
    """
    base = method.adapt(load_base(recipe.model, data.task, on_meta=True), recipe)
    return replace(data, encoded=objective_of(data.task, base, recipe).encode_data(data))


@dataclass(frozen=True)
class Prepared:
    """A base model and a task's data, for runs that differ only in method and settings.

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
        base = load_base(recipe.model, data.task, recipe.seed, method.form(recipe))
        return cls(data, base, torch.get_rng_state())

    def copy_base(self, whole: bool) -> Base:
        """The base model for one run: its modules and its head are copies, and if `whole` its other weights too."""
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
