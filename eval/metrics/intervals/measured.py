"""One metric of all training runs of one system, and what its scores owe to the examples drawn.

A unit is what was drawn from the world at once: a passage with all its questions, or an example of
its own. `deviations` hold how a run's score moves with the units, scaled so that the variance of
any sum of scores is the sum of squares of the same sum of deviations. Both kinds of metric have them:
- a mean over the examples has one for each unit, in closed form: the linearised, cluster-robust
  variance of a ratio (Cochran 1977, "Sampling Techniques", section 11.7);
- any other metric has one for each resample of the units (the cluster bootstrap: Davison and Hinkley
  1997, "Bootstrap Methods and their Application", section 3.8).
The resamples depend on the names of the units alone. So each metric of each run sees the same ones,
whichever other metrics are computed, and the order of the examples does not matter.

Shapes: S runs, N examples, U units, D deviations, R resamples, K distinct rows.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ..catalogue import METRICS
from ..evidence import SHARE, Bounds, Evidence, FloatArray, in_order

IntArray = NDArray[np.int64]

_LOWER_IS_BETTER = {metric.name for metric in METRICS if not metric.higher_is_better}
_RESAMPLES = 1000
_CHUNK = 100
"""Resamples held in memory at a time: 100 x 12,000 distinct rows of float64 are 10 MB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One metric of all training runs of one system on the same examples."""

    scores_S: FloatArray
    deviations_SD: FloatArray
    values_SN: FloatArray | None
    """The value of each example if the score is their mean; NaN for an example that it leaves out."""
    unit_N: IntArray
    """The unit of each example."""
    bounds: Bounds = SHARE
    higher_is_better: bool = True
    is_deterministic: bool = False
    """Whether another training run cannot differ, because nothing is trained."""

    @property
    def runs(self) -> int:
        return len(self.scores_S)

    @property
    def counted_N(self) -> NDArray[np.bool_]:
        """Whether the score counts an example."""
        if self.values_SN is None:
            return np.ones(len(self.unit_N), dtype=np.bool_)
        return ~np.isnan(self.values_SN[0])

    @property
    def units(self) -> int:
        """The number of units with examples that the score counts."""
        return len(np.unique(self.unit_N[self.counted_N]))

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether each example has the lowest or the highest value."""
        values = self.values_SN
        return values is not None and bool(np.isin(values[:, self.counted_N], self.bounds).all())


def measured_means(
    scores_SN: FloatArray | Sequence[Sequence[float]],
    groups: Sequence[Hashable] | None = None,
    *,
    bounds: Bounds = SHARE,
    is_deterministic: bool = False,
) -> Measured:
    """The mean over the examples, for each run.

    groups: of each example; examples of one group were not drawn independently. NaN leaves an
    example out. Raises ValueError unless the runs count the same examples, and at least one.
    """
    values_SN = np.asarray(scores_SN, dtype=np.float64)
    keys = range(values_SN.shape[1]) if groups is None else groups
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    unit_N = np.array([number[key] for key in keys], dtype=np.int64)
    deviations_SD = _of_means(values_SN, unit_N)
    return Measured(
        scores_S=np.nanmean(values_SN, axis=1),
        deviations_SD=deviations_SD,
        values_SN=values_SN,
        unit_N=unit_N,
        bounds=bounds,
        is_deterministic=is_deterministic,
    )


def measured_metrics(
    runs: Sequence[Evidence],
    groups: Mapping[str, str] | None = None,
    *,
    is_deterministic: bool = False,
    resamples: int = _RESAMPLES,
) -> dict[str, Measured]:
    """Each metric that the evidence of a system's runs gives, without those that a run cannot have.

    groups: the group of an example by its id; an example without one is a unit of its own. Raises
    ValueError unless the runs are of the same examples.
    """
    ids = tuple(sorted(runs[0].ids))
    runs, unit_N = [in_order(run, ids) for run in runs], units_of(ids, groups or {})
    ones = np.ones((1, len(ids)))
    scores = [run.statistic(ones, run.rows) for run in runs]
    resampled = _resampled(runs, unit_N, resamples) if scores[0].keys() - runs[0].vectors else {}
    found = {}
    for name in scores[0]:
        scores_S = np.array([float(one[name][0]) for one in scores])
        if np.isnan(scores_S).any():
            continue
        is_mean = name in runs[0].vectors
        found[name] = Measured(
            scores_S=scores_S,
            deviations_SD=_of_means(np.array([run.vectors[name] for run in runs]), unit_N)
            if is_mean
            else _of_resamples(resampled[name], int(unit_N.max()) + 1),
            values_SN=np.array([run.vectors[name] for run in runs]) if is_mean else None,
            unit_N=unit_N,
            bounds=runs[0].bounds.get(name, SHARE),
            higher_is_better=name not in _LOWER_IS_BETTER,
            is_deterministic=is_deterministic,
        )
    return found


def units_of(ids: Sequence[str], groups: Mapping[str, str]) -> IntArray:
    """The number of each example's unit, in the order of the names of the units."""
    names = [f"group {groups[id_]}" if id_ in groups else f"id {id_}" for id_ in ids]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _of_means(values_SN: FloatArray, unit_N: IntArray) -> FloatArray:
    """The deviation of each run's mean by unit; a unit without an example that it counts has none."""
    counted_N = ~np.isnan(values_SN[0])
    if not counted_N.any() or (np.isnan(values_SN) == counted_N).any():
        raise ValueError("the runs of a system must count the same examples, and at least one")
    values_SN = values_SN[:, counted_N]
    residuals_SN = (values_SN - values_SN.mean(axis=1, keepdims=True)) / values_SN.shape[1]
    counted = unit_N[counted_N]
    size = int(unit_N.max()) + 1
    sums = [np.bincount(counted, weights=each_N, minlength=size) for each_N in residuals_SN]
    return np.array(sums, dtype=np.float64) * _widened(len(np.unique(counted)))


def _widened(units: int) -> float:
    """What makes the standard deviation of a sum over so many units unbiased, as n - 1 does."""
    return float(np.sqrt(units / (units - 1))) if units > 1 else 1.0


def _of_resamples(values_SR: FloatArray, units: int) -> FloatArray:
    """The deviations of resampled scores; a resample that a run cannot have counts for nothing."""
    is_known_R = ~np.isnan(values_SR).any(axis=0)
    if not is_known_R.any():
        return np.zeros_like(values_SR)
    means_S1 = values_SR[:, is_known_R].mean(axis=1, keepdims=True)
    centred_SR = np.where(is_known_R, values_SR - means_S1, 0.0)
    return centred_SR / np.sqrt(is_known_R.sum()) * _widened(units)


def _resampled(runs: Sequence[Evidence], unit_N: IntArray, resamples: int) -> dict[str, FloatArray]:
    """Each metric (S, R) on the same resamples of the units."""
    each = [_resampled_run(run, unit_N, resamples) for run in runs]
    return {name: np.array([one[name] for one in each]) for name in each[0]}


def _resampled_run(run: Evidence, unit_N: IntArray, resamples: int) -> dict[str, FloatArray]:
    rows_KC, row_N = np.unique(run.rows, axis=0, return_inverse=True)
    examples = (np.ones(len(unit_N)), (row_N.ravel(), unit_N))
    held_KU = csr_array(examples, shape=(len(rows_KC), int(unit_N.max()) + 1))
    parts = [
        run.statistic(np.ascontiguousarray((held_KU @ drawn_RU.T).T), rows_KC)
        for drawn_RU in _draws(held_KU.shape[1], resamples)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draws(units: int, resamples: int) -> Iterator[FloatArray]:
    """How often each unit is drawn; the same numbers at each call."""
    generator = np.random.default_rng(0)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = generator.integers(units, size=(size, units))
        drawn += np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units)
        yield counts.reshape(size, units).astype(np.float64)
