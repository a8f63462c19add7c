import numpy as np
import pytest

from ttlora.finetune.metrics import (
    exact_match,
    last_number,
    measure_metrics,
    measure_texts,
    measure_tokens,
    rouge_l,
)

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


def test_rouge_l_of_lins_example():
    # Lin 2004, Section 3.1: "police killed the gunman" against two candidates of four words
    reference = "police killed the gunman"
    assert rouge_l(reference, "Police kill the gunman.") == 3 / 4
    assert rouge_l(reference, "the gunman kill police") == 2 / 4
    assert rouge_l("a b c d e", "b d") == 2 * 2 / 7
    assert rouge_l(reference, "") == 0
    assert rouge_l("...", "!") == 1


def test_exact_match_minds_words_alone():
    assert exact_match("Ja,  Nein", "ja, nein\n") == 1
    assert exact_match("ja", "ja.") == 0
    assert measure_texts(["exact_match", "rouge_l"], ["a b", "c"], ["a", "c"]) == {
        "exact_match": 0.5,
        "rouge_l": pytest.approx((2 / 3 + 1) / 2),
    }


@pytest.mark.parametrize(
    ("answer", "generated"),
    [
        ("2 + 3 = <<2+3=5>>5\n#### 5", "She has 2 and gets 3. The answer is: 5"),
        ("#### 1,000", "1000"),
        ("#### 1000", "The answer is $1,000."),
        ("#### 1000", "1000.0"),
        ("#### 1234567", "1,234,567 pears"),
        ("#### 50", "50%!"),
        ("#### 16", "so it is $4^2 = \\boxed{16}$."),
        ("#### 0.5", ".5"),
        ("#### -3", "It is -3."),
        ("#### -3", "It is \u22123 degrees"),
        ("#### -3", "-$3.00"),
        ("#### 3", "5-3"),
        ("#### 3", "the list 1,2,3"),
        ("#### 2", "(x)-2"),
        ("#### 0", "-0"),
        ("#### " + "9" * 5000, "9" * 5000),
    ],
)
def test_last_numbers_that_are_the_same(answer, generated):
    assert last_number(answer, generated) == 1


@pytest.mark.parametrize(
    ("answer", "generated"),
    [
        ("#### 5", "5 pears and 6 apples"),
        ("#### 5", "five"),
        ("#### 5", ""),
        ("#### 5", "-5"),
        ("#### 5", "55"),
        ("#### 5", "5.5"),
        ("#### 1000", "1,00"),
        ("five", "five"),
    ],
)
def test_last_numbers_that_differ(answer, generated):
    assert last_number(answer, generated) == 0


def test_perplexity_is_over_tokens_and_not_over_rows():
    losses = np.array([[4 * np.log(2.0), 4, 1], [np.log(32.0), 1, 1]])
    values = measure_tokens(losses)
    assert values["perplexity"] == pytest.approx(2 ** (9 / 5))
    assert values["token_accuracy"] == 2 / 5
    assert np.isfinite(measure_tokens(np.array([[1e6, 1, 0]]))["perplexity"])
