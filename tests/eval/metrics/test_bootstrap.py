"""Laws of intervals and paired tests: equal to plain resampling, and right as often as they say."""

import random
from math import comb

import numpy as np
import pytest
from numpy.typing import ArrayLike

from eval.metrics import bootstrap, classification, squad_v2
from eval.metrics.bootstrap import FloatArray


def interval_of_mean(
    values: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    def mean(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        return {"mean": counts_RK @ rows_KC[:, 0] / counts_RK.sum(axis=1)}

    rows = np.asarray(values, dtype=np.float64)[:, None]
    evidence = bootstrap.Evidence(ids=(), rows=rows, statistic=mean)
    return bootstrap.intervals(evidence, resamples=resamples, seed=seed)["mean"]


def test_the_interval_of_a_mean_is_that_of_plain_resampling():
    values = np.random.default_rng(0).exponential(size=400)
    draw = np.random.default_rng(1)
    means = values[draw.integers(0, 400, size=(4000, 400))].mean(axis=1)
    low, high = interval_of_mean(values, resamples=4000)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert interval_of_mean(values[::-1], resamples=4000) == (low, high)
    assert interval_of_mean(values, resamples=4000, seed=1) != (low, high)


def test_a_95_percent_interval_holds_the_truth_in_95_percent_of_cases():
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        low, high = interval_of_mean(draw.random(200) < 0.3, resamples=500)
        held += low <= 0.3 <= high
    assert 0.92 < held / 400 < 0.975


def test_intervals_of_scores_that_are_not_means_recompute_them_on_each_resample():
    draw = random.Random(4)
    labels = ["a", "b", "c"]
    golds = draw.choices(labels, weights=[5, 3, 1], k=120)
    given = [g if draw.random() < 0.7 else draw.choice(labels) for g in golds]
    keyed = {str(i): g for i, g in enumerate(golds)}
    evidence = classification.classification_evidence(
        {str(i): p for i, p in enumerate(given)}, keyed, labels
    )
    plain = []
    for _ in range(800):
        picks = draw.choices(range(120), k=120)
        sample = classification.classification_evidence(
            {str(place): given[i] for place, i in enumerate(picks)},
            {str(place): golds[i] for place, i in enumerate(picks)},
            labels,
        )
        plain.append(bootstrap.scores_of(sample)["f1_macro"])
    found = bootstrap.intervals(evidence, resamples=4000)["f1_macro"]
    assert found == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.02)


def evidence_of(correct: list[int]) -> bootstrap.Evidence:
    answers = {str(i): "yes" if right else "no" for i, right in enumerate(correct)}
    return classification.classification_evidence(
        answers, dict.fromkeys(answers, "yes"), ["no", "yes"]
    )


def test_a_paired_test_counts_wins_and_equals_the_exact_sign_test():
    draw = random.Random(5)
    first = [int(draw.random() < 0.6) for _ in range(300)]
    second = [right if draw.random() < 0.8 else int(draw.random() < 0.8) for right in first]
    wins = sum(b > a for a, b in zip(first, second, strict=True))
    losses = sum(b < a for a, b in zip(first, second, strict=True))
    found = bootstrap.paired(evidence_of(first), evidence_of(second), resamples=5000)["accuracy"]
    assert found.counts == (wins, losses, 300 - wins - losses)
    assert found.difference == pytest.approx((wins - losses) / 300)
    assert found.low < found.difference < found.high
    changed, more = wins + losses, max(wins, losses)
    exact = min(1.0, 2 * sum(comb(changed, k) for k in range(more, changed + 1)) / 2**changed)
    assert found.p_value == pytest.approx(exact, abs=0.02)


def test_paired_extremes():
    same = evidence_of([1, 0, 1, 1, 0] * 20)
    found = bootstrap.paired(same, same)["f1"]
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    better = evidence_of([1] * 100)
    found = bootstrap.paired(same, better)["accuracy"]
    assert found.p_value == pytest.approx(1 / 1001) and found.low > 0
    assert bootstrap.paired(same, better)["f1"].counts is None


def test_a_paired_test_needs_the_same_examples_but_not_the_same_order(written):
    answers, golds = written
    other = {key: text if i % 3 else "" for i, (key, text) in enumerate(answers.items())}
    backwards = {key: golds[key] for key in reversed(golds)}
    first = squad_v2.squad_evidence(answers, golds)
    forth = bootstrap.paired(first, squad_v2.squad_evidence(other, golds))
    back = bootstrap.paired(first, squad_v2.squad_evidence(other, backwards))
    assert forth == back
    assert forth["HasAns_exact"].counts.ties < forth["exact"].counts.ties < len(golds)
    few = {key: golds[key] for key in list(golds)[1:]}
    with pytest.raises(ValueError, match="same examples"):
        bootstrap.paired(first, squad_v2.squad_evidence({key: answers[key] for key in few}, few))


def test_chance_differences_are_called_significant_in_5_percent_of_cases():
    draw = random.Random(6)
    false_alarms = 0
    for _ in range(150):
        first = [int(draw.random() < 0.7) for _ in range(150)]
        second = [int(draw.random() < 0.7) for _ in range(150)]
        found = bootstrap.paired(evidence_of(first), evidence_of(second), resamples=200)
        false_alarms += found["accuracy"].p_value <= 0.05
    assert false_alarms / 150 < 0.1
