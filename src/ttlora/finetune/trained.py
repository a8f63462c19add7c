"""How far a training has come, as it stands beside its checkpoints."""

import json
import math
from dataclasses import dataclass

from ttlora.errors import UserError, one_line
from ttlora.finetune.data import Encoded
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.recipe import Recipe
from ttlora.values import from_fields

CHECKPOINT = "checkpoint-"  # as Trainer calls them


@dataclass(frozen=True)
class Trained:
    """How far a training has come: the content of ``progress.json`` beside the checkpoints.

    Attributes:
        last: Name of the last whole checkpoint.
        best: Name of the checkpoint with the weights of the lowest validation loss.
        best_epoch: The epoch in which they were, from 1.
        epochs: Epochs trained, one that has been begun among them.
        seconds: Duration over all resumed parts.
        step_seconds: Mean duration of a step.
        loss: The lowest validation loss; None: none was measured yet.
        metrics: What was measured with it, in training.
        ended: Whether there is nothing left to train.
        step: Steps trained.
        best_step: The step after which the weights of the lowest validation loss were measured.
    """

    last: str
    best: str
    best_epoch: int
    epochs: int
    seconds: float
    step_seconds: float
    loss: float | None
    metrics: dict[str, float]
    ended: bool
    step: int = 0
    best_step: int = 0


def find_trained(folder: RunFolder) -> Trained | None:
    """How far the training in a folder has come; None: it has not finished an epoch.

    Raises:
        UserError: The file that says so is damaged, or an earlier version of ttlora has begun the training.
    """
    path = folder.progress
    if not path.exists():
        if next(folder.checkpoints.glob(f"{CHECKPOINT}*/complete"), None) is not None:
            raise UserError(
                f"an earlier version of ttlora has begun the training in {folder.path}: end it with that version, or "
                f"remove {folder.checkpoints} to begin again with the first epoch"
            )
        return None
    try:
        trained = from_fields(Trained, json.loads(path.read_text("utf-8")))
        for name in (trained.last, trained.best):
            if not (folder.checkpoints / name).is_dir():
                raise ValueError(f"{name} is not there")
        return trained
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {one_line(error)}; remove {folder.checkpoints} to begin again with the first epoch"
        ) from None


def steps_per_epoch(rows: Encoded, recipe: Recipe) -> int:
    """The optimisation steps of an epoch, of which the last may have fewer rows."""
    return math.ceil(len(rows.training) / recipe.batch_size)


def planned_steps(rows: Encoded, recipe: Recipe) -> int:
    """The most steps that the recipe trains."""
    steps = recipe.epochs * steps_per_epoch(rows, recipe)
    return min(recipe.max_steps or steps, steps)


def ended_early(trained: Trained, rows: Encoded, recipe: Recipe) -> bool:
    """Whether a training ended before its last step: the validation loss had stopped falling."""
    if not trained.step:  # of an earlier version, which counted epochs alone
        return trained.epochs < recipe.epochs
    return trained.step < planned_steps(rows, recipe)
