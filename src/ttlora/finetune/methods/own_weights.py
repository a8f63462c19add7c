"""Methods that train weights of the model itself: all of them, its biases, or only its head."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file

from ttlora.adapters.weights import read_weights
from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.methods.method import Method, in_float32, in_head
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task


class Full(Method):
    """The whole model, saved as transformers saves models."""

    files: ClassVar[Mapping[str, str]] = {"config.json": "config.json", "model.safetensors": "model.safetensors"}
    base_dtype: ClassVar[torch.dtype | None] = torch.float32

    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """Leave the model as it is: all its weights train."""
        return base.model

    def save(self, model: Any, folder: Path) -> None:
        """Save the model in one file."""
        model.save_pretrained(folder, max_shard_size="1TB")

    def load(self, recipe: Recipe, task: Task, folder: Path, base: Base | None = None) -> Base:
        """Load the saved model, with the base model's tokenizer."""
        return load_base(recipe.model, task, form=self.form(recipe), weights=folder)


class _Some(Method):
    """Some of the model's weights, saved under their names in it."""

    @abstractmethod
    def _trains(self, name: str, base: Base) -> bool:
        """Whether the weight of that name is one of them."""

    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """Freeze all others."""
        for name, weight in base.model.named_parameters():
            weight.requires_grad_(self._trains(name, base))
        return in_float32(base.model)

    def save(self, model: Any, folder: Path) -> None:
        """Save the tensors that train, under their names in the whole model."""
        trained = {name: weight.contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def load(self, recipe: Recipe, task: Task, folder: Path, base: Base | None = None) -> Base:
        """Put the saved tensors into a fresh model."""
        base = base or load_base(recipe.model, task, form=self.form(recipe))
        for weight_name, weight in base.model.named_parameters():
            weight.requires_grad_(self._trains(weight_name, base))
        wanted = {key: weight for key, weight in in_float32(base.model).named_parameters() if weight.requires_grad}
        base.model.load_state_dict(
            read_weights(folder / self.files["model.safetensors"], recipe.model, wanted), strict=False
        )
        return base


class Head(_Some):
    """The frozen model with a trained head."""

    files: ClassVar[Mapping[str, str]] = {"model.safetensors": "head.safetensors"}

    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """Freeze all but the head."""
        if not base.head:
            raise UserError(f"method {recipe.method} trains a head, and {base.name} has none for this task")
        return super()._adapt(base, recipe)

    def _trains(self, name: str, base: Base) -> bool:
        return in_head(name, base.head)


class BitFit(_Some):
    """All biases, and the head (Ben Zaken et al. 2022)."""

    files: ClassVar[Mapping[str, str]] = {"model.safetensors": "biases.safetensors"}

    def _adapt(self, base: Base, recipe: Recipe) -> Any:
        """Freeze all but the biases and the head."""
        if not any(_is_bias(name) and not in_head(name, base.head) for name, _ in base.model.named_parameters()):
            raise UserError(f"method {recipe.method} trains biases, and {base.name} has none: use another method")
        return super()._adapt(base, recipe)

    def _trains(self, name: str, base: Base) -> bool:
        return _is_bias(name) or in_head(name, base.head)


def _is_bias(name: str) -> bool:
    # DeBERTa's attention calls its own q_bias and v_bias
    return name.endswith("bias")
