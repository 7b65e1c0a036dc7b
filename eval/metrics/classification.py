"""Accuracy, precision, recall and F1 of labels.

With two labels, `precision`, `recall` and `f1` are those of the last label, the positive one, as in
scikit-learn's `average="binary"`. With more labels they are the mean over the labels (`macro`) that
occur among the references or the predictions, as in scikit-learn. A score that would divide by zero
is 0. A prediction that is not one of the labels is wrong and counts for no label; the share of such
predictions is `unparsable`. `balanced_accuracy` is the mean recall of the labels that occur among
the references, and `matthews_correlation` counts "no label" as a label of its own; both are those
of scikit-learn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .columns import FloatArray, Floats, IntArray, binned, rows, texts
from .evidence import CORRELATION, Evidence, Scores
from .ids import matched


def confusion(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> IntArray:
    """Counts by reference (rows) and prediction (columns); the last column is for no label."""
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for piece in _codes(predictions, golds, labels).pieces():
        np.add.at(counts, tuple(piece.T.astype(np.int64)), 1)
    return counts


def classification_evidence(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> Evidence:
    """Evidence with rows of (reference, prediction) as numbers of labels.

    If there are two labels, the positive one is the last. Raises ValueError unless predictions and
    references have the same ids.
    """
    size = len(labels)

    def statistic(rows_KC: FloatArray) -> Scores:
        gold_K, predicted_K = rows_KC.T.astype(np.min_scalar_type(size))
        hit_K = np.where(gold_K == predicted_K, gold_K, gold_K.dtype.type(size))
        return lambda counts_RK: _scores(
            *(_of_each(code_K, counts_RK, size) for code_K in (hit_K, predicted_K, gold_K))
        )

    return Evidence(
        ids=texts(golds),
        rows=_codes(predictions, golds, labels),
        statistic=statistic,
        vectors={
            "accuracy": lambda rows_NC: (rows_NC[:, 0] == rows_NC[:, 1]).astype(np.float64),
            "unparsable": lambda rows_NC: (rows_NC[:, 1] == size).astype(np.float64),
        },
        bounds={"matthews_correlation": CORRELATION},
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


def _of_each(code_K: NDArray[np.unsignedinteger], counts_RK: FloatArray, size: int) -> FloatArray:
    """How often each label occurs in each resample (R, labels); `size` is the code of no label."""
    return binned(code_K, size + 1, counts_RK)[:, :size]


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
) -> Floats:
    """(examples, 2): the numbers of reference and prediction; no label is one past the last."""
    pairs = matched(predictions, golds)
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels occur twice: {list(labels)}")
    number = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(golds.values()) - number.keys())
    if unknown:
        raise ValueError(f"gold label(s) {unknown[:3]} are not among the labels {list(labels)}")
    none = len(labels)
    codes = ((number[gold], number.get(said, none)) for said, gold in pairs)
    return rows(codes, len(golds), 2)
