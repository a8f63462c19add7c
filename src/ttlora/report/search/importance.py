"""How much of the variation in validation loss goes with each setting, as far as a random forest can tell.

``optuna.importance`` does not serve here: of losses that are chance alone its fANOVA gives a setting a fifth and more,
and it has no measure of fit that would tell so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from sklearn.ensemble import RandomForestRegressor

from ttlora.report.formats import counted
from ttlora.report.runs import is_drawable
from ttlora.report.search.trials import SearchResult, TrialResult, differing, setting_text

FEWEST_TRIALS = 8
TREES = 200
SHUFFLES = 20
WEAK = 0.3  # an R² below which the order of the settings may be chance

Losses = Float[ndarray, "trials"]
Columns = Float[ndarray, "trials columns"]


@dataclass(frozen=True)
class Importance:
    """What a setting accounts for.

    Attributes:
        setting: Its name.
        share: Share of the variance of the validation loss that goes with it, alone or with others.
    """

    setting: str
    share: float


@dataclass(frozen=True)
class Importances:
    """What all settings account for.

    Attributes:
        settings: The settings, the largest share first; empty if the trials allow no estimate.
        fit: R² of the forest's predictions for trials that it has not seen; None if there is no forest.
        explanation: From which trials, how far to be trusted, or why nothing is said.
    """

    settings: tuple[Importance, ...]
    fit: float | None
    explanation: str


def importances(search: SearchResult) -> Importances:
    """The share of each setting in the variance of the validation loss.

    A random forest predicts the loss from the settings. A setting's share is half of what the R² of its out-of-bag
    predictions loses when the setting's values are shuffled among the trials: for a forest that predicts well, and
    settings that were drawn independently, that is the setting's total Sobol index (Gregorutti, Michel and
    Saint-Pierre, Correlation and variable importance in random forests, 2017). The same trials give the same shares.

    Trials that were stopped have their loss at another epoch. So all are compared by their lowest loss up to one epoch,
    the last that at least half of them have reached, and the others are left out. A trial that diverged would have most
    of the variance by itself, so losses count no further than Tukey's fence, 1.5 interquartile ranges above the third
    quartile.
    """
    epoch, trials, losses = _comparable(search.trials)
    if len(trials) < FEWEST_TRIALS:
        few = f"{counted(len(trials), 'trial')} can be compared, and {FEWEST_TRIALS} are the fewest that say anything"
        return Importances((), None, f"Nothing is said about importance: {few}.")
    names = differing(trials)
    if not names or max(losses) - min(losses) < 1e-12:
        what = "validation loss" if names else "settings"
        return Importances((), None, f"Nothing is said about importance: all trials have the same {what}.")
    blocks = [_columns([trial.settings.get(name) for trial in trials]) for name in names]
    fit, drops = _forest(blocks, _without_outliers(np.array(losses)))
    basis = (
        f"From {counted(len(trials), 'trial')} that came to epoch {epoch}, by the lowest validation loss up to there. "
        "For trials that it has not seen, a random forest on the settings explains"
    )
    if fit <= 0:
        explanation = f"{basis} nothing (R² {fit:.2f}): these trials do not tell which settings matter."
        return Importances((), fit, explanation)
    trust = f"{basis} {100 * fit:.0f} % of the variance of that loss (R² {fit:.2f})"
    if fit < WEAK:
        trust += ", so little that the order may be chance"
    how = (
        "Share: half of what R² loses when a setting's values are shuffled; what settings do together counts for each."
    )
    # chance takes the estimates a little out of what a share can be
    shares = [Importance(name, min(max(drop / 2, 0.0), 1.0)) for name, drop in zip(names, drops, strict=True)]
    return Importances(tuple(sorted(shares, key=lambda one: -one.share)), fit, f"{trust}. {how}")


def _comparable(trials: Sequence[TrialResult]) -> tuple[int, list[TrialResult], list[float]]:
    """The last epoch that at least half of the trials have reached, those trials, and their lowest losses up to it."""
    reached = sorted((_reached(trial) for trial in trials), reverse=True)
    enough = max(math.ceil(len(trials) / 2), min(FEWEST_TRIALS, len(trials)))
    epoch = reached[enough - 1]
    losses = {trial: _lowest_loss(trial, epoch) for trial in trials if _reached(trial) >= epoch}
    known = {trial: loss for trial, loss in losses.items() if loss is not None}
    return epoch, list(known), list(known.values())


def _reached(trial: TrialResult) -> int:
    """The last epoch to which a trial's lowest loss is known: the last planned one, unless a scheduler stopped it."""
    return trial.record.epochs if trial.record.stopped_early else trial.record.planned_epochs


def _lowest_loss(trial: TrialResult, epoch: int) -> float | None:
    if trial.record.best_epoch <= epoch:
        return trial.loss
    losses = (
        entry["validation_loss"] for entry in trial.run.log if entry["epoch"] <= epoch and "validation_loss" in entry
    )
    return min(losses, default=None)


def _without_outliers(losses: Losses) -> Losses:
    first, third = np.quantile(losses, [0.25, 0.75])
    return np.minimum(losses, third + 1.5 * (third - first)) if third > first else losses


def _columns(values: Sequence[Any]) -> Columns:
    """A setting as numbers: the logarithm of a number above 0, what makes up a shape, or a column a category."""
    if all(is_drawable(value) for value in values):
        numbers = np.array([[value] for value in values], float)
        return np.log(numbers) if numbers.min() > 0 else numbers
    shapes = [_shape(value) for value in values]
    known = [shape for shape in shapes if shape is not None]
    if len(known) == len(shapes):
        return np.array(known, float)
    texts = [setting_text(value) for value in values]
    return np.array([[float(text == category) for category in sorted(set(texts))] for text in texts])


def _shape(value: Any) -> tuple[float, float, float] | None:
    """Number of cores, and the logarithms of the largest dim and of the sum of dims, to which parameters grow; None:
    it is no shape.
    """
    shapes = list(value.values()) if isinstance(value, dict) else [value]
    dims = [shape for shape in shapes if isinstance(shape, list) and shape]
    if not dims or len(dims) < len(shapes) or not all(is_drawable(dim) and dim > 0 for shape in dims for dim in shape):
        return None
    return max(map(len, dims)), math.log(max(map(max, dims))), math.log(sum(map(sum, dims)))


def _forest(blocks: Sequence[Columns], losses: Losses) -> tuple[float, list[float]]:
    """Out-of-bag R² of a forest, and by how much it falls when each block of columns is shuffled, as a mean."""
    matrix = np.hstack(blocks)
    forest = RandomForestRegressor(TREES, random_state=0).fit(matrix, losses)
    chance = np.random.default_rng(0)
    copies = [matrix]
    for block, end in zip(blocks, np.cumsum([block.shape[1] for block in blocks]), strict=True):
        own = slice(end - block.shape[1], end)
        for _ in range(SHUFFLES):
            copies.append(matrix.copy())
            copies[-1][:, own] = chance.permutation(block)
    stack = np.stack(copies)
    sums, counts = np.zeros((len(copies), len(losses))), np.zeros(len(losses))
    for tree, drawn in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        unseen = np.setdiff1d(np.arange(len(losses)), drawn)
        if not len(unseen):
            continue
        rows = stack[:, unseen].reshape(-1, matrix.shape[1])
        sums[:, unseen] += tree.predict(rows).reshape(len(copies), -1)
        counts[unseen] += 1
    seen_by_all = counts == 0
    predicted, true = (sums / np.maximum(counts, 1))[:, ~seen_by_all], losses[~seen_by_all]
    fits = 1 - np.mean((predicted - true) ** 2, axis=1) / np.var(true)
    drops = fits[0] - fits[1:].reshape(len(blocks), SHUFFLES)
    return float(fits[0]), [float(drop) for drop in drops.mean(axis=1)]
