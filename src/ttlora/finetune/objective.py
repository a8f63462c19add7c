"""What every way of putting a task to a model has: rows as token ids, batches, the loss, and the outputs."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ttlora.finetune.base import Base
from ttlora.finetune.data import Encoded, Rows, Split, TaskData
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import require_known, tokenise


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

    Attributes:
        is_labelled: Whether a batch has a label for each row, with which the outputs are compared.
    """

    is_labelled = True

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
        taken = inspect.signature(self.base.plain.forward).parameters
        return [{name: values for name, values in row.items() if name in taken} for row in rows], cut

    def _pad(self, rows: Rows) -> dict[str, Tensor]:
        """A batch of rows for a head, padded at the end, whatever side the tokenizer pads at.

        Padding in front would move a row's tokens to other positions, and so change what the model says to it. XLNet's
        head alone reads the last place of a row, which must not be padding; its positions are relative.
        """
        side = "left" if getattr(self.base.model.config, "summary_type", None) == "last" else "right"
        return dict(self.tokenizer.pad(rows, padding_side=side, return_tensors="pt"))
