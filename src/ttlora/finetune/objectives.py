"""The ways to put a task to a model: a head that answers, the likelihood of each answer, and what a model writes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttlora.finetune.base import Base
from ttlora.finetune.data import Rows, Split
from ttlora.finetune.inputs import Prompted
from ttlora.finetune.objective import Computed, Objective
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import IGNORED, answer_ids, shortened


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
        rows_of_choices = [given for given in split.inputs if isinstance(given, tuple)]
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

    def encode(self, split: Split) -> tuple[Rows, int]:
        """Every answer after the prompt, whose beginning is cut where it is too long."""
        return self._encode(split, right_ones_alone=False)

    def encode_for_training(self, split: Split) -> tuple[Rows, int]:
        """The right answers alone."""
        return self._encode(split, right_ones_alone=True)

    def _encode(self, split: Split, right_ones_alone: bool) -> tuple[Rows, int]:
        rows, cut = [], 0
        for given, label, place in zip(split.inputs, split.labels, split.places, strict=True):
            assert isinstance(given, Prompted)
            answers = [given.answers[int(label)]] if right_ones_alone else list(given.answers)
            joined = [answer_ids(str(given.prompt), answer, self.base, place) for answer in answers]
            sequences = [shortened(*sequence, self.max_length, self.base, place) for sequence in joined]
            cut += any(was_cut for *_, was_cut in sequences)
            ids, targets, _ = zip(*sequences, strict=True)
            if right_ones_alone:
                rows.append({"input_ids": ids[0], "targets": [targets[0]], "labels": 0})
            else:
                rows.append({"input_ids": list(ids), "targets": list(targets), "labels": int(label)})
        return rows, cut

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
