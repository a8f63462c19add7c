"""The interface of a method: which weights of a model train, and how they are saved and loaded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ttlora.errors import UserError
from ttlora.finetune.base import Base, BaseForm
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task

OPEN_KEYS = ("targets", "r", "shape", "alpha", "dropout", "head", "settings")


@dataclass(frozen=True)
class Method(ABC):
    """One way to fine-tune.

    Attributes:
        summary: What trains, in a few words.
        defaults: Its own values for recipe keys that default to None; of `OPEN_KEYS` it reads only those named here.
        files: What `save` writes, and the name of each file in the adapter folder.
        base_dtype: Number format that the base model has to be in; None: any.
        trains_base: Whether weights of the base model itself train, outside the head, or none but the head's.
    """

    summary: str
    defaults: Mapping[str, Any]

    files: ClassVar[Mapping[str, str]]
    base_dtype: ClassVar[torch.dtype | None] = None
    trains_base: ClassVar[bool] = True

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with the method's defaults for the keys that are None.

        Raises:
            UserError: The recipe sets a key that the method does not read.
        """
        for key in OPEN_KEYS:
            if key not in self.defaults and getattr(recipe, key) is not None:
                raise UserError(f"`{key}` means nothing to method {recipe.method}: leave it out")
        if recipe.quantize is not None and self.trains_base:
            raise UserError(
                f"`quantize` is {recipe.quantize}, and method {recipe.method} trains the model's own weights, which "
                "quantised ones cannot: leave it out, or take a method with an adapter, such as tt-lora"
            )
        if recipe.shard and self.trains_base:
            raise UserError(
                f"`shard` divides weights that are frozen, and method {recipe.method} trains the model's own: leave it "
                "out, or take a method with an adapter, such as tt-lora"
            )
        if recipe.dtype is not None and self.base_dtype not in (None, getattr(torch, recipe.dtype)):
            raise UserError(f"`dtype` is {recipe.dtype}, and method {recipe.method} needs float32: leave it out")
        return recipe.with_defaults(self.defaults)

    def form(self, recipe: Recipe) -> BaseForm:
        """How the base model is held in memory."""
        dtype = getattr(torch, recipe.dtype) if recipe.dtype else self.base_dtype
        return BaseForm(dtype, recipe.quantize, recipe.attention)

    def adapt(self, base: Base, recipe: Recipe) -> Base:
        """The base model in which only the method's weights require gradients, and are float32.

        Raises:
            UserError: The recipe does not fit the model.
        """
        if recipe.head_learning_rate is not None and not base.head:
            raise UserError(
                f"`head_learning_rate` is {recipe.head_learning_rate:g}, and {base.name} has no head for this task: "
                "leave it out; `learning_rate` is that of the adapter"
            )
        if recipe.gradient_checkpointing and not base.model.supports_gradient_checkpointing:
            raise UserError(f"`gradient_checkpointing`: model {base.name} does not know it: leave it out")
        return replace(base, model=self._adapt(base, recipe))

    @abstractmethod
    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """The model with the method's weights in it.

        Raises:
            UserError: The recipe does not fit the model.
        """

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Save the weights that train, in their number format, so that Trainer can go on from `folder`."""

    @abstractmethod
    def load(self, recipe: Recipe, task: Task, folder: Path, base: Base | None = None) -> Base:
        """A base model with the weights of an adapter folder.

        Args:
            recipe: Names the base model, and says how it is held in memory.
            task: The task, its labels known.
            folder: The adapter folder.
            base: The base model itself, if it is at hand; it is changed. None: it is loaded.

        Raises:
            UserError: The folder's files are damaged, or belong to another model.
        """


def count_parameters(model: nn.Module, head: Sequence[str]) -> tuple[int, int]:
    """The number of parameters that train outside the head, and in it.

    Args:
        model: An adapted model.
        head: Names of the head's modules in the base model.
    """
    outside = inside = 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            if in_head(name, head):
                inside += weight.numel()
            else:
                outside += weight.numel()
    return outside, inside


def in_head(parameter: str, head: Sequence[str]) -> bool:
    """Whether a parameter of the adapted model belongs to the head."""
    # a model with learned prompts is wrapped once, one with a tuner twice
    wrapped = [f"{prefix}{module}." for module in head for prefix in ("", "base_model.", "base_model.model.")]
    return parameter.startswith(tuple(wrapped))


def in_float32(model: Any) -> Any:
    """The model with its trainable weights in float32: in 16 bits Adam's small steps would be lost."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model
