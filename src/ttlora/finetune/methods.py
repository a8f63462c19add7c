"""Methods by name: what of a model trains, and how it is saved and read again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.weights import read_weights
from ttlora.tuners.tt_lora import DEFAULT_TARGET_MODULES, TTLoraConfig

OPEN_KEYS = ("targets", "r", "shape", "alpha", "dropout")


@dataclass(frozen=True)
class Method(ABC):
    """One way to fine-tune.

    Attributes:
        summary: What trains, in a few words.
        defaults: Its own values for recipe keys that default to None; of `OPEN_KEYS` it reads only those named here.
        files: What `save` writes, and the name of each file in the adapter folder.
        base_dtype: Number format that the base model has to be in; None: its own.
    """

    summary: str
    defaults: Mapping[str, Any]

    files: ClassVar[Mapping[str, str]]
    base_dtype: ClassVar[torch.dtype | None] = None

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with the method's own values where it leaves a key open.

        Raises:
            UserError: The recipe sets a key that the method does not read.
        """
        for key in OPEN_KEYS:
            if key not in self.defaults and getattr(recipe, key) is not None:
                raise UserError(f"--{key} means nothing to method {recipe.method}: leave it out")
        return recipe.with_defaults(self.defaults)

    @abstractmethod
    def adapt(self, base: Base, recipe: Recipe) -> Any:
        """The base model with all that trains requiring gradients, in float32, and nothing else.

        Raises:
            UserError: The recipe does not fit the model.
        """

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Save what trains, in the number format it trains in, so that Trainer can go on from `folder`."""

    @abstractmethod
    def load(self, name: str, task: Task, folder: Path) -> Base:
        """A fresh base model with the weights of an adapter folder.

        Raises:
            UserError: The folder's files are damaged, or belong to another model.
        """


@dataclass(frozen=True)
class PeftMethod(Method):
    """A method that is a PEFT config; head and adapter are saved in PEFT's form.

    Attributes:
        config: Makes the config from the recipe's open keys, without targets and head.
    """

    config: Callable[..., PeftConfig]

    files: ClassVar[Mapping[str, str]] = {
        "adapter_config.json": "adapter_config.json",
        "adapter_model.safetensors": "adapter_model.safetensors",
    }

    def adapt(self, base: Base, recipe: Recipe) -> Any:
        """Put the adapter into the targets; PEFT makes the copy of the head that trains."""
        settings = {key: getattr(recipe, key) for key in OPEN_KEYS if key in self.defaults and key != "targets"}
        try:
            config = self.config(**settings)
            config.target_modules = _find_targets(base, recipe.targets)
            config.task_type = TaskType.SEQ_CLS
            config.modules_to_save = [module for module in base.head if module not in ("classifier", "score")]
            model = get_peft_model(base.model, config)
        except (ValueError, TypeError) as error:
            raise UserError(f"method {recipe.method} does not fit model {recipe.model}: {error}") from None
        return _in_float32(model)

    def save(self, model: Any, folder: Path) -> None:
        """Save in PEFT's form."""
        # the embeddings never train; without False, PEFT asks the hub whether they have been resized
        model.save_pretrained(folder, save_embedding_layers=False)

    def load(self, name: str, task: Task, folder: Path) -> Base:
        """Load from PEFT's form."""
        if not (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds no adapter_config.json: it is no whole adapter folder")
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / 'adapter_config.json'} is damaged: {error}") from None
        config.inference_mode = False
        base = load_base(name, task)
        try:
            model = _in_float32(get_peft_model(base.model, config))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder} does not fit model {name}: {error}") from None
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        set_peft_model_state_dict(model, read_weights(folder / "adapter_model.safetensors", name, wanted))
        return Base(name, model, base.tokenizer, base.head)


class Head(Method):
    """The frozen model with a trained head."""

    files: ClassVar[Mapping[str, str]] = {"model.safetensors": "head.safetensors"}

    def adapt(self, base: Base, recipe: Recipe) -> Any:
        """Freeze all but the head."""
        return self._freeze_body(base)

    def save(self, model: Any, folder: Path) -> None:
        """Save the head's tensors, under their names in the whole model."""
        trained = {name: weight.contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def load(self, name: str, task: Task, folder: Path) -> Base:
        """Put the saved head on a fresh model."""
        base = load_base(name, task)
        wanted = {key: weight for key, weight in self._freeze_body(base).named_parameters() if weight.requires_grad}
        base.model.load_state_dict(read_weights(folder / "head.safetensors", name, wanted), strict=False)
        return base

    def _freeze_body(self, base: Base) -> Any:
        base.model.requires_grad_(False)
        for module in base.head:
            base.model.get_submodule(module).requires_grad_(True)
        return _in_float32(base.model)


class Full(Method):
    """The whole model, saved as transformers saves models."""

    files: ClassVar[Mapping[str, str]] = {"config.json": "config.json", "model.safetensors": "model.safetensors"}
    base_dtype: ClassVar[torch.dtype | None] = torch.float32

    def adapt(self, base: Base, recipe: Recipe) -> Any:
        """The model as it is: all of it trains."""
        return base.model

    def save(self, model: Any, folder: Path) -> None:
        """Save the model in one file."""
        model.save_pretrained(folder, max_shard_size="1TB")

    def load(self, name: str, task: Task, folder: Path) -> Base:
        """Load the saved model, with the base model's tokenizer."""
        return load_base(name, task, dtype=torch.float32, weights=folder)


def _tt_lora(r: Any, alpha: float, shape: Any, dropout: float) -> PeftConfig:
    if isinstance(shape, dict):
        return TTLoraConfig(r=r, alpha=alpha, shape_pattern=shape, dropout=dropout)
    return TTLoraConfig(r=r, alpha=alpha, shape=shape, dropout=dropout)


def _lora(r: Any, alpha: Any, dropout: float) -> PeftConfig:
    if not isinstance(r, int):
        raise UserError(f"--r is {r}: method lora takes one rank")
    return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout)


_ADAPTER = {"learning_rate": 1e-3, "adapter_dtype": "bfloat16", "targets": None, "dropout": 0.0}

METHODS: Mapping[str, Method] = {
    "tt-lora": PeftMethod(
        "a tensor train for each target module, and the head",
        {**_ADAPTER, "r": TTLoraConfig.r, "alpha": TTLoraConfig.alpha, "shape": "auto"},
        _tt_lora,
    ),
    "lora": PeftMethod(
        "two low-rank factors for each target module, and the head", {**_ADAPTER, "r": 8, "alpha": 16.0}, _lora
    ),
    "head": Head("the head alone", {"learning_rate": 1e-2, "adapter_dtype": "bfloat16"}),
    "full": Full("every weight", {"learning_rate": 5e-5, "adapter_dtype": "float32"}),
}


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: There is none.
    """
    if name not in METHODS:
        close = get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no method is called {name!r}: {hint}there are {', '.join(METHODS)}")
    return METHODS[name]


def count_parameters(model: nn.Module, head: Sequence[str]) -> tuple[int, int]:
    """How many parameters train outside the head and in it.

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
    """Whether a parameter, named as in the adapted model, is the head's."""
    return parameter.removeprefix("base_model.model.").startswith(tuple(f"{module}." for module in head))


def _find_targets(base: Base, targets: Sequence[str] | str | None) -> list[str] | str:
    """The modules to adapt, each of which is there.

    Raises:
        UserError: A target is not there, or none is given and the model's type has no default.
    """
    if targets is None:
        targets = DEFAULT_TARGET_MODULES.get(base.model.config.model_type)
        if targets is None:
            raise UserError(
                f"no default targets are known for models of type {base.model.config.model_type}: "
                f"name them with --targets, out of {_linear_names(base)}"
            )
    if isinstance(targets, str):
        return targets
    if list(targets) == ["all-linear"]:
        return "all-linear"
    names = [name for name, _ in base.model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"--targets {target!r} is no module of model {base.name}: its linear modules are {_linear_names(base)}"
            )
    return list(targets)


def _linear_names(base: Base) -> str:
    names = [
        name.rpartition(".")[2]
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.startswith(base.head)
    ]
    return ", ".join(dict.fromkeys(names))


def _in_float32(model: Any) -> Any:
    """The model with what trains in float32: in 16 bits Adam's small steps would be lost."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model
