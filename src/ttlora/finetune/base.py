"""The base model with a head for the task, and its tokenizer, from a local folder or the hub."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ttlora.adapters.companions import is_made_up
from ttlora.compat import keep_unpacked, reads_both_sides
from ttlora.errors import UserError
from ttlora.finetune.quantized import Bits, quantized, require_library
from ttlora.finetune.tasks import Task
from ttlora.models.hub import from_folder_or_hub, why_not_loaded
from ttlora.models.skeleton import without_weights


@dataclass(frozen=True)
class Base:
    """A pretrained model, ready for a method.

    Attributes:
        name: A local folder, or a name on the hub.
        model: The model for sequence classification, or the causal model.
        tokenizer: Its tokenizer; it has a padding token.
        head: Names of the modules that make up the task's head and train whole: all behind the encoder, a pooler
            among them; a causal model that answers with words has none.
    """

    name: str
    model: Any
    tokenizer: Any
    head: tuple[str, ...]

    @property
    def plain(self) -> Any:
        """The model without what PEFT wraps around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def without_poolers(self) -> "Base":
        """The model with poolers that are the encoder's, and no part of the head."""
        poolers = poolers_of(self.plain)
        return replace(self, head=tuple(name for name in self.head if name not in poolers))

    @property
    def virtual_tokens(self) -> int:
        """How many places of every row a learned prompt takes."""
        configs = getattr(self.model, "peft_config", {}).values()
        return sum(config.num_virtual_tokens for config in configs if config.is_prompt_learning)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that train."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def task_type(self) -> str:
        """PEFT's name for what the model does."""
        return "SEQ_CLS" if self.head else "CAUSAL_LM"

    def longest_input(self, max_length: int) -> int:
        """`max_length`, or as many tokens as the model takes if that is less."""
        limits = [self.tokenizer.model_max_length, *_position_limits(self.model)]
        return int(min(max_length, min(limits) - self.virtual_tokens))

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings for."""
        return int(self.model.get_input_embeddings().weight.shape[0])


# What models call the table with a row for each position. Tables of relative positions, which bound nothing, have
# other names.
POSITION_TABLES = (
    "char_position_embeddings",
    "embed_positions",
    "pos_emb",
    "pos_embed",
    "pos_encoding",
    "position_embedding",
    "position_embeddings",
    "positions_embed",
    "wpe",
)


def _position_limits(model: Any) -> Iterator[int]:
    """The number of tokens that each table of positions in a model has room for."""
    config = model.config.get_text_config()
    if (longest := getattr(config, "max_seq_len", None)) is not None:
        yield longest  # MPT makes its table anew in each forward
    for module in model.modules():
        for name in POSITION_TABLES:
            table = getattr(module, name, None)
            table = getattr(table, "base_layer", table)  # where an adapter is on it
            rows = getattr(table, "weight", table)
            if isinstance(rows, torch.Tensor) and rows.dim() == 2:
                # positions are counted from behind the row for padding, or from an offset that the class has
                padding = getattr(table, "padding_idx", None)
                yield len(rows) - int(getattr(table, "offset", 0 if padding is None else padding + 1))
                # some have rows that no position is counted to
                yield getattr(config, "max_position_embeddings", len(rows))


@dataclass(frozen=True)
class BaseForm:
    """How the weights of a base model are held in memory.

    Attributes:
        dtype: Number format of what is not quantised; None: the one that the weights were saved in, but bfloat16 for
            float16.
        quantize: The bits of quantised weights; None: none are.
        attention: Implementation of attention, as transformers calls it; None: transformers' choice.
    """

    dtype: torch.dtype | None = None
    quantize: Bits | None = None
    attention: str | None = None


def load_base(
    name: str,
    task: Task,
    seed: int = 0,
    form: BaseForm = BaseForm(),
    weights: Path | None = None,
    on_meta: bool = False,
) -> Base:
    """Load a base model with the head that the task needs: one output per class, a single output, or no head.

    Args:
        name: A local folder, or a name on the hub; what the hub's cache holds is not asked for again.
        task: The task, its labels known.
        seed: Seed of the head's start.
        form: How its weights are held.
        weights: Folder with other weights for the same model, head included.
        on_meta: Read no weights: the model is there for its sizes alone.

    Raises:
        UserError: There is no such model, or it cannot do the task.
    """

    def load(name: str, **options: Any) -> Base:
        return _load(name, task, seed, form, weights, on_meta, **options)

    return from_folder_or_hub(name, load)


def _load(
    name: str,
    task: Task,
    seed: int,
    form: BaseForm,
    weights: Path | None,
    on_meta: bool,
    **options: Any,
) -> Base:
    source = weights or name
    if form.quantize is not None:
        require_library(form.quantize)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
        if is_made_up(tokenizer, name, **options):
            raise ValueError("it comes without the files of its tokenizer")
        fit_to_task(config, tokenizer, task)
        model_class = AutoModelForCausalLM if task.is_causal else AutoModelForSequenceClassification
        if on_meta:
            model = without_weights(model_class, config)
            return Base(name, model, tokenizer, head_of(model, task.is_causal))
        held: dict[str, Any] = {"dtype": form.dtype or "auto"}
        if form.quantize is not None:
            head = head_of(without_weights(model_class, config), task.is_causal)
            held |= quantized(form.quantize, form.dtype, head)
        if form.attention is not None:
            held["attn_implementation"] = form.attention
        torch.manual_seed(seed)
        model, report = model_class.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=weights is None,
            trust_remote_code=False,
            **held,
            **options,
        )
    except Exception as error:  # a missing file, a damaged file, a missing library: each with an error of its own
        purpose = "as a causal model" if task.is_causal else "for classification"
        raise UserError(f"model {source} cannot be loaded {purpose}: {why_not_loaded(error)}") from None
    keep_unpacked(model)
    if model.dtype == torch.float16:
        model = model.to(torch.bfloat16)
    return Base(name, model, tokenizer, _find_head(name, model, report, task))


def fit_to_task(config: Any, tokenizer: Any, task: Task) -> None:
    """Set the task's labels in a model's config, and a padding token in the config and the tokenizer.

    Args:
        config: The model's config.
        tokenizer: Its tokenizer.
        task: The task, its labels known.

    Raises:
        ValueError: The model or its tokenizer cannot do the task.
    """
    if task.is_causal:
        of_both_sides = reads_both_sides(config)
        if of_both_sides or config.is_encoder_decoder:
            raise ValueError(f"a {config.model_type} does not write from left to right; use `scoring` head")
    elif task.kind in ("regression", "choice"):
        config.num_labels, config.problem_type = 1, "regression"
    else:
        config.problem_type = "single_label_classification"
        config.id2label = {index: str(label) for index, label in enumerate(task.labels)}
        config.label2id = {label: index for index, label in config.id2label.items()}
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    # a padding token that was added to the tokenizer alone has no embedding
    if tokenizer.pad_token is None or (vocabulary is not None and tokenizer.pad_token_id >= vocabulary):
        if tokenizer.eos_token is None:
            raise ValueError("its tokenizer has neither a padding token that the model knows nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id


def _find_head(name: str, model: Any, report: dict[str, Any], task: Task) -> tuple[str, ...]:
    """The modules of the head; weights that the checkpoint lacks elsewhere are refused."""
    head = head_of(model, task.is_causal)
    new = tuple(f"{module}." for module in head)
    for key in sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
        if task.is_causal or (key.startswith(f"{model.base_model_prefix}.") and not key.startswith(new)):
            raise UserError(f"model {name} holds no weights that fit {key}: it is no whole pretrained model")
    if not head and not task.is_causal:
        raise UserError(f"model {name} has no head to train for classification")
    return head


def head_of(model: Any, is_causal: bool) -> tuple[str, ...]:
    """Names of the modules that make up a model's head: those beside the pretrained body, and the pooler in it.

    A pooler that stays as pretraining has left it, for a task of its own or for none, can keep a model from learning
    anything about pairs of texts. The models of the paper have none in their bodies.

    Args:
        model: A model for sequence classification, or a causal model.
        is_causal: Whether it answers with words, for which it has no head.
    """
    if is_causal:
        return ()
    beside = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return tuple(name for name in [*beside, *poolers_of(model)] if list(model.get_submodule(name).parameters()))


def poolers_of(model: Any) -> list[str]:
    """Names of the poolers in a model's pretrained body."""
    body = model.base_model_prefix
    inside = getattr(model, body, nn.Module())
    return [f"{body}.{name}" for name, _ in inside.named_children() if "pooler" in name]
