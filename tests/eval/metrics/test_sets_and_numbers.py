"""Scores of sets of labels and of numbers: those of scikit-learn and scipy, on drawn examples and on every resample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import measure
from eval.metrics import sets_and_numbers as metrics
from eval.metrics.evidence import scores_of

LABELS = ("a", "b", "c")
sets = st.lists(st.sampled_from(LABELS), unique=True)
pairs = st.lists(st.tuples(sets, sets), min_size=1, max_size=12)
numbers = st.integers(-3, 3).map(float)
few = settings(max_examples=40, deadline=None)


def flags(rows: list[list[str]]) -> np.ndarray:
    return np.array([[label in row for label in LABELS] for row in rows], dtype=int)


@given(pairs)
@few
def test_sets_of_labels_as_scikit_learn(drawn: list[tuple[list[str], list[str]]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    golds = {str(n): gold for n, (gold, _) in enumerate(drawn)}
    said = {str(n): own for n, (_, own) in enumerate(drawn)}
    found = scores_of(metrics.label_set_evidence(said, golds, LABELS))
    truth, given_ = flags([*golds.values()]), flags([*said.values()])
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(truth, given_), abs=1e-9)
    micro = precision_recall_fscore_support(truth, given_, average="micro", zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), micro, strict=False):
        assert found[f"{name}_micro"] == pytest.approx(value, abs=1e-9)
    samples = f1_score(truth, given_, average="samples", zero_division=1)
    assert found["f1_samples"] == pytest.approx(samples, abs=1e-9)
    own = f1_score(truth, given_, average=None, zero_division=0)
    occurs = (truth + given_).any(axis=0)
    macro = own[occurs].mean() if occurs.any() else 0
    assert found["f1_macro"] == pytest.approx(macro, abs=1e-9)
    lists = metrics.label_set_lists(said, golds, LABELS)
    expected = precision_recall_fscore_support(truth, given_, average=None, zero_division=0)
    for name, value in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert lists[f"{name}_per_label"] == pytest.approx(list(value), abs=1e-9)


@given(st.lists(st.tuples(sets, st.tuples(*[st.integers(0, 4)] * 3)), min_size=1, max_size=12))
@few
def test_mean_average_precision_and_thresholds(
    drawn: list[tuple[list[str], tuple[int, ...]]],
) -> None:
    from sklearn.metrics import average_precision_score, f1_score

    golds = {str(n): gold for n, (gold, _) in enumerate(drawn)}
    chances = {str(n): [(own + 1) / 6 for own in row] for n, (_, row) in enumerate(drawn)}
    truth, rows = flags([*golds.values()]), np.array([*chances.values()])
    occurs = truth.any(axis=0)
    found = metrics.label_set_ranking(chances, golds, LABELS)
    if occurs.any():
        expected = average_precision_score(truth[:, occurs], rows[:, occurs], average="macro")
        assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-9)
    for column, limit in enumerate(metrics.fit_label_thresholds(chances, golds, LABELS)):

        def f1(at: float, column: int = column) -> float:
            return f1_score(truth[:, column], rows[:, column] > at, zero_division=0)

        assert 0 <= limit < 1
        assert f1(limit) == max(map(f1, (-1, *np.unique(rows))))
        assert occurs[column] or limit == 0.5


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
@few
def test_numbers_as_scikit_learn_and_scipy(drawn: list[tuple[float, float]]) -> None:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    golds = {str(n): gold for n, (gold, _) in enumerate(drawn)}
    said = {str(n): own for n, (_, own) in enumerate(drawn)}
    evidence = metrics.number_evidence(said, golds)
    found = scores_of(evidence)
    truth, given_ = [*golds.values()], [*said.values()]
    assert found["mse"] == pytest.approx(mean_squared_error(truth, given_), abs=1e-9)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, given_), abs=1e-9)
    if len(set(truth)) == 1:
        assert "r2" not in found and "pearson" not in found
    else:
        assert found["r2"] == pytest.approx(r2_score(truth, given_), abs=1e-9)
        if len(set(given_)) > 1:
            assert found["pearson"] == pytest.approx(pearsonr(truth, given_)[0], abs=1e-9)
            assert found["spearman"] == pytest.approx(spearmanr(truth, given_)[0], abs=1e-9)
    # A resample scores as if its rows were written out.
    counts = np.array([2.0, 0.0, 3.0] + [1.0] * (len(drawn) - 3))
    written = [row for row, count in zip(drawn, counts, strict=True) for _ in range(int(count))]
    again = metrics.number_evidence(
        {str(n): own for n, (_, own) in enumerate(written)},
        {str(n): gold for n, (gold, _) in enumerate(written)},
    )
    one = evidence.statistic(evidence.rows[:])(counts[None])
    for name, value in scores_of(again).items():
        assert one[name][0] == pytest.approx(value, abs=1e-9)


def test_what_does_not_belong_to_the_side_is_refused() -> None:
    with pytest.raises(ValueError, match="the predictions are not numbers"):
        measure.evidence_of("numbers", {"1": "a"}, {"1": 1.0}, ())
    with pytest.raises(ValueError, match="the references are not lists of labels"):
        measure.evidence_of("label_sets", {"1": ["a"]}, {"1": "a"}, LABELS)
    with pytest.raises(ValueError, match="these are not labels: \\['z'\\]"):
        metrics.label_set_evidence({"1": ["z"]}, {"1": []}, LABELS)
