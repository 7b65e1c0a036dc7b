"""Laws of intervals and paired tests: the published formulas, plain resampling, and each metric alone."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp, ttest_rel

from eval.metrics import classification, columns, squad_v2
from eval.metrics.columns import FloatArray
from eval.metrics.evidence import Evidence, Scores, scores_of
from eval.metrics.intervals import (
    Interval,
    WinCounts,
    difference,
    exact,
    holm,
    intervals,
    mcnemar,
    mean_over_seeds,
    measured,
    measured_means,
    measured_metrics,
    paired,
    randomisation,
)
from eval.metrics.words.overlap import overlap_evidences
from llama_peft.system.sequences.arrays import LongArray
from tests.support.questions import Golds

LABELS = ["a", "b", "c"]


def label_evidence(golds: Sequence[str], given: Sequence[str]) -> Evidence:
    keyed = [{f"{i:04}": one for i, one in enumerate(texts)} for texts in (given, golds)]
    return classification.classification_evidence(*keyed, LABELS)


def right_or_wrong(right: Sequence[int]) -> Evidence:
    return label_evidence(["a"] * len(right), ["a" if one else "b" for one in right])


def some_labels(seed: int, count: int = 120) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    golds = draw.choices(LABELS, weights=[5, 3, 1], k=count)
    return golds, [g if draw.random() < 0.7 else draw.choice(LABELS) for g in golds]


def test_a_share_has_wilson_s_interval() -> None:
    """The end points of Wilson 1927 for 95 % that Newcombe 1998 prints in his table I."""
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = intervals(right_or_wrong([1] * right + [0] * (count - right)))["accuracy"]
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    perfect = intervals(right_or_wrong([1] * 100))
    assert perfect["accuracy"].low == pytest.approx(0.963, abs=5e-4)
    assert perfect["accuracy"].high == perfect["f1_macro"].high == 1
    assert perfect["f1_macro"].low == perfect["accuracy"].low


def test_the_variance_of_passages_is_that_of_plain_cluster_resampling() -> None:
    draws = np.random.default_rng(0)
    groups = np.sort(draws.integers(60, size=300))
    values = (draws.random(300) < draws.beta(2, 1, size=60)[groups]).astype(float)
    by_passage = [values[groups == one] for one in np.unique(groups)]
    plain = []
    for _ in range(4000):
        picked = draws.integers(len(by_passage), size=len(by_passage))
        plain.append(np.concatenate([by_passage[one] for one in picked]).mean())
    found = measured_means([values], groups.tolist())
    assert np.linalg.norm(found.deviations_SD) == pytest.approx(np.std(plain), rel=0.05)
    alone = measured_means([values])
    assert np.linalg.norm(alone.deviations_SD) == pytest.approx(values.std(ddof=1) / np.sqrt(300))


def test_scores_that_are_not_means_are_computed_again_on_each_resample() -> None:
    golds, given = some_labels(4)
    draw, plain = random.Random(5), []
    for _ in range(800):
        picks = draw.choices(range(120), k=120)
        sample = label_evidence([golds[i] for i in picks], [given[i] for i in picks])
        plain.append(scores_of(sample)["f1_macro"])
    found = measured_metrics([label_evidence(golds, given)])["f1_macro"]
    assert np.linalg.norm(found.deviations_SD) == pytest.approx(np.std(plain), rel=0.1)


def test_every_mean_is_the_mean_of_its_vector(written: tuple[dict[str, str], Golds]) -> None:
    """Also among the overlap metrics; resampling a mean gives what its closed form does."""
    answers, golds = written
    chance = {key: number / len(golds) for number, key in enumerate(golds)}
    found = [squad_v2.squad_evidence(answers, golds, chance), *overlap_evidences(answers, golds)]
    for evidence in found:
        scores = scores_of(evidence)
        means = {name: float(np.nanmean(evidence.vector(name))) for name in evidence.vectors}
        assert means == pytest.approx({name: scores[name] for name in means})
    closed, drawn = (
        measured_metrics([one])["HasAns_f1"] for one in (found[0], replace(found[0], vectors={}))
    )
    closed_size, drawn_size = (np.linalg.norm(one.deviations_SD) for one in (closed, drawn))
    assert drawn_size == pytest.approx(closed_size, rel=0.1)


def test_a_metric_does_not_depend_on_the_others_nor_on_the_order() -> None:
    """Rows that hold more, and metrics beside it, leave an interval and a p-value as they are."""
    golds, given = some_labels(6)
    other = some_labels(7)[1]
    first, second = label_evidence(golds, given), label_evidence(golds, other)

    def alone(evidence: Evidence) -> Evidence:
        def statistic(rows_KC: FloatArray) -> Scores:
            scores = evidence.statistic(rows_KC[:, 1:])
            return lambda counts_RK: {"f1_macro": scores(counts_RK)["f1_macro"]}

        places = np.arange(len(evidence.ids), dtype=np.float64)[:, None]
        rows = LongArray.of(np.hstack([places, evidence.rows[:]]))
        return replace(evidence, rows=rows, statistic=statistic, vectors={})

    def backwards(evidence: Evidence) -> Evidence:
        return evidence.at(np.arange(len(evidence.ids))[::-1])

    whole = paired(first, second)
    found = paired(alone(first), alone(second))["f1_macro"]
    assert found.p_value == pytest.approx(whole["f1_macro"].p_value)
    assert found.interval.low == pytest.approx(whole["f1_macro"].interval.low)
    assert paired(first, backwards(second)) == paired(backwards(first), second) == whole
    few = replace(second, ids=second.ids[1:])
    with pytest.raises(ValueError, match="same examples"):
        paired(first, few)


def test_a_difference_of_means_is_the_paired_t_test_on_many_examples() -> None:
    draws = np.random.default_rng(8)
    first, second = draws.beta(3, 2, size=(2, 4000))
    found = difference(*(measured_means([one]) for one in (first, second)))
    known = ttest_rel(second, first)
    assert found.p_value == pytest.approx(known.pvalue, abs=0.01)
    low, high = known.confidence_interval()
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=1e-4)


def test_a_paired_test_counts_wins_and_has_exact_mcnemar_beside_it() -> None:
    first, second = [0] * 8 + [1] * 2 + [1] * 10, [1] * 8 + [0] * 2 + [1] * 10
    found = paired(right_or_wrong(first), right_or_wrong(second))["accuracy"]
    assert found.counts == WinCounts(wins=8, losses=2, ties=10)
    assert found.exact_p == mcnemar(8, 2) == pytest.approx(2 * binom.cdf(2, 10, 0.5))
    assert found.p_value > 0.05 and found.interval.low < 0 < found.difference
    spread = np.array(second, dtype=float) - np.array(first)
    assert randomisation(spread, np.arange(20)) == pytest.approx(mcnemar(8, 2), abs=0.02)
    # Two passages: their answers are swapped together, so two of four swaps are as uneven.
    assert randomisation(spread, np.repeat([0, 1], [10, 10])) == 1


@pytest.mark.parametrize("seed", range(8))
def test_an_interval_leaves_out_0_exactly_if_p_is_below_005(seed: int) -> None:
    golds, given = some_labels(seed, 60)
    better = [gold if i % (seed + 3) == 0 else one for i, (gold, one) in enumerate(zip(golds, given, strict=True))]  # fmt: skip
    groups = {f"{i:04}": str(i // 3) for i in range(60)}
    for found in paired(
        label_evidence(golds, given), label_evidence(golds, better), groups
    ).values():
        assert (found.p_value < 0.05) is not (found.interval.low <= 0 <= found.interval.high)
        assert found.interval.low <= found.difference <= found.interval.high


def test_extremes() -> None:
    same, perfect = right_or_wrong([1, 0, 1, 1, 0] * 20), right_or_wrong([1] * 100)
    found = paired(same, same)["f1"]
    assert found.difference == 0 and found.p_value == 1 and found.counts is None
    assert found.interval.low == -found.interval.high < 0
    found = paired(same, perfect)["accuracy"]
    assert found.p_value < 1e-6 and found.exact_p == pytest.approx(2**-39)
    worst = paired(right_or_wrong([0] * 30), right_or_wrong([1] * 30))["accuracy"]
    assert worst.difference == worst.interval.high == 1 and 0.8 < worst.interval.low < 1
    # One passage tells nothing about others.
    groups = dict.fromkeys(same.ids, "one")
    assert intervals(same, groups)["accuracy"] == Interval(0, 1)
    found = paired(same, perfect, groups)["accuracy"]
    assert found.p_value == 1 and found.interval == Interval(-1, 1)


def test_one_run_says_that_the_seed_was_not_measured() -> None:
    draws = np.random.default_rng(9)
    scores_SN = (draws.random((3, 200)) < [[0.9], [0.8], [0.7]]).astype(float)
    base = measured_means((draws.random((1, 200)) < 0.6).astype(float), is_deterministic=True)
    once, thrice = measured_means(scores_SN[:1]), measured_means(scores_SN)
    assert not mean_over_seeds(once).is_seed_measured and mean_over_seeds(thrice).is_seed_measured
    found = difference(base, once)
    assert found.p_value < 0.05 and not found.is_seed_measured and not found.is_real
    found = difference(base, thrice)
    assert found.is_seed_measured and found.exact_p is None
    # 30, 20 and 10 points better: real over the examples, but three seeds do not agree enough.
    flat = measured_means(scores_SN.mean(axis=0, keepdims=True))
    assert difference(base, flat).p_value < 0.001 < 0.05 < found.p_value and not found.is_real
    steady = measured_means(np.vstack([scores_SN[:1]] * 3))
    assert difference(base, steady).is_real


def test_runs_that_scatter_much_have_the_t_interval_of_their_scores() -> None:
    scores_S = np.array([0.2, 0.5, 0.6])
    scores_SN = scores_S[:, None] + np.zeros(5000)
    found = difference(measured_means(np.zeros((1, 5000))), measured_means(scores_SN))
    known = ttest_1samp(scores_S, 0)
    assert found.p_value == pytest.approx(known.pvalue, abs=1e-3)


def test_several_runs_of_a_metric_that_is_no_mean() -> None:
    """Of right and wrong, accuracy is both a mean and a metric to resample: both agree."""
    draw = random.Random(10)
    golds, _ = some_labels(11, 150)
    runs = [
        label_evidence(golds, [g if draw.random() < share else draw.choice(LABELS) for g in golds])
        for share in (0.9, 0.8, 0.6)
    ]
    mean, resampled = (
        mean_over_seeds(measured_metrics(each)["accuracy"])
        for each in (runs, [replace(run, vectors={}) for run in runs])
    )
    assert mean.score == pytest.approx(resampled.score) and mean.runs == 3
    assert mean.interval is not None and resampled.interval is not None
    assert mean.interval.low == pytest.approx(resampled.interval.low, abs=0.01)
    alone = mean_over_seeds(measured_metrics(runs[:1])["f1_macro"]).interval
    together = mean_over_seeds(measured_metrics(runs)["f1_macro"]).interval
    assert alone is not None and together is not None
    assert together.high - together.low > alone.high - alone.low


@pytest.mark.parametrize(("examples", "units", "distinct"), [(30, 30, 4), (30, 7, 30), (1, 1, 1)])
@pytest.mark.parametrize("together", [1, 64, 1 << 20])
def test_resamples_that_are_counted_at_once_are_those_of_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, examples: int, units: int, distinct: int, together: int
) -> None:
    for module in (measured, columns):
        monkeypatch.setattr(module, "TOGETHER", together)
    row_N, unit_N = np.arange(examples) % distinct, np.arange(examples) % units
    found = np.concatenate([*measured._draws(row_N, unit_N, 250)])
    generator = np.random.default_rng(0)
    for counts_K in found:
        drawn_U = np.bincount(generator.integers(units, size=units), minlength=units)
        assert (counts_K == np.bincount(row_N, drawn_U[unit_N], distinct)).all()


def test_swaps_are_the_same_however_many_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(4)
    arguments = draws.normal(0.05, 1, size=300), draws.integers(60, size=300)
    whole = randomisation(*arguments)
    assert 0.001 < whole < 0.9
    monkeypatch.setattr(exact, "_DRAWN", 100)
    assert randomisation(*arguments) == whole


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1] and holm([0.02]) == [0.02] and holm([]) == []


def test_runs_must_count_the_same_examples() -> None:
    with pytest.raises(ValueError, match="same examples"):
        measured_means([[1.0, np.nan], [1.0, 0.0]])
    with pytest.raises(ValueError, match="same examples"):
        difference(measured_means([[1.0, 0.0]]), measured_means([[1.0, 0.0, 1.0]]))
