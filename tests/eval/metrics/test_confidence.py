"""Laws of how far probabilities can be trusted: equal to scikit-learn and to plain loops."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from eval.metrics import confidence as metrics
from eval.metrics import measure
from eval.metrics.columns import texts
from eval.metrics.evidence import scores_of
from llama_peft.inference.predict import tempered, tempered_each


def keyed(*lists: Sequence[str]) -> list[dict[str, str]]:
    return [{str(number): label for number, label in enumerate(one)} for one in lists]


def confidence(chances: np.ndarray, codes: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    known = {str(number): one for number, one in enumerate(chances.tolist())}
    (golds,) = keyed([labels[code] for code in codes])
    found = scores_of(metrics.confidence_evidence(known, golds, labels))
    return found | metrics.ranking_scores(known, golds, labels)


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
    found = metrics.fit_temperature(metrics.confidence_evidence(known, golds, labels))
    assert found == pytest.approx(log_t.exp().item(), rel=1e-6) and found > 1.1
    for row, chance in zip(logits, chances, strict=True):
        expected = torch.tensor(row / found).softmax(-1).tolist()
        ours = tempered(chance, found)
        assert ours == pytest.approx(expected, abs=1e-9)
        assert np.argsort(ours).tolist() == np.argsort(chance).tolist()
        assert tempered(ours, 1 / found) == pytest.approx(chance, abs=1e-9)


def test_the_temperature_of_several_labels_is_that_of_a_plain_torch_twin() -> None:
    """The smallest binary cross-entropy of logits / T, with Platt's targets."""
    import torch

    draw = np.random.default_rng(7)
    hot = draw.integers(0, 2, (60, 3))
    logits = 4 * draw.normal(size=(60, 3)) + 3 * (2 * hot - 1)
    chances = {f"t{n}": row for n, row in enumerate(torch.tensor(logits).sigmoid().tolist())}
    golds = {
        f"t{n}": [name for name, one in zip("abc", row, strict=True) if one]
        for n, row in enumerate(hot)
    }
    found = metrics.fit_temperature(metrics.decision_evidence(chances, golds, "abc"))
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    twin = torch.optim.LBFGS([log_t], tolerance_grad=1e-12, tolerance_change=1e-14, max_iter=200)
    targets = torch.tensor(hot * (180 / 182) + 1 / 182)

    def loss() -> torch.Tensor:
        twin.zero_grad()
        scaled = torch.tensor(logits) / log_t.exp()
        found = torch.nn.functional.binary_cross_entropy_with_logits(scaled, targets)
        found.backward()
        return found

    twin.step(loss)
    assert found == pytest.approx(log_t.exp().item(), rel=1e-6) and found > 1.1
    for row, chance in zip(logits, chances.values(), strict=True):
        expected = torch.tensor(row / found).sigmoid().tolist()
        assert tempered_each(chance, found) == pytest.approx(expected, abs=1e-9)
    from sklearn.metrics import brier_score_loss, log_loss

    scores = measure.label_set_results(golds, golds, "abc", chances, chances)
    flat, known = hot.ravel(), np.array(list(chances.values())).ravel()
    assert scores["log_loss"] == pytest.approx(log_loss(flat, known), abs=1e-9)
    assert scores["brier_score"] == pytest.approx(brier_score_loss(flat, known), abs=1e-9)
    assert scores["ece_uncalibrated"] == scores["ece"]


def test_examples_that_are_all_right_do_not_make_a_model_as_sure_as_can_be() -> None:
    """Then no temperature would be low enough; the mean of the probabilities stays near N of N + 1."""
    draw = np.random.default_rng(6)
    sure = 0.6 + 0.3 * draw.random(100)
    known = {str(number): [one, 1 - one] for number, one in enumerate(sure)}
    (golds,) = keyed(["a"] * 100)
    found = metrics.fit_temperature(metrics.confidence_evidence(known, golds, "ab"))
    shares = [tempered(one, found)[0] for one in known.values()]
    assert 0.1 < found < 1 and 0.9 < np.mean(shares) < 0.995


def test_reliability_bins_are_those_of_a_plain_loop_and_of_ece() -> None:
    draw = np.random.default_rng(5)
    chances, codes = draw.dirichlet([0.4] * 3, 200), draw.integers(0, 3, 200)
    known = {str(number): one for number, one in enumerate(chances.tolist())}
    (golds,) = keyed(["abc"[code] for code in codes])
    found = metrics.reliability(known, golds, "abc")
    error = 0.0
    for number in range(15):
        rows = [k for k in range(200) if number / 15 < chances[k].max() <= (number + 1) / 15]
        each = [one[number] for one in found.values()]
        sure = np.mean([chances[k].max() for k in rows]) if rows else 0.0
        right = np.mean([chances[k].argmax() == codes[k] for k in rows]) if rows else 0.0
        assert each == pytest.approx([len(rows), sure, right], abs=1e-9)
        error += len(rows) / 200 * abs(right - sure)
    assert confidence(chances, codes, "abc")["ece"] == pytest.approx(error, abs=1e-9)


def plain_selection(sureness: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Geifman et al. 2019, example by example: what every example would have kept as a threshold."""
    count = len(scores)
    kept = [[s for s, own in zip(scores, sureness, strict=True) if own >= one] for one in sureness]
    found = {"aurc": sum(1 - sum(its) / len(its) for its in kept) / count}
    for share in (50, 80, 90, 95):
        enough = [its for its in kept if 100 * len(its) >= share * count]
        least = min(enough, key=len)
        found[f"accuracy_at_coverage_{share}"] = sum(least) / len(least)
    return found


@pytest.mark.parametrize("digits", [1, 16])
def test_selective_prediction_is_that_of_a_plain_loop_in_any_order_of_rows(digits: int) -> None:
    """With one digit, most examples are as sure as another one."""
    drawn = random.Random(digits)
    for count in [1, 2, 3, 20, 20, 100]:
        sureness = [round(drawn.random(), digits) for _ in range(count)]
        right = [float(drawn.random() < own) for own in sureness]
        rows = [(str(n), *pair) for n, pair in enumerate(zip(sureness, right, strict=True))]
        seen = set[str]()
        for _ in range(4):
            drawn.shuffle(rows)
            own, given = np.array([one[1:] for one in rows]).T
            ids = texts(one[0] for one in rows)
            evidence = metrics.selective_evidence(ids, own, {"accuracy": given})
            found = scores_of(evidence)
            assert found == pytest.approx(plain_selection(sureness, right), abs=1e-9)
            seen.add(repr(found))
        assert len(seen) == 1, "bit for bit"
        curve = metrics.selective_curve(sureness, right)
        assert curve.coverage[-1] == 1 and curve.score[-1] == pytest.approx(sum(right) / count)
        assert len(curve.coverage) == len({*sureness})


def test_selective_prediction_by_hand() -> None:
    """Two sure labels of which one is right, and two unsure ones that are wrong."""
    known = {"1": [0.9, 0.1], "2": [0.1, 0.9], "3": [0.6, 0.4], "4": [0.3, 0.7]}
    golds = dict.fromkeys(known, "a")
    given = {"1": "a", "2": "b", "3": "b", "4": "b"}
    found = measure.classification_results(given, golds, "ab", known)
    kept = [found[f"accuracy_at_coverage_{share}"] for share in (50, 80, 90, 95)]
    assert kept == pytest.approx([1 / 2, 1 / 4, 1 / 4, 1 / 4])
    assert found["aurc"] == pytest.approx((1 / 2 + 1 / 2 + 2 / 3 + 3 / 4) / 4)
    low, high = found["aurc_ci95"]  # type: ignore[misc]
    assert low <= found["aurc"] <= high


def test_answers_are_as_sure_as_they_are_likely() -> None:
    """The answers before a threshold count, and answering what has no answer is wrong."""
    golds = {"1": ["Rome"], "2": ["the old town"], "3": [], "4": ["Ada"]}
    before = {"1": "Rome", "2": "old", "3": "Ada", "4": "Rome"}
    chances = {"1": 1e-20, "2": 2e-20, "3": 0.5, "4": 0.9}
    said = before | {"4": ""}
    found = measure.answer_results(said, golds, chances, before=before)
    assert found["exact_at_coverage_50"] == 50 and found["exact_at_coverage_80"] == 25
    assert found["f1_at_coverage_50"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert found["aurc_exact"] == pytest.approx((0 + 1 / 2 + 2 / 3 + 3 / 4) / 4)
    assert found["aurc_f1"] == pytest.approx((0 + 1 / 6 + (1 / 3 + 1) / 3 + (1 / 3 + 2) / 4) / 4)
    assert not any("coverage" in name for name in measure.answer_results(said, golds))
