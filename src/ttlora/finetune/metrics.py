"""Metrics by name, each from labels and predictions."""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from scipy import stats
from sklearn import metrics as sk

METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": sk.accuracy_score,
    "f1": lambda labels, predictions: sk.f1_score(labels, predictions, pos_label=1, zero_division=0),
    "f1_macro": lambda labels, predictions: sk.f1_score(labels, predictions, average="macro", zero_division=0),
    "matthews": sk.matthews_corrcoef,
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
}


def measure_metrics(names: Iterable[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The values of metrics.

    A correlation with constant predictions is undefined; it counts as 0, since such predictions tell nothing.

    Args:
        names: Keys of `METRICS`.
        labels: Class indices (n), or numbers (n).
        predictions: Class indices (n), or numbers (n).
    """
    values = {name: float(METRICS[name](labels, predictions)) for name in names}
    return {name: 0.0 if math.isnan(value) else value for name, value in values.items()}
