"""The base model with a head for the task, and its tokenizer, from a local folder or the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from ttlora.errors import UserError
from ttlora.finetune.hub import require_on_hub
from ttlora.finetune.tasks import Task


@dataclass(frozen=True)
class Base:
    """A pretrained model, ready for a method.

    Attributes:
        model: The model for sequence classification.
        tokenizer: Its tokenizer; it has a padding token.
        head: Names of the modules that make up the task's head, which is new and has to train.
    """

    model: Any
    tokenizer: Any
    head: tuple[str, ...]

    def longest_input(self, max_length: int) -> int:
        """`max_length`, or as many tokens as the model takes if that is less."""
        limits = [max_length, self.tokenizer.model_max_length]
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
                offset = 0 if module.padding_idx is None else module.padding_idx + 1
                limits.append(module.num_embeddings - offset)
        return int(min(limits))


def load_base(name: str, task: Task, seed: int, dtype: torch.dtype | None = None) -> Base:
    """Load a base model with a head of as many outputs as the task has classes.

    Args:
        name: A local folder, or a name on the hub.
        task: The task, its labels known.
        seed: Seed of the head's start.
        dtype: Number format of the weights; None: the one they were saved in, but bfloat16 for float16.

    Raises:
        UserError: There is no such model, or it is none that can classify.
    """
    config = _load_config(name)
    if task.kind == "regression":
        config.num_labels, config.problem_type = 1, "regression"
    else:
        config.id2label = {index: str(label) for index, label in enumerate(task.labels)}
        config.label2id = {label: index for index, label in config.id2label.items()}
        config.problem_type = "single_label_classification"
    tokenizer = _load_tokenizer(name)
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model {name} cannot be loaded for classification: {_line(error)}") from None
    except Exception as error:  # safetensors' own error is no subclass of the usual ones
        raise UserError(f"model {name} cannot be loaded: {_line(error)}") from None
    if model.dtype == torch.float16:
        model = model.to(torch.bfloat16)
    return Base(model, tokenizer, _find_head(name, model, report))


def _load_config(name: str) -> PretrainedConfig:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model folder {name} holds no config.json")
    elif folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name} is not there")
    else:
        try:
            return AutoConfig.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError):
            require_on_hub("model", name, "give a local folder as --model")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"model {name} cannot be loaded: {_line(error)}") from None


def _load_tokenizer(name: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a missing library, a missing file, a broken file: each with an error of its own
        raise UserError(f"the tokenizer of model {name} cannot be loaded: {_line(error)}") from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer of model {name} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _find_head(name: str, model: Any, report: dict[str, Any]) -> tuple[str, ...]:
    """The modules beside the pretrained body, and those in it that the checkpoint does not hold, such as a pooler."""
    body = model.base_model_prefix
    head = [child for child, module in model.named_children() if child != body and any(True for _ in module.parameters())]
    new = {key.rpartition(".")[0] for key in report["missing_keys"]}
    new |= {key[0].rpartition(".")[0] for key in report["mismatched_keys"]}
    for module in sorted(new):
        parts = module.split(".")
        if parts[0] == body:
            poolers = [index for index, part in enumerate(parts) if "pooler" in part]
            if not poolers:
                raise UserError(f"model {name} holds no weights that fit {module}: it is no whole pretrained model")
            head.append(".".join(parts[: poolers[0] + 1]))
    if not head:
        raise UserError(f"model {name} has no head to train for classification")
    return tuple(dict.fromkeys(head))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
