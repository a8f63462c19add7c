"""How a task is put to a model: rows as token ids, the loss, and the outputs."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttlora.errors import UserError
from ttlora.finetune.base import Base
from ttlora.finetune.data import Encoded, Rows, Split, TaskData
from ttlora.finetune.inputs import Prompted
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import prompt_ids, prompt_text, require_known, tokenise

IGNORED = -100


class Computed(NamedTuple):
    """A model's loss and outputs for a batch.

    Attributes:
        loss: The mean loss over what `Objective.items` counts.
        outputs: One row for each row of the batch.
    """

    loss: Tensor
    outputs: Tensor


class Objective(ABC):
    """One way to put a task to a model.

    Args:
        task: The task, its labels known.
        base: The model and its tokenizer.
        recipe: Says how many tokens a row may have, how many rows a batch has, and what the seed is.
    """

    def __init__(self, task: Task, base: Base, recipe: Recipe) -> None:
        self.task, self.base, self.tokenizer, self.recipe = task, base, base.tokenizer, recipe
        self.max_length = base.longest_input(recipe.max_length)

    @abstractmethod
    def encode(self, split: Split) -> tuple[Rows, int]:
        """Rows of token ids with their labels, without padding, and how many of them had to be cut.

        Raises:
            UserError: The model can do nothing with a row; the message names its place.
        """

    @abstractmethod
    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """A batch of rows, padded to its longest."""

    @abstractmethod
    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """The mean loss of a batch, and its outputs."""

    def items(self, batch: dict[str, Tensor]) -> int:
        """The number of items that the loss of a batch is the mean of: here its rows.

        The loss of several batches is the mean over all their items, so it does not depend on how the rows are divided
        into batches.
        """
        return len(batch["labels"])

    def encode_for_training(self, split: Split) -> tuple[Rows, int]:
        """As `encode`, but with only what the training needs."""
        return self.encode(split)

    def encode_data(self, data: TaskData) -> Encoded:
        """The rows of both splits as token ids.

        Raises:
            UserError: The model can do nothing with a row; the message names its place.
        """
        training, cut = self.encode_for_training(data.training)
        validation, validation_cut = self.encode(data.validation)
        return Encoded(training, validation, (cut, validation_cut))

    def _tokenise(self, texts: Sequence[Any], places: Iterable[str]) -> tuple[Rows, int]:
        """`tokenise`, then check each row, and drop what the model's forward does not take."""
        rows, cut = tokenise(texts, self.tokenizer, self.max_length)
        for row, place in zip(rows, places, strict=True):
            require_known(row["input_ids"], self.base, place)
        model = self.base.model
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        taken = inspect.signature(plain.forward).parameters
        return [{name: values for name, values in row.items() if name in taken} for row in rows], cut

    def _pad(self, rows: Rows) -> dict[str, Tensor]:
        """A batch of rows for a head, padded at the end, whatever side the tokenizer pads at.

        Padding in front would move a row's tokens to other positions, and so change what the model says to it. XLNet's
        head alone reads the last place of a row, which must not be padding; its positions are relative.
        """
        side = "left" if getattr(self.base.model.config, "summary_type", None) == "last" else "right"
        return dict(self.tokenizer.pad(rows, padding_side=side, return_tensors="pt"))


class HeadObjective(Objective):
    """A head with one output for each class, or one for a number: the model's own loss."""

    def encode(self, split: Split) -> tuple[Rows, int]:
        """One or two texts a row; the longest text of a row is cut first."""
        rows, cut = self._tokenise(split.inputs, split.places)
        return [{**row, "labels": label} for row, label in zip(rows, split.labels, strict=True)], cut

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Pad the rows."""
        return self._pad(rows)

    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """The model's own loss, and its logits."""
        output = model(**batch)
        return Computed(output.loss, output.logits)


class ChoiceObjective(Objective):
    """A head with one output, which scores each choice: cross-entropy over the choices of a row."""

    def encode(self, split: Split) -> tuple[Rows, int]:
        """The texts of every choice."""
        rows_of_choices = [given for given in split.inputs if not isinstance(given, Prompted)]
        every_choice = [texts for choices in rows_of_choices for texts in choices]
        places = [place for place, choices in zip(split.places, rows_of_choices, strict=True) for _ in choices]
        flat, cut = self._tokenise(every_choice, places)
        encoded = iter(flat)
        rows = []
        for choices, label in zip(rows_of_choices, split.labels, strict=True):
            of_row = [next(encoded) for _ in choices]
            rows.append({"input_ids": [choice["input_ids"] for choice in of_row], "choices": of_row, "labels": label})
        return rows, cut

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """Pad the choices of all rows, one after the other."""
        flat = [choice for row in rows for choice in row["choices"]]
        batch = self._pad(flat)
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        batch["counts"] = torch.tensor([len(row["choices"]) for row in rows])
        return batch

    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """Cross-entropy, and the choices' probabilities."""
        counts, labels = batch["counts"], batch["labels"]
        output = model(**{name: values for name, values in batch.items() if name not in ("counts", "labels")})
        scores = _by_row(output.logits.float().reshape(-1), counts)
        return Computed(F.cross_entropy(scores, labels), scores.softmax(-1))


class LikelihoodObjective(Objective):
    """A causal model's likelihood of each answer after a prompt; it learns the tokens of the right answer.

    An answer's score is the mean log-likelihood of its tokens, as in MeZO (Malladi et al. 2023), whose protocol LoRETTA
    follows. Texts without a prompt are answers of their own.
    """

    def __init__(self, task: Task, base: Base, recipe: Recipe) -> None:
        super().__init__(task, base, recipe)
        if task.kind == "generation" and self.longest_prompt < 1:
            raise UserError(
                f"`max_new_tokens` is {recipe.max_new_tokens}, and model {base.name} takes "
                f"{self.longest_prompt + recipe.max_new_tokens} tokens, prompt and answer together: lower it"
            )

    @property
    def longest_prompt(self) -> int:
        """How many tokens a prompt may have, so that the model has room for the answer that it writes."""
        answer = self.recipe.max_new_tokens
        return self.base.longest_input(self.recipe.max_length + answer) - answer

    def encode(self, split: Split) -> tuple[Rows, int]:
        """Every answer after the prompt, whose beginning is cut where it is too long."""
        if self.task.kind == "generation":
            for given, place in zip(split.inputs, split.places, strict=True):
                # what is measured will be written after it
                prompt_ids(given, self.base, place)
        return self._encode(split, right_ones_alone=False)

    def encode_for_training(self, split: Split) -> tuple[Rows, int]:
        """The right answers alone."""
        return self._encode(split, right_ones_alone=True)

    def _encode(self, split: Split, right_ones_alone: bool) -> tuple[Rows, int]:
        rows, cut = [], 0
        for given, label, place in zip(split.inputs, split.labels, split.places, strict=True):
            assert isinstance(given, Prompted)
            answers = [given.answers[int(label)]] if right_ones_alone else list(given.answers)
            sequences = [self._sequence(given.prompt, answer, place) for answer in answers]
            cut += any(too_long for *_, too_long in sequences)
            ids, targets, _ = zip(*sequences, strict=True)
            if right_ones_alone:
                rows.append({"input_ids": ids[0], "targets": [targets[0]], "labels": 0})
            else:
                rows.append({"input_ids": list(ids), "targets": list(targets), "labels": int(label)})
        return rows, cut

    def _sequence(self, prompt: Any, answer: str, place: str) -> tuple[list[int], list[int], bool]:
        """Token ids, the targets (ids where the answer is), and whether it was cut."""
        before, together = prompt_text(prompt, self.tokenizer, place), answer
        special = isinstance(prompt, str)
        if before:
            joint = "" if before[-1:].isspace() or answer[:1].isspace() or not special else " "
            together = before + joint + answer
        ids = self.tokenizer(together, add_special_tokens=special)["input_ids"]
        require_known(ids, self.base, place)
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
        if len(ids) < 2:
            raise UserError(
                f"{place}: the row is a single token of model {self.base.name}, with none before it that could "
                "foretell it: take the row out, or give it a longer text"
            )
        return ids, [IGNORED if at < start else token for at, token in enumerate(ids)], surplus > 0

    def prompts(self, split: Split) -> list[list[int]]:
        """The token ids of the prompts after which the model writes; of a long one the beginning is cut."""
        prompts = []
        for given, place in zip(split.inputs, split.places, strict=True):
            ids = prompt_ids(given, self.base, place)
            surplus = max(len(ids) - self.longest_prompt, 0)
            prompts.append([*ids[:1], *ids[surplus + 1 :]])
        return prompts

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

    def items(self, batch: dict[str, Tensor]) -> int:
        """The number of tokens in the right answers, without the first token of a row, which is not predicted."""
        tokens = (batch["targets"][:, 1:] != IGNORED).sum(1)
        return int(tokens[_right(batch)].sum())

    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """The mean loss of the right answers' tokens; for each row the answers' probabilities.

        Where there is one answer, the outputs are its summed loss, its number of tokens, and how many of them the model
        ranked first.
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
        right = _right(batch)
        loss = sums[right].sum() / tokens[right].sum().clamp(min=1)
        if self.task.kind in ("generation", "text"):
            foreseen = zeros.index_add(0, places, (chosen.argmax(-1) == wanted).to(losses.dtype))
            return Computed(loss, torch.stack([sums, tokens, foreseen], -1))
        return Computed(loss, _by_row(-sums / tokens.clamp(min=1), batch["counts"]).softmax(-1))


def objective_of(task: Task, base: Base, recipe: Recipe) -> Objective:
    """How a task is put to a model.

    Raises:
        UserError: The model has no room for the answers that the recipe asks for.
    """
    if task.is_causal:
        return LikelihoodObjective(task, base, recipe)
    return ChoiceObjective(task, base, recipe) if task.kind == "choice" else HeadObjective(task, base, recipe)


def _right(batch: dict[str, Tensor]) -> Tensor:
    """Where the right answer of each row stands among the answers of all rows."""
    counts = batch["counts"]
    return counts.cumsum(0) - counts + batch["labels"]


def _by_row(scores: Tensor, counts: Tensor) -> Tensor:
    """The scores of all choices as one row for each count; rows with fewer choices are filled with minus infinity."""
    most = int(counts.max())
    rows = scores.new_full((len(counts), most), float("-inf"))
    rows[torch.arange(most, device=counts.device) < counts[:, None]] = scores
    return rows
