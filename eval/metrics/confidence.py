"""How far probabilities can be trusted: calibration, ranking, and what is right of the surest part.

`roc_auc` and `average_precision` are those of the last label if there are two; with more labels
they are the mean, over the labels that occur, of each label against the rest.

Selective prediction: whoever leaves the least sure predictions to a person keeps a share of all, the
coverage. `accuracy_at_coverage_80` is the accuracy of the surest 80 %, and `aurc` is the area under
the curve of risk by coverage. A label is as sure as its probability, and an answer as sure as it is
unlikely that there is none. A threshold can only keep or leave predictions that are equally sure
together, so the order of the rows never matters.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llama_peft.system.sequences.arrays import LongArray

from .catalogue import COVERAGES
from .classification import ratio
from .columns import FloatArray, Floats, Texts, in_pieces, rows, texts
from .evidence import LOSS, Evidence, Scores
from .ids import matched

_BINS = 15
_BLOCK = 50_000
"""Examples whose bins are in memory at a time."""


def confidence_evidence(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> Evidence:
    """Evidence with rows of the reference's number and the probability of each label.

    Raises ValueError unless probabilities and references have the same ids.
    """
    pairs = matched(probabilities, golds)
    found = ((labels.index(gold), *_each_once(own, labels)) for own, gold in pairs)
    return _evidence(texts(golds), rows(found, len(golds), 1 + len(labels)), labels)


def decision_evidence(
    probabilities: Mapping[str, Sequence[float]],
    golds: Mapping[str, Collection[str]],
    labels: Sequence[str],
) -> Evidence:
    """The same evidence as if each label of each text were an example of its own, with the labels "no"
    and "yes". Its log loss is the binary cross-entropy of the sigmoids.
    """
    found = (
        (label in gold, 1 - chance, chance)
        for own, gold in matched(probabilities, golds)
        for label, chance in zip(labels, own, strict=True)
    )
    size = len(golds) * len(labels)
    return _evidence(texts(map(str, range(size))), rows(found, size, 3), ("no", "yes"))


def _each_once(chances: Sequence[float], labels: Sequence[str]) -> Sequence[float]:
    if len(chances) != len(labels):
        raise ValueError(f"there are {len(chances)} probabilities for {len(labels)} labels")
    return chances


def _evidence(ids: Texts, rows_NC: Floats, labels: Sequence[str]) -> Evidence:
    return Evidence(
        ids=ids,
        rows=rows_NC,
        statistic=_confidence,
        vectors={
            "brier_score": lambda rows_NC: _squares_and_losses(rows_NC)[0],
            "log_loss": lambda rows_NC: _squares_and_losses(rows_NC)[1],
        },
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


def _confidence(rows_KC: FloatArray) -> Scores:
    squares_K, losses_K = in_pieces(rows_KC, _squares_and_losses)
    bins = Bins(*in_pieces(rows_KC, _binned))

    def scores(counts_RK: FloatArray) -> dict[str, FloatArray]:
        total_R = counts_RK.sum(axis=1)
        return {
            "brier_score": counts_RK @ squares_K / total_R,
            "log_loss": counts_RK @ losses_K / total_R,
            "ece": _calibration_error(counts_RK, bins) / total_R,
        }

    return scores


class Bins(NamedTuple):
    """What calibration needs to know of each example."""

    bin_K: NDArray[np.int8]
    chance_K: FloatArray
    """Its highest probability."""
    right_K: FloatArray
    """1 if the label that has it is right, else 0."""


def _calibration_error(counts_RK: FloatArray, bins: Bins) -> FloatArray:
    """The examples times the expected calibration error of the likeliest label, over M = 15 bins of equal width.

    ECE = sum over the bins B of |B| / n * |accuracy(B) - mean probability(B)|, where bin m holds
    the probabilities in ((m - 1) / M, m / M]: Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3.
    """
    gap_K = bins.right_K - bins.chance_K
    sums_RB = np.zeros((len(counts_RK), _BINS))
    for first in range(0, len(gap_K), _BLOCK):
        own = slice(first, first + _BLOCK)
        in_bin_KB = bins.bin_K[own, None] == np.arange(_BINS)
        sums_RB += counts_RK[:, own] @ (in_bin_KB * gap_K[own, None])
    return np.abs(sums_RB).sum(axis=1)


def _binned(rows_KC: FloatArray) -> Bins:
    chances_KL = rows_KC[:, 1:]
    chosen_K = chances_KL.argmax(axis=1)
    chance_K = np.take_along_axis(chances_KL, chosen_K[:, None], axis=1)[:, 0]
    bin_K = np.clip(np.ceil(chance_K * _BINS) - 1, 0, _BINS - 1).astype(np.int8)
    return Bins(bin_K, chance_K, (rows_KC[:, 0] == chosen_K).astype(np.float64))


def reliability(
    probabilities: Mapping[str, Sequence[float]], golds: Mapping[str, str], labels: Sequence[str]
) -> dict[str, list[float]]:
    """The bins of `ece`: examples, their mean highest probability, and their accuracy, as
    `reliability_<name>_per_bin`. An empty bin has 0 for all three.
    """
    rows_KC = confidence_evidence(probabilities, golds, labels).rows[:]
    bins = Bins(*in_pieces(rows_KC, _binned))
    size = np.bincount(bins.bin_K, minlength=_BINS).astype(np.float64)
    each_K = (bins.chance_K, bins.right_K)
    sums = [np.bincount(bins.bin_K, weights=one_K, minlength=_BINS) for one_K in each_K]
    each = (size.astype(np.int64), *(ratio(one.astype(np.float64), size) for one in sums))
    names = ("count", "confidence", "accuracy")
    return {
        f"reliability_{name}_per_bin": one.tolist() for name, one in zip(names, each, strict=True)
    }


def fit_temperature(evidence: Evidence) -> float:
    """The temperature from 0.1 to 10 that gives the smallest log loss here. Fit it on validation.

    evidence: that of `confidence_evidence` or of `decision_evidence`.

    Of N examples with L labels, a reference counts (N + 1) / (N + L), and each other label
    1 / (N + L), after Platt (1999), "Probabilistic outputs for support vector machines". Else N
    examples that are all right would make the model as sure as can be.

    The log loss of softmax(s * z) is convex in s = 1 / temperature, so its derivative, the mean of
    (expected logit - logit of the reference), changes its sign once: bisection finds it. The logs
    of probabilities take the place of the logits z, from which they differ by a constant.
    """
    rows_KC = evidence.rows[:]
    logs_KL = np.log(np.maximum(rows_KC[:, 1:], np.finfo(np.float64).tiny))
    size = logs_KL.shape[1]
    own_K = logs_KL[rows_KC[:, :1] == np.arange(size)]
    smoothing = size / (len(rows_KC) + size)
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
    known_NC = confidence_evidence(probabilities, golds, labels).rows
    asked = range(len(labels)) if len(labels) > 2 else [len(labels) - 1]
    gold_N = known_NC.column(0)
    ranked = np.array([ranking(known_NC.column(1 + label), gold_N == label) for label in asked])
    names = ("roc_auc", "average_precision")
    known = {name: one[~np.isnan(one)] for name, one in zip(names, ranked.T, strict=True)}
    return {name: float(one.mean()) for name, one in known.items() if one.size}


def ranking(chance_K: FloatArray, is_gold_K: NDArray[np.bool_]) -> tuple[float, float]:
    """The area under the ROC curve and the average precision of one label against the rest.

    Equal probabilities are one point of either curve, as in scikit-learn. NaN if there is no
    example of the label, or of the rest.
    """
    order = np.argsort(-chance_K, kind="stable")
    ordered, right = chance_K[order], is_gold_K[order]
    del order  # these arrays are large
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    del ordered
    hits = right.cumsum()[ends].astype(np.float64)
    misses = ends + 1 - hits
    if not hits[-1]:
        return np.nan, np.nan
    average = np.diff(hits, prepend=0)
    average *= hits
    average /= ends + 1
    average = average.sum() / hits[-1]
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
    ids: Texts, sureness: FloatArray, scores: Mapping[str, FloatArray], best: float = 1.0
) -> Evidence:
    """Evidence with rows of how sure a prediction is, and of each of its scores.

    sureness, scores: in the order of `ids`. scores: by name, from 0 to `best`. A risk is
    1 - score / best.
    """
    names = list(scores)

    def statistic(rows_KC: FloatArray) -> Scores:
        kept = {name: _kept(rows_KC[:, 0], rows_KC[:, 1 + i]) for i, name in enumerate(names)}

        def found(counts_RK: FloatArray) -> dict[str, FloatArray]:
            result = {}
            for name, own in kept.items():
                coverage_RT, mean_RT, weight_RT = own(counts_RK)
                ending = "" if len(names) == 1 else f"_{name}"
                risk_RT = mean_RT / best
                np.subtract(1, risk_RT, out=risk_RT)
                risk_RT *= weight_RT
                result[f"aurc{ending}"] = risk_RT.sum(axis=1)
                for share in COVERAGES:
                    # The tolerance is for 0.95 * n that is a whole number.
                    first_R = (coverage_RT >= share / 100 - 1e-9).argmax(axis=1)
                    one_R = mean_RT[np.arange(len(mean_RT)), first_R]
                    result[f"{name}_at_coverage_{share}"] = one_R
            return result

        return found

    kept = [f"{name}_at_coverage_{share}" for name in names for share in COVERAGES]
    return Evidence(
        ids=ids,
        rows=LongArray.of(np.stack([sureness, *scores.values()], axis=1)),
        statistic=statistic,
        bounds=dict.fromkeys(kept, (0.0, best)),
    )


def selective_curve(
    sureness: Sequence[float] | FloatArray, scores: Sequence[float] | FloatArray
) -> Curve:
    """The curve of one score. If it runs from 0 to 1, `aurc` is the area above the curve."""
    kept = _kept(np.array(sureness), np.array(scores))
    coverage_RT, mean_RT, _ = kept(np.ones((1, len(sureness))))
    return Curve(coverage_RT[0], mean_RT[0])


def _kept(
    sureness_K: FloatArray, score_K: FloatArray
) -> Callable[[FloatArray], tuple[FloatArray, FloatArray, FloatArray]]:
    """What maps the counts (R, K), for each threshold T, the surest first, to the coverage, the mean
    score of what it keeps, and the share of examples that are exactly so sure; each of shape (R, T).

    AURC = 1 / n * the sum over the examples x of the risk of all that are at least as sure as x:
    Geifman, Uziel and El-Yaniv 2019, "Bias-Reduced Uncertainty Estimation for Deep Neural
    Classifiers", section 3. So each threshold counts as often as examples are exactly so sure.
    """
    order = np.lexsort((score_K, -sureness_K))  # by score too: sums must not depend on the order
    ordered = sureness_K[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    score_K, are_alone = score_K[order], len(ends) == len(order)

    def summed(values_RK: FloatArray) -> FloatArray:
        sums_RK = values_RK.cumsum(axis=1)
        return sums_RK if are_alone else sums_RK[:, ends]

    def kept(counts_RK: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        own_RK = counts_RK[:, order]
        number_RT = summed(own_RK)
        own_RK *= score_K
        mean_RT = summed(own_RK)
        del own_RK  # these arrays are large
        np.divide(mean_RT, number_RT, out=mean_RT, where=number_RT > 0)
        total_R1 = counts_RK.sum(axis=1, keepdims=True)
        weight_RT = np.diff(number_RT, axis=1, prepend=0)
        weight_RT /= total_R1
        number_RT /= total_R1
        return number_RT, mean_RT, weight_RT

    return kept
