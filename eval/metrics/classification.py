"""Accuracy, precision, recall and F1 of labels, and how far their probabilities can be trusted.

With two labels, `precision`, `recall` and `f1` are those of the last label, the positive one, as in
scikit-learn's `average="binary"`. With more labels they are the mean over the labels (`macro`) that
occur among the references or the predictions, as in scikit-learn. A score that would divide by zero
is 0. A prediction that is not one of the labels is wrong and counts for no label; the share of such
predictions is `unparsable`. `balanced_accuracy` is the mean recall of the labels that occur among
the references, and `matthews_correlation` counts "no label" as a label of its own; both are those
of scikit-learn.

`roc_auc` and `average_precision` are those of the last label if there are two; with more labels
they are the mean, over the labels that occur, of each label against the rest.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Evidence, FloatArray
from .ids import check_match

_BINS = 15


def confusion(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> NDArray[np.int64]:
    """Counts by reference (rows) and prediction (columns); the last column is for no label."""
    codes = _codes(predictions, golds, labels).astype(np.int64)
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    np.add.at(counts, (codes[:, 0], codes[:, 1]), 1)
    return counts


def classification_evidence(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> Evidence:
    """Evidence with rows of (reference, prediction) as numbers of labels.

    If there are two labels, the positive one is the last. Raises ValueError unless predictions and
    references have the same ids.
    """
    size = len(labels)

    def statistic(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        gold_KL = rows_KC[:, :1] == np.arange(size)
        predicted_KL = rows_KC[:, 1:] == np.arange(size)
        return _scores(
            hits=counts_RK @ (gold_KL & predicted_KL),
            predicted=counts_RK @ predicted_KL,
            support=counts_RK @ gold_KL,
        )

    codes = _codes(predictions, golds, labels)
    correct = np.array([float(predictions[identity] == gold) for identity, gold in golds.items()])
    return Evidence(
        ids=tuple(golds), rows=codes, statistic=statistic, vectors={"accuracy": correct}
    )


def scores_per_label(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> dict[str, list[float]]:
    """Precision, recall, F1 and the number of references, each as a list in the order of labels."""
    counts = confusion(predictions, golds, labels).astype(np.float64)
    predicted, support = counts[:, :-1].sum(axis=0), counts.sum(axis=1)
    each = (*label_scores(np.diag(counts), predicted, support), support.astype(np.int64))
    names = ("precision", "recall", "f1", "support")
    return {f"{name}_per_label": one.tolist() for name, one in zip(names, each, strict=True)}


def confidence_evidence(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> Evidence:
    """Evidence with rows of the reference's number and the probability of each label.

    Raises ValueError unless probabilities and references have the same ids.
    """
    check_match(probabilities, golds)
    rows = [[labels.index(gold), *probabilities[i]] for i, gold in golds.items()]
    return Evidence(ids=tuple(golds), rows=np.array(rows), statistic=_confidence)


def _confidence(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
    chances_KL, total_R = rows_KC[:, 1:], counts_RK.sum(axis=1)
    size = chances_KL.shape[1]
    is_gold_KL = rows_KC[:, :1] == np.arange(size)
    squares = ((chances_KL - is_gold_KL) ** 2).sum(axis=1) / (2 if size == 2 else 1)
    smallest = np.finfo(np.float64).eps
    losses = -np.log(np.clip(chances_KL[is_gold_KL], smallest, 1 - smallest))
    return {
        "brier_score": counts_RK @ squares / total_R,
        "log_loss": counts_RK @ losses / total_R,
        "ece": _calibration_error(counts_RK, chances_KL, is_gold_KL),
    }


def _calibration_error(
    counts_RK: FloatArray, chances_KL: FloatArray, is_gold_KL: NDArray[np.bool_]
) -> FloatArray:
    """The expected calibration error of the likeliest label, over M = 15 bins of equal width.

    ECE = sum over the bins B of |B| / n * |accuracy(B) - mean probability(B)|, where bin m holds
    the probabilities in ((m - 1) / M, m / M]: Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3.
    """
    in_bin_KB, chance_K1, right_K1 = _binned(chances_KL, is_gold_KL)
    gaps_KB = in_bin_KB * (right_K1 - chance_K1)
    return np.abs(counts_RK @ gaps_KB).sum(axis=1) / counts_RK.sum(axis=1)


def _binned(
    chances_KL: FloatArray, is_gold_KL: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.bool_]]:
    """Which bin each example is in (K, bins), its highest probability (K, 1), and whether the label
    that has it is right (K, 1).
    """
    chosen = chances_KL.argmax(axis=1)[:, None]
    chance_K1 = np.take_along_axis(chances_KL, chosen, axis=1)
    bin_K1 = np.clip(np.ceil(chance_K1 * _BINS) - 1, 0, _BINS - 1)
    in_bin_KB = bin_K1 == np.arange(_BINS)
    return in_bin_KB, chance_K1, np.take_along_axis(is_gold_KL, chosen, axis=1)


def reliability(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> dict[str, list[float]]:
    """The bins of `ece`: examples, their mean highest probability, and their accuracy, as
    `reliability_<name>_per_bin`. An empty bin has 0 for all three.
    """
    rows = confidence_evidence(probabilities, golds, labels).rows
    is_gold_KL = rows[:, :1] == np.arange(len(labels))
    in_bin_KB, chance_K1, right_K1 = _binned(rows[:, 1:], is_gold_KL)
    size = in_bin_KB.sum(axis=0).astype(np.float64)
    means = (ratio((in_bin_KB * one).sum(axis=0), size) for one in (chance_K1, right_K1 * 1.0))
    each = (size.astype(np.int64), *means)
    names = ("count", "confidence", "accuracy")
    return {
        f"reliability_{name}_per_bin": one.tolist() for name, one in zip(names, each, strict=True)
    }


def fit_temperature(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> float:
    """The temperature from 0.1 to 10 that gives the smallest log loss here. Fit it on validation.

    Of N examples with L labels, a reference counts (N + 1) / (N + L), and each other label
    1 / (N + L), after Platt (1999), "Probabilistic outputs for support vector machines". Else N
    examples that are all right would make the model as sure as can be.

    The log loss of softmax(s * z) is convex in s = 1 / temperature, so its derivative, the mean of
    (expected logit - logit of the reference), changes its sign once: bisection finds it. The logs
    of probabilities take the place of the logits z, from which they differ by a constant.
    """
    rows = confidence_evidence(probabilities, golds, labels).rows
    logs_KL = np.log(np.maximum(rows[:, 1:], np.finfo(np.float64).tiny))
    own_K = logs_KL[rows[:, :1] == np.arange(len(labels))]
    smoothing = len(labels) / (len(rows) + len(labels))
    target_K = (1 - smoothing) * own_K + smoothing * logs_KL.mean(axis=1)
    low, high = 0.1, 10.0
    for _ in range(60):
        sharpness = (low + high) / 2
        powers_KL = np.exp(sharpness * (logs_KL - logs_KL.max(axis=1, keepdims=True)))
        share_KL = powers_KL / powers_KL.sum(axis=1, keepdims=True)
        if ((share_KL * logs_KL).sum(axis=1) - target_K).mean() > 0:
            high = sharpness
        else:
            low = sharpness
    return 2 / (low + high)


def ranking_scores(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> dict[str, float]:
    """`roc_auc` and `average_precision`, without those that the references do not determine.

    They have no intervals: each resample would take as long as all the other scores together.
    """
    rows = confidence_evidence(probabilities, golds, labels).rows
    asked = range(len(labels)) if len(labels) > 2 else [len(labels) - 1]
    ranked = np.array([ranking(rows[:, 1 + label], rows[:, 0] == label) for label in asked])
    names = ("roc_auc", "average_precision")
    known = {name: one[~np.isnan(one)] for name, one in zip(names, ranked.T, strict=True)}
    return {name: float(one.mean()) for name, one in known.items() if one.size}


def ranking(chance_K: FloatArray, is_gold_K: NDArray[np.bool_]) -> tuple[float, float]:
    """The area under the ROC curve and the average precision of one label against the rest.

    Equal probabilities are one point of either curve, as in scikit-learn. NaN if there is no
    example of the label, or of the rest.
    """
    order = np.argsort(-chance_K, kind="stable")
    ordered = chance_K[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    hits = is_gold_K[order].cumsum()[ends].astype(np.float64)
    misses = ends + 1 - hits
    if not hits[-1]:
        return np.nan, np.nan
    average = (np.diff(hits, prepend=0) * hits / (hits + misses)).sum() / hits[-1]
    if not misses[-1]:
        return np.nan, float(average)
    area = np.trapezoid(np.append(0, hits), np.append(0, misses)) / (hits[-1] * misses[-1])
    return float(area), float(average)


def _scores(hits: FloatArray, predicted: FloatArray, support: FloatArray) -> dict[str, FloatArray]:
    """Each score, shape (R,), from the counts of each label, shape (R, labels)."""
    total = support.sum(axis=-1)
    kinds = ("precision", "recall", "f1")
    each = dict(zip(kinds, label_scores(hits, predicted, support), strict=True))
    occurs = support + predicted > 0
    macro = {kind: (each[kind] * occurs).sum(axis=-1) / occurs.sum(axis=-1) for kind in kinds}
    weighted = {kind: (each[kind] * support).sum(axis=-1) / total for kind in kinds}
    binary = hits.shape[-1] == 2
    return {
        "accuracy": hits.sum(axis=-1) / total,
        **{kind: each[kind][..., -1] if binary else macro[kind] for kind in kinds},
        **{f"{kind}_macro": macro[kind] for kind in kinds},
        **{f"{kind}_weighted": weighted[kind] for kind in kinds},
        "unparsable": 1 - predicted.sum(axis=-1) / total,
        "balanced_accuracy": each["recall"].sum(axis=-1) / (support > 0).sum(axis=-1),
        "matthews_correlation": _correlation(hits, predicted, support),
    }


def _correlation(hits: FloatArray, predicted: FloatArray, support: FloatArray) -> FloatArray:
    """Matthews' correlation coefficient of several labels (Gorodkin 2004)."""
    total = support.sum(axis=-1)
    none = total - predicted.sum(axis=-1)
    covariance = hits.sum(axis=-1) * total - (predicted * support).sum(axis=-1)
    of_predictions = total**2 - (predicted**2).sum(axis=-1) - none**2
    of_golds = total**2 - (support**2).sum(axis=-1)
    return ratio(covariance, np.sqrt(of_predictions * of_golds))


def label_scores(
    hits: FloatArray, predicted: FloatArray, support: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1 = 2 hits / (predicted + support) of each label."""
    return ratio(hits, predicted), ratio(hits, support), ratio(2 * hits, predicted + support)


def ratio(top: FloatArray, bottom: FloatArray, otherwise: float = 0.0) -> FloatArray:
    """top / bottom; `otherwise` if bottom is 0."""
    return np.divide(top, bottom, out=np.full_like(top, otherwise), where=bottom > 0)


def _codes(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> FloatArray:
    """(examples, 2): the numbers of reference and prediction; no label is one past the last."""
    check_match(predictions, golds)
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels occur twice: {list(labels)}")
    number = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(golds.values()) - number.keys())
    if unknown:
        raise ValueError(f"gold label(s) {unknown[:3]} are not among the labels {list(labels)}")
    none = len(labels)
    pairs = [(number[gold], number.get(predictions[i], none)) for i, gold in golds.items()]
    return np.array(pairs, dtype=np.float64)
