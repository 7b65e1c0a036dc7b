"""Scores of texts that can have several labels, and of numbers.

Sets of labels: `f1_micro` counts every label of every text alike. `f1_macro` is the mean over the
labels that occur among the references or the predictions. `f1_samples` is the mean over the texts;
a text without any label that got none counts 1. `subset_accuracy` is the share of texts with exactly
the right labels. `mean_average_precision` is the mean, over the labels that occur among the
references, of scikit-learn's average precision. Other scores that would divide by zero are 0.

Numbers: `mae`, `mse`, `r2`, `pearson` and `spearman` as in scikit-learn and scipy. Equal numbers share
the mean of their ranks. A correlation with a constant, and R2 of equal references, do not exist and
are left out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .classification import label_scores, ratio
from .columns import FloatArray, Floats, rows, texts
from .confidence import ranking
from .evidence import CORRELATION, LOSS, Evidence, Scores
from .ids import matched

Sets = Mapping[str, Collection[str]]


def label_set_evidence(predictions: Sets, golds: Sets, labels: Sequence[str]) -> Evidence:
    """Evidence with rows of 0 and 1 for each label: first the reference, then the prediction.

    Raises ValueError unless predictions and references have the same ids and known labels.
    """
    return Evidence(
        ids=texts(golds),
        rows=_flags(predictions, golds, labels),
        statistic=_set_scores,
        vectors={"subset_accuracy": lambda rows_NC: _are_all_right(rows_NC).astype(np.float64)},
    )


def label_set_lists(
    predictions: Sets, golds: Sets, labels: Sequence[str]
) -> dict[str, list[float]]:
    """Precision, recall, F1 and the number of references, each as a list in the order of labels."""
    gold_KL, predicted_KL = np.hsplit(_flags(predictions, golds, labels)[:], 2)
    support = gold_KL.sum(axis=0)
    hits = (gold_KL * predicted_KL).sum(axis=0)
    each = (*label_scores(hits, predicted_KL.sum(axis=0), support), support.astype(np.int64))
    names = ("precision", "recall", "f1", "support")
    return {f"{name}_per_label": one.tolist() for name, one in zip(names, each, strict=True)}


def label_set_ranking(
    probabilities: Mapping[str, Sequence[float]], golds: Sets, labels: Sequence[str]
) -> dict[str, float]:
    """`mean_average_precision`, if any label occurs. It has no interval, as it is slow to compute."""
    chance_KL, gold_KL = _chances(probabilities, golds, labels)
    each = [
        ranking(chance_K, gold_K)[1]
        for chance_K, gold_K in zip(chance_KL.T, gold_KL.T, strict=True)
        if gold_K.any()
    ]
    return {"mean_average_precision": float(np.mean(each))} if each else {}


def fit_label_thresholds(
    probabilities: Mapping[str, Sequence[float]], golds: Sets, labels: Sequence[str]
) -> list[float]:
    """For each label the threshold that gives the best F1 here. Fit it on validation.

    It lies in the middle between two probabilities that occur, or an end of [0, 1] and one. Of
    equally good ones, the nearest to 0.5 is taken; 0.5 for a label that does not occur.
    """
    chance_KL, gold_KL = _chances(probabilities, golds, labels)
    pairs = zip(chance_KL.T, gold_KL.T, strict=True)
    return [_best_threshold(chance_K, gold_K) for chance_K, gold_K in pairs]


def _best_threshold(chance_K: FloatArray, is_gold_K: NDArray[np.bool_]) -> float:
    found = np.unique(chance_K)
    limits = np.append(0.5, (np.append(0.0, found[:-1]) + found) / 2)
    above = chance_K > limits[:, None]
    hits, given = (above & is_gold_K).sum(axis=1), above.sum(axis=1)
    scores = ratio(2.0 * hits, given + float(is_gold_K.sum()))
    best = limits[scores == scores.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def number_evidence(predictions: Mapping[str, float], golds: Mapping[str, float]) -> Evidence:
    """Evidence with rows of reference and prediction.

    Raises ValueError unless predictions and references have the same ids.
    """
    pairs = ((gold, said) for said, gold in matched(predictions, golds))
    return Evidence(
        ids=texts(golds),
        rows=rows(pairs, len(golds), 2),
        statistic=_number_scores,
        vectors={
            "mae": lambda rows_NC: np.abs(rows_NC[:, 0] - rows_NC[:, 1]),
            "mse": lambda rows_NC: (rows_NC[:, 0] - rows_NC[:, 1]) ** 2,
        },
        bounds={
            "mae": LOSS,
            "mse": LOSS,
            "r2": (-np.inf, 1.0),
            "pearson": CORRELATION,
            "spearman": CORRELATION,
        },
    )


def _number_scores(rows_KC: FloatArray) -> Scores:
    gold_K, predicted_K = rows_KC.T
    error_K = predicted_K - gold_K
    gold_ranks, predicted_ranks = _ranks(gold_K), _ranks(predicted_K)

    def scores(counts_RK: FloatArray) -> dict[str, FloatArray]:
        total_R = counts_RK.sum(axis=1)
        mse = counts_RK @ error_K**2 / total_R
        _, variance = _centred(counts_RK, gold_K)
        ranks = gold_ranks(counts_RK), predicted_ranks(counts_RK)
        return {
            "mae": counts_RK @ np.abs(error_K) / total_R,
            "mse": mse,
            "r2": 1 - ratio(mse, variance, otherwise=np.nan),
            "pearson": _correlation(counts_RK, gold_K, predicted_K),
            "spearman": _correlation(counts_RK, *ranks),
        }

    return scores


def _centred(counts_RK: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values minus their mean in each resample (R, K), and their variance (R,), 0 if all are equal."""
    total_R = counts_RK.sum(axis=1)
    centred = values - ((counts_RK * values).sum(axis=1) / total_R)[:, None]
    variance = (counts_RK * centred**2).sum(axis=1) / total_R
    size = np.abs(values).max()
    return centred, np.where(variance > (1e-12 * size) ** 2, variance, 0.0)


def _correlation(counts_RK: FloatArray, one: FloatArray, other: FloatArray) -> FloatArray:
    """Pearson's correlation in each resample; NaN if either side is constant.

    one, other: values (K,), or values in each resample (R, K).
    """
    first, first_variance = _centred(counts_RK, one)
    second, second_variance = _centred(counts_RK, other)
    covariance = (counts_RK * first * second).sum(axis=1) / counts_RK.sum(axis=1)
    return ratio(covariance, np.sqrt(first_variance * second_variance), otherwise=np.nan)


def _ranks(values_K: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """What maps the counts (R, K) to the rank of each row in each resample (R, K); equal values have
    the mean of their ranks.
    """
    distinct, place_K = np.unique(values_K, return_inverse=True)

    def ranks(counts_RK: FloatArray) -> FloatArray:
        held = [np.bincount(place_K, weights=own, minlength=len(distinct)) for own in counts_RK]
        held_RV = np.array(held)
        return (held_RV.cumsum(axis=1) - (held_RV - 1) / 2)[:, place_K]

    return ranks


def _set_scores(rows_KC: FloatArray) -> Scores:
    gold_KL, predicted_KL = np.hsplit(rows_KC, 2)
    both_KL = gold_KL * predicted_KL
    own = label_scores(*(part.sum(axis=1) for part in (both_KL, predicted_KL, gold_KL)))[2]
    right_K = _are_all_right(rows_KC)
    sample_K = np.where(rows_KC.sum(axis=1) == 0, 1.0, own)

    def scores(counts_RK: FloatArray) -> dict[str, FloatArray]:
        total_R = counts_RK.sum(axis=1)
        hits, predicted, support = (counts_RK @ part for part in (both_KL, predicted_KL, gold_KL))
        sums = [part.sum(axis=1) for part in (hits, predicted, support)]
        precision, recall, micro = label_scores(*sums)
        f1_RL = label_scores(hits, predicted, support)[2]
        occurs = (support + predicted > 0).sum(axis=1).astype(np.float64)
        return {
            "subset_accuracy": counts_RK @ right_K / total_R,
            "f1_micro": micro,
            "f1_macro": ratio(f1_RL.sum(axis=1), occurs),
            "f1_samples": counts_RK @ sample_K / total_R,
            "precision_micro": precision,
            "recall_micro": recall,
        }

    return scores


def _are_all_right(rows_KC: FloatArray) -> NDArray[np.bool_]:
    gold_KL, predicted_KL = np.hsplit(rows_KC, 2)
    return (gold_KL == predicted_KL).all(axis=1)


def _flags(predictions: Sets, golds: Sets, labels: Sequence[str]) -> Floats:
    """(examples, 2 labels): 1 for each label of the reference, then of the prediction."""
    pairs = matched(predictions, golds)
    known = set(labels)
    for what, sets in (("references", golds), ("predictions", predictions)):
        unknown = sorted({label for own in sets.values() for label in own} - known)
        if unknown:
            raise ValueError(f"{what}: these are not labels: {unknown[:3]}")
    flags = ([label in its for its in (gold, said) for label in labels] for said, gold in pairs)
    return rows(flags, len(golds), 2 * len(labels))


def _chances(
    probabilities: Mapping[str, Sequence[float]], golds: Sets, labels: Sequence[str]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """(examples, labels): the probability of each label, and whether the reference has it."""
    chances = (own for own, _ in matched(probabilities, golds))
    flags = ([label in gold for label in labels] for gold in golds.values())
    size = len(golds), len(labels)
    return rows(chances, *size)[:], rows(flags, *size)[:] > 0
