"""Accuracy, precision, recall and F1 of labels.

With two labels `precision`, `recall` and `f1` are those of the last label, the positive one, as in
scikit-learn's `average="binary"`; with more they are the mean over labels (`macro`), as there over
those that stand among the golds or the predictions. Where a score divides by nothing it is 0. A
prediction that is none of the labels (a generated text that names none) is wrong, counts for no
label, and its share is `unparsable`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Evidence, FloatArray, point
from .ids import check_match


def classification_scores(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Every score, as a fraction; `labels` in their order, the positive one of two last."""
    return point(_evidence(predictions, golds, labels, ids=()))


def per_example_correct(predictions: Sequence[str], golds: Sequence[str]) -> FloatArray:
    """1.0 where the prediction is the gold label."""
    _check_lengths(predictions, golds)
    return np.array([float(p == g) for p, g in zip(predictions, golds, strict=True)])


def per_class_scores(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """For each label its precision, recall, f1 and support (the number of golds)."""
    counts = confusion(predictions, golds, labels)
    hits, support = np.diag(counts), counts.sum(axis=1)
    precision, recall, f1 = _label_scores(hits, counts[:, : len(labels)].sum(axis=0), support)
    return {
        label: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, label in enumerate(labels)
    }


def confusion(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]
) -> NDArray[np.int64]:
    """Counts by gold label (rows) and predicted label (columns), the last column for none."""
    codes = _codes(predictions, golds, labels).astype(np.int64)
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    np.add.at(counts, (codes[:, 0], codes[:, 1]), 1)
    return counts


def classification_evidence(
    predictions: Mapping[str, str], golds: Mapping[str, str], labels: Sequence[str]
) -> Evidence:
    """Rows of (gold, predicted) label numbers. Raises ValueError unless ids match one for one."""
    check_match(predictions, golds)
    return _evidence([predictions[i] for i in golds], list(golds.values()), labels, tuple(golds))


def _evidence(
    predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str], ids: tuple[str, ...]
) -> Evidence:
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
    correct = per_example_correct(predictions, golds)
    return Evidence(ids=ids, rows=codes, statistic=statistic, vectors={"accuracy": correct})


def _scores(hits: FloatArray, predicted: FloatArray, support: FloatArray) -> dict[str, FloatArray]:
    """From counts a label, shape (R, labels), to each score, shape (R,)."""
    total = support.sum(axis=-1)
    kinds = ("precision", "recall", "f1")
    each = dict(zip(kinds, _label_scores(hits, predicted, support), strict=True))
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
    }


def _label_scores(
    hits: NDArray[np.generic], predicted: NDArray[np.generic], support: NDArray[np.generic]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1 = 2 hits / (predicted + support) of each label."""

    def ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> FloatArray:
        top, bottom = above.astype(np.float64), below.astype(np.float64)
        return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)

    both = predicted.astype(np.float64) + support.astype(np.float64)
    return ratio(hits, predicted), ratio(hits, support), ratio(2 * hits.astype(np.float64), both)


def _codes(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> FloatArray:
    """(examples, 2): numbers of gold and predicted label; one past the last for no label."""
    _check_lengths(predictions, golds)
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels occur twice: {list(labels)}")
    number = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(golds) - number.keys())
    if unknown:
        raise ValueError(f"gold label(s) {unknown[:3]} are not among the labels {list(labels)}")
    none = len(labels)
    pairs = [(number[g], number.get(p, none)) for p, g in zip(predictions, golds, strict=True)]
    return np.array(pairs, dtype=np.float64)


def _check_lengths(predictions: Sequence[str], golds: Sequence[str]) -> None:
    if len(predictions) != len(golds):
        raise ValueError(f"{len(predictions)} predictions for {len(golds)} golds")
    if not golds:
        raise ValueError("there is nothing to score: no predictions and no references")
