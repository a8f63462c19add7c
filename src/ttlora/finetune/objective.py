"""What every way of putting a task to a model has: rows as token ids, batches, the loss, and the outputs."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ttlora.finetune.base import Base
from ttlora.finetune.data import Encoded, Split, TaskData
from ttlora.finetune.inputs import Texts
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.stored import store
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import TokenRow, require_known, tokenise

if TYPE_CHECKING:
    from datasets import Dataset


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
    def rows(self, split: Split, for_training: bool) -> Iterator[tuple[TokenRow, bool]]:
        """Each row as token ids with its label, without padding, and whether it had to be cut.

        Args:
            split: Rows as the task reads them.
            for_training: Leave out what only measuring needs.

        Raises:
            UserError: The model can do nothing with a row; the message names its place.
        """

    @abstractmethod
    def collate(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
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

    def encode(self, split: Split, for_training: bool = False) -> tuple["Dataset", int]:
        """`rows`, stored, and how many of them had to be cut.

        Raises:
            UserError: The model can do nothing with a row; the message names its place.
        """
        cut = 0

        def rows() -> Iterator[TokenRow]:
            nonlocal cut
            for row, was_cut in self.rows(split, for_training):
                cut += was_cut
                yield row

        return store(rows()), cut

    def encode_data(self, data: TaskData) -> Encoded:
        """The rows of both splits as token ids.

        Raises:
            UserError: The model can do nothing with a row; the message names its place.
        """
        training, cut = self.encode(data.training, for_training=True)
        validation, validation_cut = self.encode(data.validation)
        return Encoded(training, validation, (cut, validation_cut))

    def _tokenise(self, texts: Iterable[Texts], places: Iterable[str]) -> Iterator[tuple[TokenRow, bool]]:
        """`tokenise`, then check each row, and drop what the model's forward does not take."""
        taken = inspect.signature(self.base.plain.forward).parameters
        tokenised = tokenise(texts, self.tokenizer, self.max_length)
        for (row, was_cut), place in zip(tokenised, places, strict=True):
            require_known(row["input_ids"], self.base, place)
            yield {name: values for name, values in row.items() if name in taken}, was_cut

    def _pad(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """A batch of rows for a head, padded at the end, whatever side the tokenizer pads at.

        Padding in front would move a row's tokens to other positions, and so change what the model says to it. XLNet's
        head alone reads the last place of a row, which must not be padding; its positions are relative.
        """
        side = "left" if getattr(self.base.model.config, "summary_type", None) == "last" else "right"
        return dict(self.tokenizer.pad(rows, padding_side=side, return_tensors="pt"))
