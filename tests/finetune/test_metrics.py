import numpy as np
import pytest

from ttlora.finetune.metrics import measure_metrics

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
PREDICTIONS = np.array([1, 0, 1, 0, 1, 1, 0, 1])


def test_classification_metrics_by_hand():
    # 4 true and 1 false positives, 2 true and 1 false negatives
    expected = {
        "accuracy": 6 / 8,
        "f1": 8 / 10,
        "f1_macro": (8 / 10 + 4 / 6) / 2,
        "matthews": (4 * 2 - 1 * 1) / (5 * 5 * 3 * 3) ** 0.5,
    }
    assert measure_metrics(expected, LABELS, PREDICTIONS) == pytest.approx(expected)


def test_correlations():
    numbers = np.array([1.0, 2.0, 3.0, 4.0])
    values = measure_metrics(("spearman", "pearson"), numbers, np.exp(numbers))
    assert values["spearman"] == pytest.approx(1.0)
    assert 0.8 < values["pearson"] < 0.999


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_constant_predictions_correlate_with_nothing():
    values = measure_metrics(("spearman", "pearson"), np.array([1.0, 2.0, 3.0]), np.ones(3))
    assert values == {"spearman": 0.0, "pearson": 0.0}


def test_one_class_only_predicted():
    values = measure_metrics(("f1", "matthews"), LABELS, np.zeros_like(LABELS))
    assert values == {"f1": 0.0, "matthews": 0.0}
