"""The recipe: all settings of a fine-tune. Its fields are the flags, the YAML keys and the Python arguments."""

import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from ttlora.errors import UserError
from ttlora.finetune.tasks import LANGUAGE_KINDS, LANGUAGE_TASKS, Kind
from ttlora.strict_yaml import parse, read_mapping, write_yaml
from ttlora.text_forms import parse_integers, parse_names, parse_pairs, parse_shape
from ttlora.utf8 import half_character
from ttlora.values import complaint, is_whole, shown

# more than any count of rows, tokens or epochs that anybody waits for; PyTorch stores them in 32 bits
MOST = 2**31 - 1

_PATHS = ("model", "output", "data", "train", "validation")
_NAMES = ("targets", "choice_columns", "report_to")
_STEPS = (
    *("epochs", "max_steps", "evaluate_every", "save_every", "patience"),
    *("max_length", "max_new_tokens", "max_train_examples"),
)
_COUNTS = {
    **dict.fromkeys(_STEPS, MOST),
    # PyTorch makes a list of so many places for every batch
    **dict.fromkeys(("batch_size", "rows_at_once", "gradient_accumulation"), 2**20),
    "threads": 1024,
}


class DefaultOfKind(int):
    """The paper's default, which language models that learn text do not share.

    Args:
        value: The paper's.
        language: What label kinds generation, text and preference have in its place.
    """

    language: int

    def __new__(cls, value: int, language: int) -> Self:
        """The paper's value, with the other beside it."""
        default = super().__new__(cls, value)
        default.language = language
        return default

    def __reduce__(self) -> tuple[type[Self], tuple[int, int]]:
        """What makes a copy."""
        return type(self), (int(self), self.language)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a fine-tune. Where a default is None, the method or the task decides.

    Args:
        model: Base model: a local folder, or a name on the Hugging Face hub.
        task: A named task, such as glue/sst2; or file, with `train` and `validation`.
        output: Folder for the adapter, the result record, the recipe and the log.
        method: What is trained: tt-lora, lora, head (only the task's head), full (the whole model), or another
            of PEFT's, by its name in lower case.
        data: Folder with a named task's data, as DATA/sst2/train.jsonl; without it they come from the hub.
        train: Training rows of task file: JSONL, CSV or Parquet, several files with commas, or a split of a data set on
            the hub, as name:train; a.csv*0.5,b.csv*2 takes half of the rows of the one and those of the other twice.
        validation: Validation rows of task file, named likewise; or a share of the training rows, as 5%, drawn by the
            seed.
        text_column: Column with the text, for task file (default: text; prompt for label kind preference).
        text_pair_column: Column with the second text of a pair, for task file.
        label_column: Column with the label, for task file (default: label).
        label_kind: What the label column of task file holds: classes, numbers, which of the choice columns is right, or
            the text to be generated; text: there is none, and the model learns the text itself; preference: there is
            none, and the model learns to prefer the first of two answers, by DPO (default: classes or numbers, as seen
            from the labels).
        choice_columns: Columns with the choices, as ending1,ending2, for task file with label kind choice; for
            preference the preferred answer and the other (default: chosen,rejected).
        scoring: Whether a causal model answers by a trained head, or by the likelihood of each answer after a prompt
            (default: head).
        prompt: The prompt of task file for scoring by prompt, such as "{review} All in all, it was" (default: the
            texts, and "Answer:").
        answers: What follows the prompt for each label, as "0=terrible 1=great" (default: the labels).
        max_new_tokens: Most tokens that a generated answer has.
        loss_on: What is learned of a row to be generated: the answer, all turns of the assistant in a chat, or all of
            it, the prompt too (default: answer).
        packing: Put several rows into one of `max_length` tokens, which do not see one another; `batch_size` then
            counts such rows.
        beta: How much a preference's difference from the base model counts, DPO's β (default: 0.1).
        targets: Linear modules to adapt, as q_proj,v_proj, or all-linear (default: for tt-lora all of them but query
            and key, for other methods query and value of self-attention).
        r: Rank (default: 2 for tt-lora, 8 for lora); for tt-lora also one for each bond, as 4,5,4.
        shape: Tensor-train dims, as 16,24,24,16, or by module, as "q_proj=64,64 v_proj=16,64" (default: auto).
        alpha: Scale of the update (default: 16 for lora, TTLoraConfig's for tt-lora).
        dropout: Dropout on the adapter's input, a probability (default: 0).
        head: How tt-lora trains a pooler, which pretraining has left in the model: by a train, as the targets, or
            whole (default: dense).
        settings: Other fields of the method's PEFT config, as "num_virtual_tokens=20 encoder_hidden_size=128".
        epochs: Most epochs to train (default: 20, the paper's; 3 for label kinds generation, text and preference).
        max_steps: Most optimisation steps to train (default: those of all epochs).
        evaluate_every: Steps after which the validation rows are measured (default: after each epoch).
        save_every: Steps after which a checkpoint is written, from which a run that was stopped goes on (default: with
            each measurement).
        patience: Measurements without a lower validation loss after which training stops.
        batch_size: Rows an optimisation step (default: 32; 16 for label kinds generation, text and preference).
        rows_at_once: Rows that are computed at a time, by all processes together; gradients are added up to those of a
            step. auto: as many as fit into memory (default: all rows of a step).
        gradient_accumulation: In how many parts the rows of a step are computed; another way to say `rows_at_once`.
        gradient_checkpointing: Compute activations again in the backward pass, which takes less memory and more time.
        dtype: Number format in which the base model is held and computed (default: that of its file, but bfloat16 for
            float16).
        quantize: Hold the base model's weights in 4 or 8 bits, by bitsandbytes (NF4, with quantised constants), or by
            torchao where that is not installed.
        shard: Divide the base model's weights among the processes, which put a layer's together where they compute it
            (FSDP2); for a model that does not fit onto one GPU.
        attention: Implementation of attention, as transformers calls it: eager, sdpa, flash_attention_2, ... (default:
            transformers' choice).
        compile: Compile the model with torch.compile.
        optimizer: Optimiser, as transformers calls it: adamw_torch, adamw_8bit, adafactor, sgd, ... (default:
            adamw_torch).
        scheduler: How the learning rate falls after the warm-up (default: linear).
        learning_rate: Peak learning rate (default: 1e-3; head: 1e-2; full: 5e-5).
        head_learning_rate: The head's own peak learning rate (default: the same, but beside an adapter 1e-3 at most).
        weight_decay: Weight decay.
        warmup: Share of all steps over which the learning rate rises.
        max_length: Tokens a row; longer rows are cut, and so are those that the model has no room for (default: 128;
            1024 for label kinds generation, text and preference).
        max_train_examples: Train on so many rows, drawn by the seed.
        adapter_dtype: Number format of the saved weights (default: bfloat16; full: float32).
        report_to: Trackers that follow the training, as transformers calls them: tensorboard, wandb, trackio, mlflow
            and others (default: none).
        push_to_hub: Name on the hub under which the adapter is uploaded when it is done.
        seed: Seed of all that is random.
        threads: CPU threads (default: PyTorch's choice).
        resume: Go on with the run in OUTPUT where it stopped.

    Raises:
        UserError: A value has a wrong type, or is out of range.
    """

    model: str
    task: str
    output: str
    method: str = "tt-lora"
    data: str | None = None
    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    label_kind: Kind | None = None
    choice_columns: str | list[str] | None = None
    scoring: Literal["head", "prompt"] = "head"
    prompt: str | None = None
    answers: str | dict[str, str] | None = None
    max_new_tokens: int = 64
    loss_on: Literal["answer", "assistant", "all"] | None = None
    packing: bool = False
    beta: float | None = None
    targets: str | list[str] | None = None
    r: int | list[int] | str | None = None
    shape: str | list[int] | dict[str, list[int]] | None = None
    alpha: float | None = None
    dropout: float | None = None
    head: Literal["train", "dense"] | None = None
    settings: str | dict[str, Any] | None = None
    epochs: int = DefaultOfKind(20, language=3)
    max_steps: int | None = None
    evaluate_every: int | None = None
    save_every: int | None = None
    patience: int = 5
    batch_size: int = DefaultOfKind(32, language=16)
    rows_at_once: int | Literal["auto"] | None = None
    gradient_accumulation: int | None = None
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] | None = None
    quantize: Literal["4bit", "8bit"] | None = None
    shard: bool = False
    attention: str | None = None
    compile: bool = False
    optimizer: str | None = None
    scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt"] | None = None
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.0
    max_length: int = DefaultOfKind(128, language=1024)
    max_train_examples: int | None = None
    adapter_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    report_to: str | list[str] | None = None
    push_to_hub: str | None = None
    seed: int = 0
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            default = getattr(self, name)
            writes = self.label_kind in LANGUAGE_KINDS or self.task in LANGUAGE_TASKS
            # without a kind, the columns of the rows may show one
            if isinstance(default, DefaultOfKind) and (writes or self.label_kind is not None):
                self._set(name, default.language if writes else int(default))
        for name in _PATHS:
            if isinstance(path := getattr(self, name), os.PathLike):
                self._set(name, os.fspath(path))
        for name in ("train", "validation"):
            if isinstance(given := getattr(self, name), list | tuple):
                self._set(name, [os.fspath(path) if isinstance(path, os.PathLike) else path for path in given])
        for name in _NAMES:
            if isinstance(names := getattr(self, name), str):
                self._set(name, parse_names(names))
        if isinstance(self.settings, str):
            self._set("settings", _read_settings(self.settings))
        if isinstance(self.answers, str):
            self._set("answers", parse_pairs("`answers`", self.answers))
        if isinstance(self.r, str):
            ranks = parse_integers("`r`", self.r)
            self._set("r", ranks[0] if self.r.strip().isdecimal() else ranks)
        if isinstance(self.shape, str) and self.shape != "auto":
            self._set("shape", parse_shape(self.shape))
        for name, hint in _hints().items():
            value = getattr(self, name)
            if isinstance(value, tuple):
                self._set(name, value := list(value))
            elif isinstance(value, dict):
                named = {str(key) if is_whole(key) else key: part for key, part in value.items()}
                if len(named) < len(value):
                    raise UserError(f"{_argument(name)} has a name twice, as a number and as text: {shown(value)}")
                self._set(name, value := named)
            if problem := complaint(_argument(name), value, hint):
                raise UserError(problem)
            self._require_text(name, value)
        for name, most in _COUNTS.items():
            count = getattr(self, name)
            if isinstance(count, int) and not 1 <= count <= most:
                bound = "at least 1" if count < 1 else f"at most {most:,}"
                raise UserError(f"{_argument(name)} is {shown(count)}, and has to be {bound}")
        for rank in self.r if isinstance(self.r, list) else [self.r]:
            if isinstance(rank, int) and not 1 <= rank <= MOST:
                raise UserError(f"`r` is {shown(rank)}: a rank is {'at least 1' if rank < 1 else f'at most {MOST:,}'}")
        for name in ("learning_rate", "head_learning_rate", "beta"):
            self._require(name, lambda value: value > 0, "a number above 0")
        self._require("weight_decay", lambda value: value >= 0, "a number from 0 on")
        for name in ("warmup", "dropout"):
            self._require(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        self._require("alpha", lambda value: True, "a finite number")
        self._require("seed", lambda value: 0 <= value < 2**32, "from 0 to 4294967295")
        self._require_parts()
        if any(weight != 1 for _, weight in self._weighted("validation")):
            raise UserError(f"`validation` is {shown(self.validation)}, and only training rows have weights")
        if isinstance(self.validation, str) and self.validation.endswith("%") and self.validation_share is None:
            raise UserError(f"`validation` is {shown(self.validation)}, and a share is above 0% and below 100%")

    @property
    def rows_a_pass(self) -> int:
        """How many rows are computed at a time; with ``rows_at_once="auto"`` the most that are tried."""
        if self.gradient_accumulation is not None:
            return self.batch_size // self.gradient_accumulation
        return self.rows_at_once if isinstance(self.rows_at_once, int) else self.batch_size

    @property
    def validation_share(self) -> float | None:
        """The share of the training rows that is measured, from 0 to 1; None: validation rows have their own places."""
        given = self.validation if isinstance(self.validation, str) else ""
        found = re.fullmatch(r"(\d{1,2}(?:\.\d{1,6})?)%", given)
        return float(found[1]) / 100 if found and float(found[1]) else None

    def places(self, split: Literal["train", "validation"]) -> list[str]:
        """The files, and the splits of data sets on the hub, that a split's rows come from.

        Args:
            split: Which rows.
        """
        return [place for place, _ in self._weighted(split)]

    @property
    def weights(self) -> list[float]:
        """How often the rows of each place of training rows are taken."""
        return [weight for _, weight in self._weighted("train")]

    def _weighted(self, split: Literal["train", "validation"]) -> list[tuple[str, float]]:
        given = getattr(self, split)
        if isinstance(given, str):
            # a file whose own name has a comma is one
            given = [given] if os.path.lexists(os.path.expanduser(given)) else parse_names(given)
        return [_weighted(place) for place in given or []]

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """The recipe with `defaults` for the keys that are None, and with absolute paths."""
        filled = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        for name in ("output", "data"):
            if (path := getattr(self, name)) is not None:
                filled[name] = _absolute(path)
        for split in ("train", "validation"):
            places = [
                (place if is_on_hub(place) else _absolute(place)) + ("" if weight == 1 else f"*{weight:g}")
                for place, weight in self._weighted(split)
            ]
            if places and not (split == "validation" and self.validation_share is not None):
                filled[split] = places if len(places) > 1 else places[0]
        # unlike Path's, it takes a name that is too long for a path as none
        if os.path.isdir(os.path.expanduser(self.model)):
            filled["model"] = _absolute(self.model)
        return replace(self, **filled)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain values for YAML or JSON, without `resume`."""
        values = {name: value for name, value in asdict(self).items() if name != "resume"}
        return {name: int(value) if isinstance(value, DefaultOfKind) else value for name, value in values.items()}

    def write(self, path: Path) -> None:
        """Write the recipe as YAML, in the form that ``ttlora train --config`` reads; the file appears whole."""
        write_yaml(path, self.as_dict())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a recipe that `write` wrote.

        Raises:
            UserError: The file is not there, or is no recipe.
        """
        if not os.path.lexists(path):
            raise UserError(f"{path} is not there: {path.parent} holds no run of ttlora")
        content = read_mapping(path, f"{path} is no recipe")
        if unknown := content.keys() - _hints().keys():
            raise UserError(
                f"{path} is no recipe of this version of ttlora: it has the unknown key {', '.join(sorted(unknown))}"
            )
        if missing := [name for name in ("model", "task", "output") if name not in content]:
            raise UserError(f"{path} is no recipe: it has no {missing[0]}")
        try:
            return cls(**content)
        except UserError as error:
            raise UserError(f"{path} is no recipe: {error}") from None

    def _require_parts(self) -> None:
        """Refuse a batch that does not divide into the parts that are asked for."""
        if self.gradient_accumulation is not None and self.rows_at_once is not None:
            raise UserError("`gradient_accumulation` and `rows_at_once` say the same in two ways: name one of them")
        for name in ("gradient_accumulation", "rows_at_once"):
            part = getattr(self, name)
            if isinstance(part, int) and self.batch_size % part:
                raise UserError(f"{_argument(name)} is {part}, and does not divide `batch_size` {self.batch_size}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _require(self, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        # a whole number can be larger than any other
        if value is not None and not (abs(value) <= sys.float_info.max and holds(value)):
            raise UserError(f"{_argument(name)} is {shown(value)}, and has to be {wanted}")

    def _require_text(self, name: str, value: Any) -> None:
        """Refuse text that is empty, and text that neither a file nor a tokenizer can hold."""
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if value == [] or (name == "answers" and value == {}):
            raise UserError(f"{_argument(name)} is empty")
        for text in (part for part in parts if isinstance(part, str)):
            if not text.strip() and name != "settings":
                raise UserError(
                    f"{_argument(name)} is empty" if text is value else f"{_argument(name)} holds an empty text"
                )
            if half := half_character(text):
                raise UserError(
                    f"{_argument(name)} is {shown(text)}, which is no UTF-8 text: {half} is half a character"
                )
            if "\0" in text:
                raise UserError(f"{_argument(name)} is {shown(text)}: no text here can hold a character of code 0")


def _weighted(place: str) -> tuple[str, float]:
    """A place of rows, and how often they are taken: 0.5 for "reviews.csv*0.5", and else 1."""
    found = re.fullmatch(r"(.+)\*(\d{1,6}(?:\.\d{1,6})?)", place)
    if found is None or os.path.lexists(os.path.expanduser(place)):
        return place, 1.0
    return found[1], float(found[2])


def is_on_hub(place: str) -> bool:
    """Whether rows are on the hub: a name and a split, as name:train, of which no file is there."""
    named = re.fullmatch(r"[\w.-]+(/[\w.-]+)?:\w+", place) is not None
    return named and not os.path.lexists(os.path.expanduser(place))


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())


def _read_settings(text: str) -> dict[str, Any]:
    """Settings as ``a=1 b=[2, 3]`` in the shell's quotes, or as one mapping of YAML in braces."""
    value = text
    try:
        if text.lstrip().startswith("{"):
            content = parse(text)
            if not isinstance(content, dict):
                raise ValueError("it is no mapping")
            return content
        settings: dict[str, Any] = {}
        for name, value in parse_pairs("`settings`", text).items():
            settings[name] = parse(value)
        return settings
    except ValueError as error:
        raise UserError(f"`settings` is {shown(text)}: cannot read {shown(value)}: {error}") from None


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Recipe)


def _argument(name: str) -> str:
    return f"`{name}`"
