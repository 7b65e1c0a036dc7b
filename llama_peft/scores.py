"""The scores by which a training can choose its checkpoint.

They are computed from texts, labels and numbers alone, and equal those of `eval/metrics`, which adds
intervals, tests and scores by group: neither package may import the other's, and a test holds the
two equal.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Labels = Sequence[tuple[str, ...]]
"""The labels of each example; one each, or any number."""


def normalise(text: str) -> str:
    """The text in lower case, without ASCII punctuation, articles and repeated blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def normal_golds(golds: Sequence[str]) -> list[str]:
    """The normalised references that are not empty; if none is left, the empty answer."""
    return [normal for gold in golds if (normal := normalise(gold))] or [""]


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """Whether a normalised answer is one of the normalised references."""
    return float(prediction in golds)


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """The best F1 of a normalised answer and the normalised references."""
    words = prediction.split()
    return max(word_f1(words, gold.split()) for gold in dict.fromkeys(golds))


def word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of words in any order; if a side has none, whether both have none."""
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def answer_score(
    name: str, predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> float:
    """The mean of `exact` or `f1` over all questions, in percent, as in the official script."""
    of = {"exact": exact_match, "f1": token_f1}[name]
    pairs = ((normalise(predictions[i]), normal_golds(texts)) for i, texts in golds.items())
    return 100 * fmean(of(*pair) for pair in pairs)


def fit_threshold(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float],
) -> float:
    """The threshold that gives the best F1 here if questions above it are left unanswered.

    It is the lowest of equally good ones, and below every probability if answering nothing is best.
    Fit it on validation.
    """
    gains: dict[float, list[float]] = {}
    for i, texts in golds.items():
        normal = normal_golds(texts)
        gain = token_f1(normalise(predictions[i]), normal) - token_f1("", normal)
        gains.setdefault(no_answer_probabilities[i], []).append(gain)
    best, threshold, total = 0.0, min(gains) - 1, 0.0
    for probability in sorted(gains):
        total += sum(sorted(gains[probability]))
        if total > best:
            best, threshold = total, probability
    return threshold


def label_score(name: str, predictions: Labels, golds: Labels, labels: Sequence[str]) -> float:
    """`accuracy` or `subset_accuracy`: the share of examples whose labels are right. `f1`: of the
    last label if there are two, else the mean over the labels that occur. `f1_micro`: of all labels
    together.
    """
    if name.endswith("accuracy"):
        return fmean(float(set(p) == set(g)) for p, g in zip(predictions, golds, strict=True))
    hits = Counter(x for p, g in zip(predictions, golds, strict=True) for x in {*p} & {*g})
    counted = Counter(x for row in (*predictions, *golds) for x in row)
    if name == "f1_micro":
        return 2 * hits.total() / max(1, counted.total())
    chosen = labels[-1:] if len(labels) == 2 else [x for x in labels if counted[x]]
    return fmean(2 * hits[label] / max(1, counted[label]) for label in chosen)


def number_score(name: str, predictions: Sequence[float], golds: Sequence[float]) -> float:
    """`mae`, the mean absolute error, or `pearson`, the correlation; 0 if a side is constant."""
    if name == "mae":
        return fmean(abs(p - g) for p, g in zip(predictions, golds, strict=True))
    means = fmean(predictions), fmean(golds)
    pairs = [(p - means[0], g - means[1]) for p, g in zip(predictions, golds, strict=True)]
    spread = sqrt(sum(p * p for p, _ in pairs) * sum(g * g for _, g in pairs))
    return sum(p * g for p, g in pairs) / spread if spread else 0.0
