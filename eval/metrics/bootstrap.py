"""How certain a score is: bootstrap intervals, and paired tests between two systems.

A resample of n examples depends only on how often each DIFFERENT row is drawn, and these counts
follow a multinomial distribution. So equal rows are merged first, and a score is a function of the
distinct rows and their counts. Exact match on 12,000 questions has two distinct rows, and a
thousand resamples of it take less than a millisecond. Every metric works this way.

Shapes: R resamples, K distinct rows, C columns. A statistic maps (counts_RK, rows_KC) to one value
for each resample and each of its metrics. NaN marks a value that a resample cannot have, for
example because it holds no unanswerable question; such values are left out.

Known gap: a percentile interval is too narrow on few examples, and has no width at a perfect
score: 20 of 20 gives [100, 100].
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray, FloatArray], dict[str, FloatArray]]

_CHUNK = 100
"""Resamples held in memory at a time: 100 x 12,000 distinct rows of float64 are 10 MB."""
_BOUNDS = ((1 - 0.95) / 2, (1 + 0.95) / 2)
"""The quantiles between which a 95 % interval lies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the scores of one system need to know of each example."""

    ids: tuple[str, ...]
    rows: FloatArray
    """One row for each example, in the order of `ids`."""
    statistic: Statistic
    vectors: Mapping[str, FloatArray] = field(default_factory=dict)
    """One value for each example, for metrics that have one; wins and losses are counted here."""


class WinCounts(NamedTuple):
    """On how many examples the second system scores higher, lower or the same."""

    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The second system against the first on one metric."""

    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided, for exchangeable systems; at least 1 / (resamples + 1)."""
    counts: WinCounts | None
    """None for a metric that has no value for a single example."""


def scores_of(evidence: Evidence) -> dict[str, float]:
    """Each metric on the examples as they are; without those that no example contributes to."""
    ones = np.ones((1, len(evidence.rows)))
    values = {name: float(v[0]) for name, v in evidence.statistic(ones, evidence.rows).items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def intervals(
    evidence: Evidence, *, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Each metric's 95 % percentile interval over resamples of the examples.

    The result depends on the examples and the seed, not on the order of the examples.
    """
    distinct, counts = _merge(evidence.rows)
    drawn = [evidence.statistic(chunk, distinct) for chunk in _resampled(counts, resamples, seed)]
    return {name: _percentiles(values) for name, values in _joined(drawn).items()}


def paired(
    first: Evidence, second: Evidence, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Paired]:
    """The second system's metrics minus the first's, on the same examples in any order.

    The interval is a paired bootstrap: both systems are scored on the same resamples. The test is
    approximate randomisation (Noreen 1989). If the systems were exchangeable, the two rows of each
    example could be swapped freely. So the p-value is the share of random swaps with at least the
    observed difference, and the observed one counts as one of them.
    """
    second = _in_order(second, first.ids)
    both, counts = _merge(np.hstack([first.rows, second.rows]))
    first_KC, second_KC = np.hsplit(both, [first.rows.shape[1]])
    statistic = first.statistic

    def difference(counts_RK: FloatArray) -> dict[str, FloatArray]:
        return _minus(statistic(counts_RK, second_KC), statistic(counts_RK, first_KC))

    observed = difference(counts[None, :].astype(np.float64))
    drawn = _joined([difference(chunk) for chunk in _resampled(counts, resamples, seed)])
    swapped = _joined(
        [
            _swapped_difference(statistic, chunk, counts, first_KC, second_KC)
            for chunk in _swaps(counts, resamples, seed)
        ]
    )
    bounds = {name: _percentiles(values) for name, values in drawn.items()}
    return {
        name: Paired(
            difference=float(value),
            low=bounds[name][0],
            high=bounds[name][1],
            p_value=_share_beyond(swapped[name], value),
            counts=_win_counts(first.vectors.get(name), second.vectors.get(name)),
        )
        for name, (value,) in observed.items()
        if not np.isnan(value)
    }


def _merge(rows: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """The distinct rows, in lexicographic order, and how often each occurs."""
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    return distinct, counts


def _resampled(counts: NDArray[np.int64], resamples: int, seed: int) -> Iterator[FloatArray]:
    generator = np.random.default_rng(seed)
    total = int(counts.sum())
    for size in _chunks(resamples):
        yield generator.multinomial(total, counts / total, size=size).astype(np.float64)


def _swaps(counts: NDArray[np.int64], resamples: int, seed: int) -> Iterator[FloatArray]:
    """How many of the examples behind each distinct row are swapped; a coin decides for each."""
    generator = np.random.default_rng([seed, 1])
    for size in _chunks(resamples):
        yield generator.binomial(counts, 0.5, size=(size, len(counts))).astype(np.float64)


def _swapped_difference(
    statistic: Statistic,
    swapped_RK: FloatArray,
    counts: NDArray[np.int64],
    first_KC: FloatArray,
    second_KC: FloatArray,
) -> dict[str, FloatArray]:
    """The difference after a swap: each system has its own rows only where it kept them."""
    pool = np.vstack([first_KC, second_KC])
    kept_RK = counts - swapped_RK
    return _minus(
        statistic(np.hstack([swapped_RK, kept_RK]), pool),
        statistic(np.hstack([kept_RK, swapped_RK]), pool),
    )


def _share_beyond(swapped: FloatArray, observed: float) -> float:
    """The share of at least the observed size; the tolerance is for sums in another order."""
    beyond = np.sum(np.abs(swapped) >= abs(observed) - 1e-9)
    return float(1 + beyond) / (1 + len(swapped))


def _chunks(total: int) -> Iterator[int]:
    for start in range(0, total, _CHUNK):
        yield min(_CHUNK, total - start)


def _joined(parts: list[dict[str, FloatArray]]) -> dict[str, FloatArray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _minus(left: dict[str, FloatArray], right: dict[str, FloatArray]) -> dict[str, FloatArray]:
    return {name: left[name] - right[name] for name in left}


def _percentiles(values: FloatArray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not values.size:
        return (float("nan"), float("nan"))
    low, high = np.quantile(values, _BOUNDS)
    return float(low), float(high)


def _in_order(evidence: Evidence, ids: tuple[str, ...]) -> Evidence:
    """The same evidence with its examples in the order of `ids`."""
    if evidence.ids == ids:
        return evidence
    place = {identity: index for index, identity in enumerate(evidence.ids)}
    if place.keys() != set(ids) or len(place) != len(ids):
        raise ValueError("a paired test needs both systems on the same examples, each once")
    order = np.array([place[identity] for identity in ids])
    return Evidence(
        ids=ids,
        rows=evidence.rows[order],
        statistic=evidence.statistic,
        vectors={name: vector[order] for name, vector in evidence.vectors.items()},
    )


def _win_counts(first: FloatArray | None, second: FloatArray | None) -> WinCounts | None:
    if first is None or second is None:
        return None
    return WinCounts(
        wins=int(np.sum(second > first)),
        losses=int(np.sum(second < first)),
        ties=int(np.sum(second == first)),
    )
