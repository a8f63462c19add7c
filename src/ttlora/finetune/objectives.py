"""The ways to put a task to a model: a head that answers, the likelihood of each answer, and what a model writes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttlora.finetune.base import Base
from ttlora.finetune.data import Split
from ttlora.finetune.inputs import Prompted
from ttlora.finetune.objective import Computed, Objective
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import IGNORED, TokenRow, answer_ids, shortened


class HeadObjective(Objective):
    """A head with one output for each class, or one for a number: the model's own loss."""

    def rows(self, split: Split, for_training: bool) -> Iterator[tuple[TokenRow, bool]]:
        """One or two texts a row; the longest text of a row is cut first."""
        texts: Any = split.inputs
        for (row, was_cut), label in zip(self._tokenise(texts, split.places), split.labels, strict=True):
            yield {**row, "labels": label}, was_cut

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Pad the rows."""
        return self._pad(rows)

    def compute(self, model: Any, batch: dict[str, Tensor]) -> Computed:
        """The model's own loss, and its logits."""
        output = model(**batch)
        return Computed(output.loss, output.logits)


class ChoiceObjective(Objective):
    """A head with one output, which scores each choice: cross-entropy over the choices of a row."""

    def rows(self, split: Split, for_training: bool) -> Iterator[tuple[TokenRow, bool]]:
        """The texts of every choice."""
        for given, label, place in zip(split.inputs, split.labels, split.places, strict=True):
            texts: Any = given
            choices, were_cut = zip(*self._tokenise(texts, [place] * len(texts)), strict=True)
            ids = [choice["input_ids"] for choice in choices]
            yield {"input_ids": ids, "choices": choices, "labels": label}, any(were_cut)

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
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

    def rows(self, split: Split, for_training: bool) -> Iterator[tuple[TokenRow, bool]]:
        """Every answer after the prompt, whose beginning is cut where it is too long; for training the right one."""
        for given, label, place in zip(split.inputs, split.labels, split.places, strict=True):
            assert isinstance(given, Prompted)
            answers = [given.answers[int(label)]] if for_training else given.answers
            joined = [answer_ids(str(given.prompt), answer, self.base, place) for answer in answers]
            sequences = [shortened(*sequence, self.max_length, self.base, place) for sequence in joined]
            ids, targets, were_cut = zip(*sequences, strict=True)
            yield {"input_ids": ids, "targets": targets, "labels": 0 if for_training else int(label)}, any(were_cut)

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Pad the answers of all rows, one after the other, at their end."""
        ids, targets, counts = [], [], []
        for row in rows:
            ids += [torch.tensor(sequence) for sequence in row["input_ids"]]
            targets += [torch.tensor(sequence) for sequence in row["targets"]]
            counts.append(len(row["input_ids"]))
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
        """The mean loss of the right answers' tokens; for each row the answers' probabilities."""
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
        return Computed(loss, _by_row(-sums / tokens.clamp(min=1), batch["counts"]).softmax(-1))


def objective_of(task: Task, base: Base, recipe: Recipe) -> Objective:
    """How a task is put to a model.

    Raises:
        UserError: The model has no room for the answers that the recipe asks for.
    """
    if task.learns_language:
        from ttlora.finetune.language import LanguageObjective, PreferenceObjective  # with TRL, which takes a second

        return (PreferenceObjective if task.kind == "preference" else LanguageObjective)(task, base, recipe)
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
