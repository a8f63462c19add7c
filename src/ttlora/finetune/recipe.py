"""The recipe: all that a fine-tune depends on. Its fields are the flags, the YAML keys and the Python arguments."""

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from ttlora.errors import UserError, one_line
from ttlora.whole_files import write_yaml

Shape = Literal["auto"] | list[int] | dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tune, whole. Where a default is None, the method or the task has its own.

    Args:
        model: Base model: a local folder, or a name on the Hugging Face hub.
        task: A named task, such as glue/sst2; or file, with --train and --validation.
        output: Folder for the adapter, the result record, the recipe and the log.
        method: What is trained: tt-lora, lora, head (only the task's head), full (the whole model), or another; a wrong
            name prints them all.
        data: Folder with a named task's data, as DATA/sst2/train.jsonl; without it they come from the hub.
        train: Training rows of task file: JSONL, CSV or Parquet.
        validation: Validation rows of task file.
        text_column: Column with the text, for task file (default: text).
        text_pair_column: Column with the second text of a pair, for task file.
        label_column: Column with the label, for task file (default: label).
        label_kind: What the label column of task file holds: classes, numbers, which of the choice columns is right, or
            the text to be generated; text: there is none, and the model learns the text itself (default: classes or
            numbers, as seen from the labels).
        choice_columns: Columns with the choices, as ending1,ending2, for task file with label kind choice.
        scoring: Whether a causal model answers by a trained head, or by the likelihood of each answer after a prompt
            (default: head).
        prompt: The prompt of task file for scoring by prompt, such as "{review} All in all, it was" (default: the
            texts, and "Answer:").
        answers: What follows the prompt for each label, as "0=terrible 1=great" (default: the labels).
        max_new_tokens: Most tokens that a generated answer has.
        targets: Linear modules to adapt, as q_proj,v_proj, or all-linear (default: query and value of self-attention).
        r: Rank (default: 5 for tt-lora, 8 for lora); for tt-lora also one for each bond, as 4,5,4.
        shape: Tensor-train dims, as 16,24,24,16, or by module, as "q_proj=64,64 v_proj=16,64" (default: auto).
        alpha: Scale of the update (default: 16 for lora, TTLoraConfig's for tt-lora).
        dropout: Dropout on the adapter's input, a probability (default: 0).
        settings: Other fields of the method's PEFT config, as "num_virtual_tokens=20 encoder_hidden_size=128".
        epochs: Most epochs to train.
        patience: Epochs without a lower validation loss after which training stops.
        batch_size: Rows a step.
        learning_rate: Peak learning rate of AdamW, with linear decay (default: 1e-3; head: 1e-2; full: 5e-5).
        head_learning_rate: The head's own peak learning rate (default: the same, but beside an adapter 1e-3 at most).
        weight_decay: Weight decay of AdamW.
        warmup: Share of all steps over which the learning rate rises.
        max_length: Tokens a row; longer rows are cut. Models that take fewer set the limit.
        max_train_examples: Train on so many rows, drawn by the seed.
        adapter_dtype: Number format of the saved weights (default: bfloat16; full: float32).
        seed: Seed of all that is random.
        threads: CPU threads (default: PyTorch's choice).
        resume: Go on with the run in OUTPUT where it stopped.

    Raises:
        UserError: A value cannot be meant.
    """

    model: str
    task: str
    output: str
    method: str = "tt-lora"
    data: str | None = None
    train: str | None = None
    validation: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    label_kind: Literal["classification", "regression", "choice", "generation", "text"] | None = None
    choice_columns: str | list[str] | None = None
    scoring: Literal["head", "prompt"] = "head"
    prompt: str | None = None
    answers: str | dict[str, str] | None = None
    max_new_tokens: int = 64
    targets: str | list[str] | None = None
    r: int | list[int] | str | None = None
    shape: str | list[int] | dict[str, list[int]] | None = None
    alpha: float | None = None
    dropout: float | None = None
    settings: str | dict[str, Any] | None = None
    epochs: int = 20
    patience: int = 5
    batch_size: int = 32
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.0
    max_length: int = 128
    max_train_examples: int | None = None
    adapter_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    seed: int = 0
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "task", "output", "method"):
            if not getattr(self, name):
                raise UserError(f"{_flag(name)} is empty")
        for name in ("targets", "choice_columns"):
            if isinstance(names := getattr(self, name), str):
                self._set(name, [part.strip() for part in names.split(",") if part.strip()])
        for name in ("settings", "answers"):
            if isinstance(pairs := getattr(self, name), str):
                self._set(name, _pairs(_flag(name), pairs))
        if isinstance(self.answers, dict):
            self._set("answers", {str(label): str(answer) for label, answer in self.answers.items()})
        if isinstance(self.r, str):
            self._set("r", _integers("--r", self.r))
        if isinstance(self.shape, str) and self.shape != "auto":
            self._set("shape", parse_shape(self.shape))
        for name in (
            "epochs",
            "patience",
            "batch_size",
            "max_length",
            "max_new_tokens",
            "max_train_examples",
            "threads",
        ):
            self._require(name, lambda value: value >= 1, "at least 1")
        for rank in self.r if isinstance(self.r, list) else [self.r]:
            if isinstance(rank, int) and rank < 1:
                raise UserError(f"--r is {rank}: a rank is at least 1")
        for name in ("learning_rate", "head_learning_rate"):
            self._require(name, lambda value: value > 0, "a number above 0")
        self._require("weight_decay", lambda value: value >= 0, "a number from 0 on")
        for name in ("warmup", "dropout"):
            self._require(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        self._require("alpha", lambda value: True, "a finite number")
        self._require("seed", lambda value: 0 <= value < 2**32, "from 0 to 4294967295")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """The recipe with `defaults` in the place of what it leaves open, and with absolute paths."""
        filled = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        for name in ("output", "data", "train", "validation"):
            if (path := getattr(self, name)) is not None:
                filled[name] = str(Path(path).expanduser().absolute())
        # unlike Path's, it takes a name that is too long for a path as none
        if os.path.isdir(os.path.expanduser(self.model)):
            filled["model"] = str(Path(self.model).expanduser().absolute())
        return replace(self, **filled)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain values, ready for YAML or JSON; whether a run was resumed is no part of it."""
        return {name: value for name, value in asdict(self).items() if name != "resume"}

    def write(self, path: Path) -> None:
        """Write the recipe as YAML, in the form that ``ttlora train --config`` reads; the file appears whole."""
        write_yaml(path, self.as_dict())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a recipe that `write` wrote.

        Raises:
            UserError: The file is not there, or is no recipe.
        """
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} is not there: {path.parent} holds no run of ttlora") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path} is no recipe: {one_line(error)}") from None
        if not isinstance(content, dict) or (unknown := content.keys() - {field.name for field in fields(cls)}):
            raise UserError(
                f"{path} is no recipe of this version of ttlora"
                + (f": it has the unknown key {', '.join(sorted(unknown))}" if isinstance(content, dict) else "")
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise UserError(f"{path} is no recipe: {error}") from None

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _require(self, name: str, holds: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise UserError(f"{_flag(name)} is {value}, and has to be {wanted}")


def parse_shape(text: str) -> Shape:
    """The shape that a text names: "auto", dims as "16,24,24,16", or by module as "q_proj=64,64 v_proj=16,64".

    Raises:
        UserError: The text is none of these.
    """
    if text == "auto":
        return "auto"
    if "=" not in text:
        return _integers("--shape", text)
    shapes: dict[str, list[int]] = {}
    for part in text.split():
        module, separator, dims = part.partition("=")
        if not module or not separator or module in shapes:
            raise UserError(f"--shape is {text!r}: cannot read {part!r} (wanted: q_proj=64,64 v_proj=16,64)")
        shapes[module] = _integers("--shape", dims)
    return shapes


def _pairs(flag: str, text: str) -> dict[str, Any]:
    """Names with values, as in ``a=1 b=text c="two words"``; values are read as YAML."""
    pairs = {}
    try:
        for part in shlex.split(text):
            name, equals, value = part.partition("=")
            if not name or not equals or name in pairs:
                raise ValueError(f"cannot read {part!r}")
            pairs[name] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{flag} is {text!r}: {one_line(error)} (wanted: name=value name=value)") from None
    return pairs


def _integers(flag: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.strip("[]() ").split(",")]
    except ValueError:
        raise UserError(f"{flag} is {text!r}, and has to be whole numbers with commas, as 16,24,24,16") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
