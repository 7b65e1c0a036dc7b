"""Laws of the scores of labels: equal to scikit-learn."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from eval.metrics import classification, measure
from eval.metrics.evidence import scores_of


def keyed(*lists: Sequence[str]) -> list[dict[str, str]]:
    return [{str(number): label for number, label in enumerate(one)} for one in lists]


def scores(given: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    return scores_of(classification.classification_evidence(*keyed(given, golds), labels))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_classification_equals_scikit_learn(size):
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    draw = random.Random(size)
    labels = [f"label {i}" for i in range(size)]
    kinds = ("precision", "recall", "f1")
    for _ in range(40):
        count = draw.randint(1, 40)
        golds = draw.choices(labels[: draw.randint(1, size)], k=count)
        given = draw.choices([*labels, "none of them"], k=count)
        ours = scores(given, golds, labels)
        assert ours["accuracy"] == pytest.approx(accuracy_score(golds, given))
        assert ours["unparsable"] == pytest.approx(given.count("none of them") / count)

        def theirs(average, labels, golds=golds, given=given):
            found = precision_recall_fscore_support(
                golds, given, labels=labels, average=average, zero_division=0
            )
            return dict(zip(kinds, found[:3], strict=True))

        macro = theirs("macro", [label for label in labels if label in {*golds, *given}])
        plain = theirs(None, labels[-1:]) if size == 2 else macro
        for kind in kinds:
            assert ours[kind] == pytest.approx(float(np.squeeze(plain[kind])))
            assert ours[f"{kind}_macro"] == pytest.approx(macro[kind])
            assert ours[f"{kind}_weighted"] == pytest.approx(theirs("weighted", labels)[kind])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_scores_for_uneven_labels_equal_scikit_learn(size):
    from sklearn.metrics import (
        balanced_accuracy_score,
        matthews_corrcoef,
        precision_recall_fscore_support,
    )

    draw = random.Random(size)
    labels = [f"label {i}" for i in range(size)]
    for _ in range(40):
        count = draw.randint(1, 40)
        golds = draw.choices(labels, weights=range(1, size + 1), k=count)
        given = draw.choices([*labels, "none of them"], k=count)
        ours = scores(given, golds, labels)
        assert ours["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(golds, given), abs=1e-9
        )
        assert ours["matthews_correlation"] == pytest.approx(
            matthews_corrcoef(golds, given), abs=1e-9
        )
        each = classification.scores_per_label(*keyed(given, golds), labels)
        theirs = precision_recall_fscore_support(golds, given, labels=labels, zero_division=0)
        assert [*each] == [f"{name}_per_label" for name in ("precision", "recall", "f1", "support")]
        for ours_each, theirs_each in zip(each.values(), theirs, strict=True):
            assert ours_each == pytest.approx(theirs_each.tolist(), abs=1e-9)


def test_confusion_counts_references_by_predictions_and_predictions_that_are_not_labels():
    predictions = {"1": "a", "2": "b", "3": "?", "4": "b"}
    golds = {"1": "a", "2": "a", "3": "b", "4": "b"}
    counts = classification.confusion(predictions, golds, ["a", "b"])
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_labels_that_do_not_occur_count_for_nothing():
    """As in scikit-learn's default: of four labels three occur, and a perfect system scores 1."""
    from sklearn.metrics import precision_recall_fscore_support

    labels, golds = ["a", "b", "c", "d"], ["a", "b", "c", "a"]
    for given in (golds, ["a", "a", "c", "b"], ["a", "d", "c", "a"]):
        ours = scores(given, golds, labels)
        theirs = precision_recall_fscore_support(golds, given, average="macro", zero_division=0)
        assert [ours[kind] for kind in ("precision", "recall", "f1")] == pytest.approx(theirs[:3])
    truth = {str(number): gold for number, gold in enumerate(golds)}
    found = measure.classification_results(truth, truth, labels)
    assert found["f1_macro_ci95"] == pytest.approx(found["accuracy_ci95"])
