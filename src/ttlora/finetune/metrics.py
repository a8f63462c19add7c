"""Metrics by name: of labels and predictions, of generated texts, and of a causal model's losses."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

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


def exact_match(answer: str, generated: str) -> float:
    """1 if both texts have the same words in the same order, whatever their case and spaces."""
    return float(answer.casefold().split() == generated.casefold().split())


def rouge_l(answer: str, generated: str) -> float:
    """ROUGE-L (Lin 2004, Eq. 2 to 4, with β = 1): F1 of the longest common subsequence of words.

    Words are runs of letters and digits in lower case, as in the reference implementation without stemming.
    """
    reference, candidate = ([*re.findall(r"[^\W_]+", text.lower())] for text in (answer, generated))
    if not reference or not candidate:
        return float(reference == candidate)
    common = _longest_common_subsequence(reference, candidate)
    return 2 * common / (len(reference) + len(candidate))


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second):
            above = lengths[at + 1]
            lengths[at + 1] = before + 1 if word == other else max(above, lengths[at])
            before = above
    return lengths[-1]


# a minus behind a word, a number or a bracket takes away, or joins two words; it is no sign
_SIGN = r"((?<![\w)])[-\u2212])?"
_NUMBER = re.compile(_SIGN + r"\$?([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]*\.[0-9]+|[0-9]+)")


def last_number(answer: str, generated: str) -> float:
    """GSM8K's exact match: 1 if the last number of both texts is the same, however it is written; 0 if one has none."""
    expected, found = _last_number(answer), _last_number(generated)
    return float(found is not None and found == expected)


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    sign, digits = numbers[-1]
    number = Decimal(digits.replace(",", ""))
    return -number if sign else number


TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "last_number": last_number,
}


def measure_texts(names: Iterable[str], answers: Sequence[str], generated: Sequence[str]) -> dict[str, float]:
    """The means of metrics over generated texts.

    Args:
        names: Keys of `TEXT_METRICS`.
        answers: What was to be generated.
        generated: What was.
    """
    pairs = list(zip(answers, generated, strict=True))
    return {name: sum(TEXT_METRICS[name](*pair) for pair in pairs) / len(pairs) for name in names}


def measure_tokens(losses: np.ndarray) -> dict[str, float]:
    """Perplexity, and the share of tokens that were the likeliest.

    Args:
        losses: For each row the summed loss of its tokens in nats, their number, and how many were foreseen (n x 3).
    """
    loss, tokens, foreseen = losses.sum(0, dtype=np.float64)
    return {"perplexity": math.exp(min(loss / max(tokens, 1), 700.0)), "token_accuracy": foreseen / max(tokens, 1)}


def measure_preferences(rewards: np.ndarray) -> dict[str, float]:
    """The share of pairs whose preferred answer has the higher reward, and the mean difference of rewards.

    Args:
        rewards: For each pair the reward of the preferred answer and that of the other (n x 2).
    """
    margins = rewards[:, 0] - rewards[:, 1]
    return {"accuracy": float((margins > 0).mean()), "reward_margin": float(margins.mean(dtype=np.float64))}
