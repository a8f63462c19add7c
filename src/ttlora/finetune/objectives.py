"""How a task is put to a model: a row in tokens, the loss, and what an output says."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.data import Input, Prompted
from ttlora.finetune.tasks import Task

IGNORED = -100

Rows = list[dict[str, Any]]


class Objective(ABC):
    """One way to put a task to a model.

    Args:
        task: The task, its labels known.
        base: The model and its tokenizer.
        max_length: Most tokens a row.
    """

    def __init__(self, task: Task, base: Base, max_length: int) -> None:
        self.task, self.tokenizer = task, base.tokenizer
        self.max_length = base.longest_input(max_length)

    @abstractmethod
    def encode(self, inputs: Sequence[Input], labels: Sequence[int | float]) -> tuple[Rows, int]:
        """Rows of token ids with their labels, without padding, and how many of them had to be cut."""

    @abstractmethod
    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """A batch of rows, padded to its longest."""

    @abstractmethod
    def compute(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and its outputs, one row each (see `judge`)."""

    def encode_for_training(self, inputs: Sequence[Input], labels: Sequence[int | float]) -> tuple[Rows, int]:
        """As `encode`, with no more than the training needs."""
        return self.encode(inputs, labels)


class Head(Objective):
    """A head with one output for each class, or one for a number: the model's own loss."""

    def encode(self, inputs: Sequence[Input], labels: Sequence[int | float]) -> tuple[Rows, int]:
        """One or two texts a row; the longest text of a row is cut first."""
        rows, cut = tokenise(inputs, self.tokenizer, self.max_length)
        return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)], cut

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Pad."""
        return dict(self.tokenizer.pad(rows, return_tensors="pt"))

    def compute(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The model's own loss, and its logits."""
        output = model(**batch)
        return output.loss, output.logits


class ChoiceHead(Objective):
    """A head with one output, which scores each choice: cross-entropy over the choices of a row."""

    def encode(self, inputs: Sequence[Input], labels: Sequence[int | float]) -> tuple[Rows, int]:
        """The texts of every choice."""
        rows_of_choices = [given for given in inputs if not isinstance(given, Prompted)]
        every_choice = [texts for choices in rows_of_choices for texts in choices]
        flat, cut = tokenise(every_choice, self.tokenizer, self.max_length)
        encoded = iter(flat)
        rows = []
        for choices, label in zip(rows_of_choices, labels, strict=True):
            of_row = [next(encoded) for _ in choices]
            rows.append({"input_ids": [choice["input_ids"] for choice in of_row], "choices": of_row, "labels": label})
        return rows, cut

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Pad the choices of all rows, one after the other."""
        flat = [choice for row in rows for choice in row["choices"]]
        batch = dict(self.tokenizer.pad(flat, return_tensors="pt"))
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        batch["counts"] = torch.tensor([len(row["choices"]) for row in rows])
        return batch

    def compute(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the choices' probabilities."""
        counts, labels = batch["counts"], batch["labels"]
        output = model(**{name: values for name, values in batch.items() if name not in ("counts", "labels")})
        scores = _by_row(output.logits.float().reshape(-1), counts)
        return F.cross_entropy(scores, labels), scores.softmax(-1)


class Likelihood(Objective):
    """A causal model's likelihood of each answer after a prompt; what it learns is the right one, token by token.

    An answer's score is the mean log-likelihood of its tokens, as in MeZO (Malladi et al. 2023), whose protocol LoRETTA
    follows. Texts without a prompt are answers of their own.
    """

    def encode(self, inputs: Sequence[Input], labels: Sequence[int | float]) -> tuple[Rows, int]:
        """Every answer after the prompt, whose beginning is cut where it is too long."""
        return self._encode(inputs, labels, right_ones_alone=False)

    def encode_for_training(self, inputs: Sequence[Input], labels: Sequence[int | float]) -> tuple[Rows, int]:
        """The right answers alone."""
        return self._encode(inputs, labels, right_ones_alone=True)

    def _encode(
        self, inputs: Sequence[Input], labels: Sequence[int | float], right_ones_alone: bool
    ) -> tuple[Rows, int]:
        rows, cut = [], 0
        for given, label in zip(inputs, labels, strict=True):
            assert isinstance(given, Prompted)
            answers = [given.answers[int(label)]] if right_ones_alone else list(given.answers)
            sequences = [self._sequence(given.prompt, answer) for answer in answers]
            cut += any(too_long for *_, too_long in sequences)
            ids, targets, _ = zip(*sequences, strict=True)
            if right_ones_alone:
                rows.append({"input_ids": ids[0], "targets": [targets[0]], "labels": 0})
            else:
                rows.append({"input_ids": list(ids), "targets": list(targets), "labels": int(label)})
        return rows, cut

    def _sequence(self, prompt: Any, answer: str) -> tuple[list[int], list[int], bool]:
        """Token ids, the targets (ids where the answer is), and whether it was cut."""
        before, together = prompt_text(prompt, self.tokenizer, answer), answer
        special = isinstance(prompt, str)
        if before:
            joint = "" if before[-1:].isspace() or answer[:1].isspace() or not special else " "
            together = before + joint + answer
        ids = self.tokenizer(together, add_special_tokens=special)["input_ids"]
        start = 0
        if before:
            prompt_ids = self.tokenizer(before, add_special_tokens=special)["input_ids"]
            # tokens may join over the seam, and some tokenizers close what they are given: what both have in common
            while start < min(len(prompt_ids), len(ids) - 1) and prompt_ids[start] == ids[start]:
                start += 1
        if (
            self.task.kind == "generation"
            and self.tokenizer.eos_token_id is not None
            and ids[-1] != (end := self.tokenizer.eos_token_id)
        ):
            ids = [*ids, end]
        surplus = len(ids) - self.max_length
        if surplus > 0:
            taken = min(surplus, max(start - 1, 0))
            # the beginning goes, but not the token that says it is one; what still does not fit goes at the end
            ids = [*ids[:1], *ids[1 + taken :]][: self.max_length]
            start -= taken
        return ids, [IGNORED if at < start else token for at, token in enumerate(ids)], surplus > 0

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Pad the answers of all rows, one after the other, at their end."""
        ids, targets, counts = [], [], []
        for row in rows:
            sequences = row["input_ids"] if isinstance(row["input_ids"][0], list) else [row["input_ids"]]
            ids += [torch.tensor(sequence) for sequence in sequences]
            targets += [torch.tensor(sequence) for sequence in row["targets"]]
            counts.append(len(sequences))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(sequence) for sequence in ids], batch_first=True),
            "targets": pad(targets, batch_first=True, padding_value=IGNORED),
            "counts": torch.tensor(counts),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def compute(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss of the right answers' tokens; for each row the answers' probabilities.

        Where there is but one answer, the outputs are its summed loss, its tokens, and how many were foreseen.
        """
        ids, targets = batch["input_ids"], batch["targets"][:, 1:]
        # virtual tokens of a prompt that is learned come first
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, -ids.shape[1] : -1]
        mask = targets != IGNORED
        chosen, wanted = logits[mask].float(), targets[mask]
        places = mask.nonzero()[:, 0]
        losses = F.cross_entropy(chosen, wanted, reduction="none")
        zeros = losses.new_zeros(len(ids))
        sums, tokens = zeros.index_add(0, places, losses), zeros.index_add(0, places, torch.ones_like(losses))
        counts = batch["counts"]
        right = counts.cumsum(0) - counts + batch["labels"]
        loss = sums[right].sum() / tokens[right].sum().clamp(min=1)
        if self.task.kind in ("generation", "text"):
            foreseen = zeros.index_add(0, places, (chosen.argmax(-1) == wanted).to(losses.dtype))
            return loss, torch.stack([sums, tokens, foreseen], -1)
        return loss, _by_row(-sums / tokens.clamp(min=1), counts).softmax(-1)


def objective_of(task: Task, base: Base, max_length: int) -> Objective:
    """How a task is put to a model."""
    if task.is_causal:
        return Likelihood(task, base, max_length)
    return ChoiceHead(task, base, max_length) if task.kind == "choice" else Head(task, base, max_length)


def tokenise(texts: Sequence[Any], tokenizer: Any, max_length: int) -> tuple[Rows, int]:
    """The rows as token ids, without padding, and how many of them had to be cut.

    Args:
        texts: One or two texts a row.
        tokenizer: The model's tokenizer.
        max_length: Most tokens a row; the longest text of a row is cut first.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    rows = [{name: values[row] for name, values in encoded.items()} for row in range(len(texts))]
    full = [index for index, row in enumerate(rows) if len(row["input_ids"]) >= max_length]
    whole = tokenizer(*([column[index] for index in full] for column in columns))["input_ids"] if full else []
    return rows, sum(len(ids) > max_length for ids in whole)


def prompt_text(prompt: Any, tokenizer: Any, answer: str = "") -> str:
    """A prompt as text; the messages of a chat through the tokenizer's template.

    Raises:
        UserError: The tokenizer has no template for chats.
    """
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise UserError(
            "the rows hold chats, and the model's tokenizer has no chat template: take an instruction-tuned model, or "
            "rows with a prompt and an answer column"
        )
    return str(tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True))


def _by_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Scores of all choices, one after the other, as one row for each count; what a row lacks is minus infinity."""
    most = int(counts.max())
    rows = scores.new_full((len(counts), most), float("-inf"))
    rows[torch.arange(most, device=counts.device) < counts[:, None]] = scores
    return rows
