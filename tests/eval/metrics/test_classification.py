"""Laws of the scores of labels: equal to scikit-learn."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from eval.metrics import classification, measure
from eval.metrics.bootstrap import scores_of
from llama_peft.inference.predict import tempered


def keyed(*lists: Sequence[str]) -> list[dict[str, str]]:
    return [{str(number): label for number, label in enumerate(one)} for one in lists]


def scores(given: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    return scores_of(classification.classification_evidence(*keyed(given, golds), labels))


def confidence(chances: np.ndarray, codes: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    known = {str(number): one for number, one in enumerate(chances.tolist())}
    (golds,) = keyed([labels[code] for code in codes])
    found = scores_of(classification.confidence_evidence(known, golds, labels))
    return found | classification.ranking_scores(known, golds, labels)


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


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("digits", [1, 16])
def test_confidence_equals_scikit_learn(size, digits):
    """With one digit most probabilities are equal to another one; 0 and 1 occur too."""
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    draw = np.random.default_rng(size)
    labels = [f"label {i}" for i in range(size)]
    for _ in range(20):
        codes = np.append(np.arange(size), draw.integers(0, size, draw.integers(1, 60)))
        chances = draw.dirichlet(np.ones(size), len(codes)).round(digits)
        chances[:, 0] += 1 - chances.sum(axis=1)
        chances = np.abs(chances) / np.abs(chances).sum(axis=1, keepdims=True)
        ours = confidence(chances, codes, labels)
        asked = chances[:, 1] if size == 2 else chances
        hot = codes if size == 2 else np.eye(size)[codes]
        theirs = {
            "brier_score": brier_score_loss(codes, asked, labels=range(size)),
            "log_loss": log_loss(codes, chances, labels=range(size)),
            "roc_auc": roc_auc_score(codes, asked, multi_class="ovr"),
            "average_precision": average_precision_score(hot, asked),
            "ece": plain_ece(chances, codes),
        }
        assert ours == pytest.approx(theirs, abs=1e-9)


def plain_ece(chances: np.ndarray, codes: np.ndarray) -> float:
    """The formula of Guo et al. 2017, bin by bin."""
    best, right = chances.max(axis=1), chances.argmax(axis=1) == codes
    gaps = []
    for number in range(15):
        within = (best > number / 15) & (best <= (number + 1) / 15)
        if within.any():
            gaps.append(within.mean() * abs(right[within].mean() - best[within].mean()))
    return float(sum(gaps))


def test_confidence_by_hand():
    """Of two sure predictions (0.9) one is right, and so is an unsure one (0.6)."""
    chances = np.array([[0.1, 0.9], [0.1, 0.9], [0.6, 0.4]])
    found = confidence(chances, np.array([1, 0, 0]), ["no", "yes"])
    assert found["ece"] == pytest.approx((2 * 0.4 + 0.4) / 3)
    assert found["brier_score"] == pytest.approx((0.01 + 0.81 + 0.16) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.1, 0.6]).mean())
    assert (found["roc_auc"], found["average_precision"]) == (0.75, 0.5)


def test_a_label_that_does_not_occur_has_no_curve():
    found = confidence(np.array([[0.2, 0.8], [0.4, 0.6]]), np.array([1, 1]), ["no", "yes"])
    assert "roc_auc" not in found and found["average_precision"] == 1
    three = confidence(np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]), np.array([0, 1]), [*"abc"])
    assert (three["roc_auc"], three["average_precision"]) == (1, 1)


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
    assert found["f1_macro_ci95"] == [1, 1]


def test_the_temperature_is_that_of_a_plain_torch_twin() -> None:
    """The smallest cross-entropy of logits / T; and no label overtakes another."""
    import torch

    draw = np.random.default_rng(4)
    codes = draw.integers(0, 4, 60)
    logits = 4 * draw.normal(size=(60, 4)) + 3 * np.eye(4)[codes]
    labels, (golds,) = "abcd", keyed(["abcd"[code] for code in codes])
    chances = torch.tensor(logits).softmax(-1).tolist()
    known = {str(number): one for number, one in enumerate(chances)}
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    twin = torch.optim.LBFGS([log_t], tolerance_grad=1e-12, tolerance_change=1e-14, max_iter=200)

    def loss() -> torch.Tensor:
        twin.zero_grad()
        scaled = torch.tensor(logits) / log_t.exp()
        found = torch.nn.functional.cross_entropy(
            scaled, torch.tensor(codes), label_smoothing=4 / (60 + 4)
        )
        found.backward()
        return found

    twin.step(loss)
    found = classification.fit_temperature(known, golds, labels)
    assert found == pytest.approx(log_t.exp().item(), rel=1e-6) and found > 1.1
    for row, chance in zip(logits, chances, strict=True):
        expected = torch.tensor(row / found).softmax(-1).tolist()
        ours = tempered(chance, found)
        assert ours == pytest.approx(expected, abs=1e-9)
        assert np.argsort(ours).tolist() == np.argsort(chance).tolist()
        assert tempered(ours, 1 / found) == pytest.approx(chance, abs=1e-9)


def test_examples_that_are_all_right_do_not_make_a_model_as_sure_as_can_be() -> None:
    """Then no temperature would be low enough; the mean of the probabilities stays near N of N + 1."""
    draw = np.random.default_rng(6)
    sure = 0.6 + 0.3 * draw.random(100)
    known = {str(number): [one, 1 - one] for number, one in enumerate(sure)}
    (golds,) = keyed(["a"] * 100)
    found = classification.fit_temperature(known, golds, "ab")
    shares = [tempered(one, found)[0] for one in known.values()]
    assert 0.1 < found < 1 and 0.9 < np.mean(shares) < 0.995


def test_reliability_bins_are_those_of_a_plain_loop_and_of_ece() -> None:
    draw = np.random.default_rng(5)
    chances, codes = draw.dirichlet([0.4] * 3, 200), draw.integers(0, 3, 200)
    known = {str(number): one for number, one in enumerate(chances.tolist())}
    (golds,) = keyed(["abc"[code] for code in codes])
    found = classification.reliability(known, golds, "abc")
    error = 0.0
    for number in range(15):
        rows = [k for k in range(200) if number / 15 < chances[k].max() <= (number + 1) / 15]
        each = [one[number] for one in found.values()]
        sure = np.mean([chances[k].max() for k in rows]) if rows else 0.0
        right = np.mean([chances[k].argmax() == codes[k] for k in rows]) if rows else 0.0
        assert each == pytest.approx([len(rows), sure, right], abs=1e-9)
        error += len(rows) / 200 * abs(right - sure)
    assert confidence(chances, codes, "abc")["ece"] == pytest.approx(error, abs=1e-9)
