"""How far probabilities can be trusted: calibration, ranking, and what is right of the surest part.

`roc_auc` and `average_precision` are those of the last label if there are two; with more labels
they are the mean, over the labels that occur, of each label against the rest.

Selective prediction: whoever leaves the least sure predictions to a person keeps a share of all, the
coverage. `accuracy_at_coverage_80` is the accuracy of the surest 80 %, and `aurc` is the area under
the curve of risk by coverage. A label is as sure as its probability, and an answer as sure as it is
unlikely that there is none. A threshold can only keep or leave predictions that are equally sure
together, so the order of the rows never matters.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .catalogue import COVERAGES
from .classification import ratio
from .evidence import LOSS, Evidence, FloatArray
from .ids import check_match

_BINS = 15
DECIDED = ("no", "yes")
"""The labels of `decisions`."""


def confidence_evidence(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> Evidence:
    """Evidence with rows of the reference's number and the probability of each label.

    Raises ValueError unless probabilities and references have the same ids.
    """
    check_match(probabilities, golds)
    rows = np.array([[labels.index(gold), *probabilities[i]] for i, gold in golds.items()])
    squares_K, losses_K = _squares_and_losses(rows)
    return Evidence(
        ids=tuple(golds),
        rows=rows,
        statistic=_confidence,
        vectors={"brier_score": squares_K, "log_loss": losses_K},
        bounds={"brier_score": (0.0, 1.0 if len(labels) == 2 else 2.0), "log_loss": LOSS},
    )


def _squares_and_losses(rows_KC: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The Brier score and the log loss of each row."""
    chances_KL = rows_KC[:, 1:]
    size = chances_KL.shape[1]
    is_gold_KL = rows_KC[:, :1] == np.arange(size)
    squares_K = ((chances_KL - is_gold_KL) ** 2).sum(axis=1) / (2 if size == 2 else 1)
    smallest = np.finfo(np.float64).eps
    return squares_K, -np.log(np.clip(chances_KL[is_gold_KL], smallest, 1 - smallest))


def _confidence(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
    chances_KL, total_R = rows_KC[:, 1:], counts_RK.sum(axis=1)
    is_gold_KL = rows_KC[:, :1] == np.arange(chances_KL.shape[1])
    squares_K, losses_K = _squares_and_losses(rows_KC)
    return {
        "brier_score": counts_RK @ squares_K / total_R,
        "log_loss": counts_RK @ losses_K / total_R,
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


def decisions(
    probabilities: Mapping[str, Sequence[float]],
    golds: Mapping[str, Collection[str]],
    labels: Sequence[str],
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Probabilities and references as if each label of each text were an example of its own, with the
    labels DECIDED. The log loss of these is the binary cross-entropy of the sigmoids.
    """
    check_match(probabilities, golds)
    chances, truth = {}, {}
    for id_, gold in golds.items():
        for label, chance in zip(labels, probabilities[id_], strict=True):
            key = json.dumps([id_, label])
            chances[key] = (1 - chance, chance)
            truth[key] = DECIDED[label in gold]
    return chances, truth


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


class Curve(NamedTuple):
    """The mean score of the surest predictions, for each share that a threshold can keep."""

    coverage: FloatArray
    """From above 0 to 1, in rising order."""
    score: FloatArray


def selective_evidence(
    sureness: Mapping[str, float], scores: Mapping[str, Mapping[str, float]], best: float = 1.0
) -> Evidence:
    """Evidence with rows of how sure a prediction is, and of each of its scores.

    scores: by name, the score of each example, from 0 to `best`. A risk is 1 - score / best. Raises
    ValueError unless all hold the same ids.
    """
    for one in scores.values():
        check_match(sureness, one)
    names = list(scores)
    rows = [[sureness[id_], *(scores[name][id_] for name in names)] for id_ in sureness]

    def statistic(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        found = {}
        for column, name in enumerate(names, start=1):
            coverage_RT, mean_RT, weight_RT = _kept(counts_RK, rows_KC[:, 0], rows_KC[:, column])
            ending = "" if len(names) == 1 else f"_{name}"
            found[f"aurc{ending}"] = (weight_RT * (1 - mean_RT / best)).sum(axis=1)
            for share in COVERAGES:
                # The tolerance is for 0.95 * n that is a whole number.
                first_R = (coverage_RT >= share / 100 - 1e-9).argmax(axis=1)
                found[f"{name}_at_coverage_{share}"] = mean_RT[np.arange(len(mean_RT)), first_R]
        return found

    kept = [f"{name}_at_coverage_{share}" for name in names for share in COVERAGES]
    return Evidence(
        ids=tuple(sureness),
        rows=np.array(rows),
        statistic=statistic,
        bounds=dict.fromkeys(kept, (0.0, best)),
    )


def selective_curve(sureness: Sequence[float], scores: Sequence[float]) -> Curve:
    """The curve of one score. If it runs from 0 to 1, `aurc` is the area above the curve."""
    ones = np.ones((1, len(sureness)))
    coverage_RT, mean_RT, _ = _kept(ones, np.array(sureness), np.array(scores))
    return Curve(coverage_RT[0], mean_RT[0])


def _kept(
    counts_RK: FloatArray, sureness_K: FloatArray, score_K: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """For each threshold T, the surest first: the coverage, the mean score of what it keeps, and the
    share of examples that are exactly so sure; each of shape (R, T).

    AURC = 1 / n * the sum over the examples x of the risk of all that are at least as sure as x:
    Geifman, Uziel and El-Yaniv 2019, "Bias-Reduced Uncertainty Estimation for Deep Neural
    Classifiers", section 3. So each threshold counts as often as examples are exactly so sure.
    """
    order = np.lexsort((score_K, -sureness_K))  # by score too: sums must not depend on the order
    ordered = sureness_K[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    number_RT = counts_RK[:, order].cumsum(axis=1)[:, ends]
    sum_RT = (counts_RK[:, order] * score_K[order]).cumsum(axis=1)[:, ends]
    total_R1 = counts_RK.sum(axis=1, keepdims=True)
    weight_RT = np.diff(number_RT, axis=1, prepend=0) / total_R1
    return number_RT / total_R1, ratio(sum_RT, number_RT), weight_RT
