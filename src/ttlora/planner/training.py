"""What a training will take of memory: a step of it, computed with tensors that have sizes and no data."""

import gc
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttlora.compat import without_data
from ttlora.errors import UserError, one_line
from ttlora.planner.live_bytes import LiveBytes

FLOAT32 = 4
# AdamW keeps two numbers for each weight that trains
OPTIMIZER_STATES = 2
# of bitsandbytes: entries that share a constant, and constants that share one of their own
BLOCK, BLOCK_OF_CONSTANTS = 64, 256
HEADS = ("classifier", "score", "lm_head", "pooler")


@dataclass(frozen=True)
class TrainingMemory:
    """What a training takes of memory, in bytes; what a driver and an allocator take beside it is not in it.

    Attributes:
        batch_size: Rows that are computed at a time.
        max_length: Tokens a row.
        dtype: Number format of the base model's weights that are not quantised.
        weights: The base model and the adapter.
        gradients: Of what trains.
        optimizer: What AdamW keeps.
        activations: The most that is alive beside these within a step.
        card: The memory that is there; None: none was named.
    """

    batch_size: int
    max_length: int
    dtype: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    card: int | None = None

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def fits(self) -> bool | None:
        """Whether the sum is no more than the memory that is there; None: none was named."""
        return None if self.card is None else self.total <= self.card


def training_memory(
    skeleton: Any,
    config: PeftConfig,
    batch_size: int,
    max_length: int,
    dtype: str | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    gradient_checkpointing: bool = False,
    card: int | None = None,
) -> TrainingMemory:
    """What training an adapter on a model takes.

    A forward and a backward run on tensors that have sizes alone, and what is alive in them is counted, so that nothing
    is guessed but the layout of quantised weights. Rows are full and of one length, so it is the most that a batch can
    take. As in `train`, what trains is float32, and half precision is computed under autocast.

    Args:
        skeleton: A model on the meta device, which is changed.
        config: The adapter.
        batch_size: Rows that are computed at a time.
        max_length: Tokens a row; no more than the model has positions for.
        dtype: "float32" or "bfloat16"; None: that of the model's config, or bfloat16 for a causal model without one.
        quantize: Bits of the linear weights.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        card: The bytes of memory that are there.

    Raises:
        UserError: The model computes something that depends on the data, such as which experts a token goes to.
    """
    name = dtype or _dtype_of(skeleton)
    number_format = getattr(torch, name)
    max_length = min(max_length, getattr(skeleton.config, "max_position_embeddings", max_length) or max_length)
    model = skeleton.to(number_format)
    base = _base_bytes(model, quantize)
    try:
        learned, peak = _step(model, config, (batch_size, max_length), number_format, gradient_checkpointing)
    except Exception as error:  # models are programs of others, which may stumble over tensors without data in any way
        raise UserError(
            f"what memory a {skeleton.config.model_type} takes cannot be told without its data: {one_line(error)}"
        ) from error
    gradients = FLOAT32 * learned
    # a weight in 4 bits is written out for its product
    widest = max((layer.weight.numel() for layer in _linear(model)), default=0) if quantize == "4bit" else 0
    return TrainingMemory(
        batch_size,
        max_length,
        name,
        base + FLOAT32 * learned,
        gradients,
        OPTIMIZER_STATES * gradients,
        peak - gradients + widest * number_format.itemsize,
        card,
    )


def _dtype_of(skeleton: Any) -> str:
    dtype = skeleton.config.dtype
    if dtype is None:
        dtype = torch.bfloat16 if "CausalLM" in type(skeleton).__name__ else torch.float32
    # which `train` holds in bfloat16
    return str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")


def _linear(model: nn.Module) -> list[Any]:
    """The layers that would be quantised: all linear ones but those of the head."""
    named = model.named_modules()
    return [m for name, m in named if isinstance(m, nn.Linear | Conv1D) and name.rpartition(".")[2] not in HEADS]


def _base_bytes(model: nn.Module, quantize: str | None) -> int:
    """The bytes of a model's weights."""
    weights = {id(weight): weight.numel() * weight.element_size() for weight in [*model.parameters(), *model.buffers()]}
    if quantize is not None:
        for layer in _linear(model):
            rows, columns = layer.weight.shape
            weights[id(layer.weight)] = _quantized_bytes(rows, columns, quantize)
    return sum(weights.values())


def _quantized_bytes(rows: int, columns: int, bits: str) -> int:
    """The bytes of a matrix as bitsandbytes holds it, with its constants."""
    if bits == "8bit":
        return rows * columns + FLOAT32 * rows
    blocks = math.ceil(rows * columns / BLOCK)
    return math.ceil(rows * columns / 2) + blocks + FLOAT32 * math.ceil(blocks / BLOCK_OF_CONSTANTS)


def _step(model: Any, config: Any, size: Sequence[int], dtype: torch.dtype, checkpointing: bool) -> tuple[int, int]:
    """The number of weights that train, and the most bytes alive in a step beside all weights."""
    model.requires_grad_(False)
    of_rows = "SequenceClassification" in type(model).__name__
    if of_rows:
        # as `train` does it, the head trains whole: PEFT knows a classifier, and these poolers are part of it
        poolers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]
        config = replace(config, task_type="SEQ_CLS", modules_to_save=poolers or None)
    adapted: Any = get_peft_model(model, config)
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    with without_data():
        adapted._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
        learned = [weight for weight in adapted.parameters() if weight.requires_grad]
        for weight in learned:
            weight.data = weight.data.float()
        ids = torch.zeros(tuple(size), dtype=torch.long)
        batch = {"input_ids": ids}
        if "labels" in inspect.signature(model.forward).parameters:
            batch["labels"] = torch.zeros(size[0], dtype=torch.long) if of_rows else ids
        live = LiveBytes([*adapted.parameters(), *adapted.buffers()])
        adapted.train()
        with live:
            for _ in range(2):
                for weight in learned:
                    weight.grad = None
                # what only cycles hold is freed here, and not whenever the collector happens to run
                gc.collect()
                live.peak = live.bytes
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    output = adapted(**batch)
                    loss = output.loss if "labels" in batch else output[0].float().mean()
                del output
                loss.backward()
                del loss
    return sum(weight.numel() for weight in learned), live.peak
