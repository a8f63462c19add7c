"""What both sides do: read rows, build the model, train it and score it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from averages import Average, Piece, exact_mean, moving, plain_mean
from jaxtyping import Float
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ttlora import BottleneckConfig, TTLoraConfig
from ttlora.errors import UserError, one_line
from ttlora.tuners.tt_lora import TTLoraLayer

BATCH_SIZE, LONGEST, SCORED_AT_ONCE = 16, 64, 64
# How unlike the clients' shares of each label are: α of a symmetric Dirichlet distribution.
CONCENTRATION = 0.5


@dataclass(frozen=True)
class Way:
    """A way to train in many places.

    Attributes:
        adapter: Makes the adapter's config; the task's type is added, and with it the classifier, which trains whole.
        learning_rate: Of the clients' Adam.
        average: From the clients' vectors to the next one.
        one_core: Whether of each train one core trains in a round and the others are frozen.
    """

    adapter: Callable[..., PeftConfig]
    learning_rate: float
    average: Average = plain_mean
    one_core: bool = False


WAYS = {
    "core-by-core": Way(TTLoraConfig, 3e-3),
    "exact": Way(TTLoraConfig, 1e-3, exact_mean),
    "frozen-cores": Way(TTLoraConfig, 1e-2, one_core=True),
    # FedTT's adapters: behind attention and feed-forward, with LoRETTA's sizes; norms stay frozen
    "adapters": Way(lambda **options: BottleneckConfig(r=64, tt_rank=5, train_layer_norms=False, **options), 3e-3),
    "lora": Way(lambda **options: LoraConfig(r=8, lora_alpha=16, **options), 3e-3),
}


@dataclass(frozen=True)
class Task:
    """What is learned, the same for all ways.

    Attributes:
        model: Folder or hub name of an encoder.
        data: Folder with train.jsonl and validation.jsonl.
        rows: How many training rows there are at all clients together.
        clients: How many clients there are.
        seed: Of the choice of rows, their split, the start and the training.
        drop_out: Numbers of the clients that fail in every round.
        hostile: Numbers of the clients that send damaged or hostile updates.
    """

    model: str
    data: str
    rows: int
    clients: int
    seed: int
    drop_out: tuple[int, ...] = ()
    hostile: tuple[int, ...] = ()


@lru_cache(maxsize=2)
def read_rows(data: str, part: str) -> list[tuple[str, int]]:
    """The sentences of a part of the data, "train" or "validation", and their labels.

    Raises:
        UserError: It cannot be read, or a row has no sentence or no label.
    """
    file = Path(data, f"{part}.jsonl")
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSONL: {one_line(error)}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or type(row.get("sentence")) is not str or type(row.get("label")) is not int:
            raise UserError(f"{file}: row {number} is no object with a text as sentence and a whole number as label")
        if row["label"] < 0:
            raise UserError(f"{file}: row {number} has the label {row['label']}; labels are counted from 0 on")
    if not rows:
        raise UserError(f"{file} has no rows")
    return [(row["sentence"], row["label"]) for row in rows]


@lru_cache(maxsize=1)
def shares(task: Task) -> list[list[tuple[str, int]]]:
    """The training rows of each client.

    Raises:
        UserError: There are fewer rows than are asked for, or than there are clients.
    """
    rows = read_rows(task.data, "train")
    if task.rows > len(rows):
        raise UserError(f"--rows is {task.rows:,}, and {task.data}/train.jsonl has {len(rows):,}")
    if task.clients > task.rows:
        raise UserError(f"--clients is {task.clients:,}, and there are {task.rows:,} rows: each client needs one")
    chance = np.random.default_rng(task.seed)
    chosen = [rows[index] for index in chance.choice(len(rows), task.rows, replace=False)]
    parts = split([label for _, label in chosen], task.clients, chance)
    return [[chosen[index] for index in part] for part in parts]


def split(labels: Sequence[int], clients: int, chance: np.random.Generator) -> list[list[int]]:
    """Split rows so that clients have unlike labels: each label's shares are drawn from a Dirichlet distribution.

    Args:
        labels: Of each row.
        clients: How many there are, no more than rows.
        chance: Draws the shares.

    Returns:
        The indices of each client's rows, at least one.
    """
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in sorted(set(labels)):
        indices = [index for index, other in enumerate(labels) if other == label]
        bounds = np.cumsum(chance.dirichlet([CONCENTRATION] * clients)) * len(indices)
        for part, (start, stop) in zip(parts, pairwise([0, *bounds.round().astype(int)]), strict=True):
            part += indices[start:stop]
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts


class Learner:
    """A model with an adapter; all of it that trains is one vector.

    Everybody who makes one for the same task and way has the same: the start is drawn from the task's seed.

    Attributes:
        way: How it is trained.
        pieces: What the vector holds.
        start: The vector before any training.

    Raises:
        UserError: The model cannot be loaded, or the adapter does not fit it.
    """

    def __init__(self, task: Task, way: str) -> None:
        self.way, self.seed = WAYS[way], task.seed
        if task.model.startswith(("/", ".")) and not Path(task.model).is_dir():
            raise UserError(f"--model {task.model} is no folder")
        labels = {label for part in ("train", "validation") for _, label in read_rows(task.data, part)}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(task.seed)
                self.tokenizer = AutoTokenizer.from_pretrained(task.model)
                base = AutoModelForSequenceClassification.from_pretrained(
                    task.model, num_labels=max(labels) + 1, dtype=torch.float32
                )
                self.model: Any = get_peft_model(base, self.way.adapter(task_type="SEQ_CLS"))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--model {task.model} cannot be trained as an encoder: {one_line(error)}") from None
        if self.tokenizer.pad_token is None:
            raise UserError(f"--model {task.model} has no padding token: name an encoder")
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        trains = {
            id(layer.cores["default"]): layer.updates["default"]
            for layer in self.model.modules()
            if isinstance(layer, TTLoraLayer)
        }
        self.pieces = [Piece(parameter.numel(), trains.get(id(parameter))) for parameter in self.parameters]
        self.start = self.vector

    def places(self, server_round: int) -> Tensor | slice:
        """Where in the vector the numbers are that train in a round."""
        return moving(self.pieces, server_round) if self.way.one_core else slice(None)

    @property
    def vector(self) -> Float[Tensor, " numbers"]:
        """A copy of what trains."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    @torch.no_grad()
    def load(self, vector: Float[Tensor, " numbers"]) -> None:
        """Put numbers in the places of those that train."""
        parts = vector.split([piece.size for piece in self.pieces])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))

    def train(self, rows: Sequence[tuple[str, int]], server_round: int, client: int) -> None:
        """Go over rows once, with Adam from a fresh start.

        Args:
            rows: Sentences and labels.
            server_round: The round.
            client: The client's number.
        """
        trains = torch.zeros(sum(piece.size for piece in self.pieces))
        trains[self.places(server_round)] = 1
        masks = trains.split([piece.size for piece in self.pieces])
        # where the gradient is zero from the first step on, Adam changes nothing
        hooks = [
            parameter.register_hook(mask.view_as(parameter).mul)
            for parameter, mask in zip(self.parameters, masks, strict=True)
        ]
        optimizer = torch.optim.Adam(self.parameters, self.way.learning_rate)
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, server_round, client]).generate_state(1)[0]))
            batches = by_length([rows[index] for index in torch.randperm(len(rows))], BATCH_SIZE)
            for index in torch.randperm(len(batches)):
                batch = batches[index]
                loss = F.cross_entropy(self._logits(batch), torch.tensor([label for _, label in batch]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for hook in hooks:
            hook.remove()

    @torch.no_grad()
    def score(self, rows: Sequence[tuple[str, int]]) -> float:
        """The accuracy on rows."""
        self.model.eval()
        right = 0
        for batch in by_length(rows, SCORED_AT_ONCE):
            labels = torch.tensor([label for _, label in batch])
            right += int((self._logits(batch).argmax(-1) == labels).sum())
        return right / len(rows)

    def _logits(self, rows: Sequence[tuple[str, int]]) -> Float[Tensor, "rows labels"]:
        texts = [text for text, _ in rows]
        return self.model(
            **self.tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        ).logits


def by_length(rows: Sequence[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    """The rows in batches of like length, in which little is padding.

    Args:
        rows: Sentences and labels.
        size: Rows a batch.
    """
    ordered = sorted(rows, key=lambda row: len(row[0]))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


@lru_cache(maxsize=1)
def learner(task: Task, way: str) -> Learner:
    """The process's one learner, which is kept as long as the way is the same."""
    return Learner(task, way)
