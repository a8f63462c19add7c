"""The router of a mixture of experts: a noisy top-1 gate over hidden states of the frozen base model."""

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ttlora.adapters.header import read_header
from ttlora.errors import UserError, printable
from ttlora.finetune.base import Base
from ttlora.finetune.files import Row
from ttlora.finetune.inputs import Texts
from ttlora.finetune.measure import batches
from ttlora.finetune.methods import in_head
from ttlora.finetune.objective import Objective
from ttlora.finetune.tasks import Task, columns_of
from ttlora.finetune.tokens import require_known, tokenise
from ttlora.utf8 import half_character

# of the paper's training: Adam's rate; the decay of the weights, the epochs and the rows of a step are ours
LEARNING_RATE, WEIGHT_DECAY, EPOCHS, ROWS_A_STEP = 1e-3, 1.0, 60, 32


@dataclass(frozen=True)
class Router:
    """A noisy top-1 gate: the expert of a row is the one of the largest logit, W h.

    In training the logits are W h + ε softplus(V h), with ε from the standard normal distribution (TT-LoRA MoE, arXiv
    2504.21190; the gate is that of Shazeer et al. 2017, Eq. 4). The softmax over the one logit that is kept is 1, so
    an expert's answer stands as it is.

    The paper's h is the last token's hidden state behind the last layer. Here h is the mean over the tokens behind the
    middle layer and beside it the paper's, less the training rows' mean, over their standard deviation, feature by
    feature. The middle layer tells forms of tasks apart better, and the last one topics.

    Attributes:
        weight: W.
        noise: V.
        mean: The training rows' mean.
        deviation: Their standard deviation.
    """

    weight: Float[Tensor, "experts features"]
    noise: Float[Tensor, "experts features"]
    mean: Float[Tensor, " features"]
    deviation: Float[Tensor, " features"]

    @classmethod
    def train(
        cls, states: Float[Tensor, "rows features"], experts: Int[Tensor, " rows"], count: int, seed: int
    ) -> "Router":
        """Learn by cross-entropy which expert each row belongs to, with AdamW; the seed draws the order of the rows.

        The paper adds the experts' own loss, one part to 21 of this one, and runs the base anew in every step. The
        experts are frozen and the expert of each row is known, so that here the hidden states, computed once, are all
        that the router learns from. W and V begin at zero: only order and noise are random.

        Args:
            states: What `Sight` sees of all experts' training rows.
            experts: The number of each row's expert.
            count: How many experts there are.
            seed: Seed of order and noise.
        """
        generator = torch.Generator().manual_seed(seed)
        mean, deviation = states.mean(0), states.std(0, correction=0).clamp(min=1e-6)
        inputs = (states - mean) / deviation
        weight, noise = (torch.zeros(count, inputs.shape[1], requires_grad=True) for _ in range(2))
        optimizer = torch.optim.AdamW([weight, noise], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(EPOCHS):
            order = torch.randperm(len(experts), generator=generator)
            for start in range(0, len(order), ROWS_A_STEP):
                rows = order[start : start + ROWS_A_STEP]
                spread = F.softplus(inputs[rows] @ noise.T)
                logits = inputs[rows] @ weight.T + torch.randn(spread.shape, generator=generator) * spread
                optimizer.zero_grad()
                F.cross_entropy(logits, experts[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return cls(weight.detach(), noise.detach(), mean, deviation)

    @property
    def parameters(self) -> int:
        """The number of entries of W and V, which train: twice the features for each expert."""
        return self.weight.numel() + self.noise.numel()

    def choose(
        self, states: Float[Tensor, "rows features"], able: Bool[Tensor, "rows experts"] | None = None
    ) -> Int[Tensor, " rows"]:
        """The number of each row's expert.

        Args:
            states: What `Sight` sees of the rows.
            able: Which experts can answer which rows, each row at least one; None: all.
        """
        logits = (states - self.mean) / self.deviation @ self.weight.T
        return (logits if able is None else logits.masked_fill(~able, -math.inf)).argmax(-1)

    def write(self, file: Path) -> None:
        """Write it as safetensors."""
        save_file(vars(self), file, metadata={"format": "pt"})

    @classmethod
    def read(cls, file: Path, experts: int, features: int) -> "Router":
        """Read what `write` wrote.

        Args:
            file: The file.
            experts: How many experts there are.
            features: How many features `Sight` sees of a row.

        Raises:
            UserError: It is not there, is damaged, or is a router of other experts or of another base.
        """
        sizes = dict.fromkeys(("weight", "noise"), (experts, features)) | dict.fromkeys(
            ("mean", "deviation"), (features,)
        )
        infos = read_header(file)
        if infos.keys() != sizes.keys():
            names = printable(", ".join(sorted(infos)), 100)
            raise UserError(f"{file} is no router: it holds {names or 'nothing'}, and a router has {', '.join(sizes)}")
        for name, info in infos.items():
            if info.shape != sizes[name]:
                raise UserError(
                    f"{file} is no router of {experts} experts and {features} features: {name} is "
                    f"{'x'.join(map(str, info.shape))}"
                )
        tensors = load_file(file)
        if any(tensor.dtype != torch.float32 or not tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(f"{file} is damaged: it holds what is no finite number of 32 bits")
        if not (tensors["deviation"] > 0).all():
            raise UserError(f"{file} is damaged: deviation has an entry that is not above 0")
        return cls(**tensors)


def columns_read(tasks: Sequence[Task]) -> list[str]:
    """The columns that hold the texts of any task, in the order of the tasks, each once."""
    columns = [column for task in tasks for text in (*task.texts, *task.choices) for column in columns_of(text)]
    return list(dict.fromkeys(columns))


def texts_of(row: Row, columns: Sequence[str], place: str) -> Texts:
    """What the router reads of a row, whatever its task: the first of its texts, and all others behind one another.

    No task's template or wording is in it, and no label: columns that no expert reads are left out.

    Args:
        row: The row.
        columns: As `columns_read` gives them, whose order the texts have.
        place: Where the row stands, for messages.

    Raises:
        UserError: A text cannot be used, or there is none.
    """
    texts = []
    for column in columns:
        cell = row.get(column)
        text = " ".join(map(str, cell)) if isinstance(cell, list) else "" if cell is None else str(cell)
        if half := half_character(text):
            raise UserError(f"{place}: column {column!r} holds {half}, which is half a character: mend the text")
        if text:
            texts.append(text)
    if not texts:
        raise UserError(f"{place} has none of the columns that the experts read: {', '.join(columns)}")
    return (texts[0], " ".join(texts[1:])) if len(texts) > 1 else (texts[0],)


class Sight:
    """The frozen base model as the router looks through it.

    Args:
        base: The base model and its tokenizer, whatever adapters are in it.
        padding: Pads rows as for a head.
        max_length: Most tokens of a row; the longest text is cut first.
        rows_at_once: Rows of a batch.
    """

    def __init__(self, base: Base, padding: Objective, max_length: int, rows_at_once: int) -> None:
        self._base, self._padding, self._rows_at_once = base, padding, rows_at_once
        self._max_length = base.longest_input(max_length)
        plain = base.plain
        # a decoder behind an encoder would ask for tokens of its own
        self._encoder = plain.get_encoder() if plain.config.is_encoder_decoder else plain.base_model

    def states(self, texts: Sequence[Texts], places: Sequence[str]) -> Float[Tensor, "rows features"]:
        """The mean over each row's tokens behind the middle layer, and its last token behind the last layer.

        No adapter has a part in them.

        Args:
            texts: What the router reads of each row.
            places: Where each stands, for messages.

        Raises:
            UserError: The model does not know a row's tokens.
        """
        taken = inspect.signature(self._encoder.forward).parameters
        rows = []
        for text, place in zip(texts, places, strict=True):
            [(row, _)] = tokenise([text], self._base.tokenizer, self._max_length)
            require_known(row["input_ids"], self._base, place)
            rows.append({name: values for name, values in row.items() if name in taken})
        states = torch.empty(len(rows), features_of(self._base))
        for chosen in batches([len(row["input_ids"]) for row in rows], self._rows_at_once):
            batch = self._padding.collate([rows[index] for index in chosen])
            middle, last = self._hidden(batch)
            mask = batch["attention_mask"]
            means = (middle * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            # padding may be on either side
            ends = (mask * torch.arange(mask.shape[1])).argmax(1)
            states[chosen] = torch.cat([means, last[torch.arange(len(chosen)), ends]], 1)
        return states

    @torch.no_grad()
    def _hidden(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The hidden states behind the middle layer and behind the last, each of rows x tokens x width."""
        model = self._base.model
        inputs = {name: values.to(model.device) for name, values in batch.items()}
        with model.disable_adapter(), computing_as_trained(model):
            layers = self._encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
        middle, last = (layers[index].float().cpu() for index in (len(layers) // 2, -1))
        return middle, last


def computing_as_trained(model: Any) -> torch.autocast:
    """Mixed precision for a model in bfloat16, as Trainer computes with it."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)


def features_of(base: Base) -> int:
    """How many features `Sight` sees of a row: two hidden states."""
    config = base.plain.config.get_text_config()
    # some of OPT project what leaves the last layer
    return int(config.hidden_size + getattr(config, "word_embed_proj_dim", config.hidden_size))


def fingerprint(base: Base) -> str:
    """A digest of a base model: of the first eight entries of each of its weights, the head's left out."""
    digest = hashlib.sha256()
    for name, weight in sorted(base.plain.named_parameters()):
        if not in_head(name, base.head):
            entries = weight.detach().reshape(-1)[:8].float().tolist()
            digest.update(f"{name} {tuple(weight.shape)} {entries}\n".encode())
    return digest.hexdigest()
