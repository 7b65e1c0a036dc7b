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
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..catalogue import METRICS
from ..columns import PIECE, TOGETHER, Column, FloatArray, IntArray, Texts, binned, texts
from ..evidence import SHARE, Bounds, Evidence, in_order, values_of
from ..ids import aligned, are_same, in_rising_order

Any_ = TypeVar("Any_", bound=np.generic)
_LOWER_IS_BETTER = {metric.name for metric in METRICS if not metric.higher_is_better}
_RESAMPLES = 1000
_CHUNK = 100
"""The most resamples that are in memory at a time, and"""
_DRAWN = 1_200_000
"""the most values of all of them: 100 x 12,000 distinct rows of float64 are 10 MB."""


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

    @cached_property
    def counted_N(self) -> NDArray[np.bool_]:
        """Whether the score counts an example."""
        if self.values_SN is None:
            return np.ones(len(self.unit_N), dtype=np.bool_)
        return ~np.isnan(self.values_SN[0])

    @cached_property
    def units(self) -> int:
        """The number of units with examples that the score counts."""
        return int(np.count_nonzero(np.bincount(self.counted(self.unit_N))))

    @cached_property
    def is_right_or_wrong(self) -> bool:
        """Whether each example has the lowest or the highest value."""
        values = self.values_SN
        return values is not None and bool(np.isin(self.counted(values), self.bounds).all())

    def counted(self, values: NDArray[Any_]) -> NDArray[Any_]:
        """Return values (..., N) of the examples that the score counts."""
        return values if self.counted_N.all() else values[..., self.counted_N]


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


class Metrics(Mapping[str, Measured]):
    """Each metric of a system's runs, made when it is asked for: each takes 16 bytes an example and
    run, and there are dozens.
    """

    def __init__(
        self,
        runs: Sequence[Evidence],
        unit_N: IntArray,
        resamples: int = _RESAMPLES,
        is_deterministic: bool = False,
    ) -> None:
        scores = [values_of(run) for run in runs]
        every = {name: np.array([one[name] for one in scores]) for name in scores[0]}
        self._scores = {name: own_S for name, own_S in every.items() if not np.isnan(own_S).any()}
        self._runs, self._unit_N, self._is_deterministic = runs, unit_N, is_deterministic
        is_drawn = scores[0].keys() - runs[0].vectors
        self._deviations = _resampled(runs, unit_N, resamples) if is_drawn else {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __getitem__(self, name: str) -> Measured:
        runs, scores_S, values_SN = self._runs, self._scores[name], None
        if name in runs[0].vectors:
            values_SN = np.array([run.vector(name) for run in runs])
            deviations_SD = _of_means(values_SN, self._unit_N)
        else:
            deviations_SD = self._deviations[name]
        return Measured(
            scores_S=scores_S,
            deviations_SD=deviations_SD,
            values_SN=values_SN,
            unit_N=self._unit_N,
            bounds=runs[0].bounds.get(name, SHARE),
            higher_is_better=name not in _LOWER_IS_BETTER,
            is_deterministic=self._is_deterministic,
        )


def measured_metrics(
    runs: Sequence[Evidence],
    groups: Mapping[str, str] | None = None,
    *,
    is_deterministic: bool = False,
    resamples: int = _RESAMPLES,
) -> Metrics:
    """Each metric that the evidence of a system's runs gives, without those that a run cannot have.

    groups: the group of an example by its id; an example without one is a unit of its own. Raises
    ValueError unless the runs are of the same examples.
    """
    ids = in_rising_order(runs[0].ids)
    unit_N = units_of(ids, groups or {})
    return Metrics([in_order(run, ids) for run in runs], unit_N, resamples, is_deterministic)


def units_of(ids: Texts, groups: Mapping[str, str]) -> IntArray:
    """The number of each example's unit, in the order of the names of the units. ids: in rising order."""
    if not groups:
        return np.arange(len(ids))
    if isinstance(groups, Column) and are_same(groups.ids, ids):
        names = texts(f"group {own}" for own in aligned(groups, ids).values())
    else:
        known = dict(groups.items())
        names = texts(f"group {known[id_]}" if id_ in known else f"id {id_}" for id_ in ids)
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _of_means(values_SN: FloatArray, unit_N: IntArray) -> FloatArray:
    """The deviation of each run's mean by unit; a unit without an example that it counts has none."""
    counted_N = ~np.isnan(values_SN[0])
    if not counted_N.any() or (np.isnan(values_SN) == counted_N).any():
        raise ValueError("the runs of a system must count the same examples, and at least one")
    size = int(unit_N.max()) + 1
    if not counted_N.all():
        values_SN, unit_N = values_SN[:, counted_N], unit_N[counted_N]
    residuals_SN = values_SN - values_SN.mean(axis=1, keepdims=True)
    residuals_SN /= values_SN.shape[1]
    sums_SU = np.empty((len(residuals_SN), size))
    for sums_U, each_N in zip(sums_SU, residuals_SN, strict=True):
        sums_U[:] = np.bincount(unit_N, weights=each_N, minlength=size)
    sums_SU *= _widened(int(np.count_nonzero(np.bincount(unit_N))))
    return sums_SU


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
    """The deviations of each metric (S, R) on the same resamples of the units."""
    each = [_resampled_run(run, unit_N, resamples) for run in runs]
    values = {name: np.array([one[name] for one in each]) for name in each[0]}
    units = int(unit_N.max()) + 1
    return {name: _of_resamples(its_SR, units) for name, its_SR in values.items()}


def _resampled_run(run: Evidence, unit_N: IntArray, resamples: int) -> dict[str, FloatArray]:
    rows_KC, row_N = _distinct(run.rows[:])
    scores = run.statistic(rows_KC)
    parts = [scores(counts_RK) for counts_RK in _draws(row_N, unit_N, resamples)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _distinct(rows_NC: FloatArray) -> tuple[FloatArray, IntArray]:
    """The distinct rows in rising order (K, C), and the place of each example's row among them (N).

    As np.unique, in a third of the memory.
    """
    order = np.lexsort(rows_NC.T[::-1])
    is_new = np.zeros(len(order), dtype=np.bool_)
    for own_N in rows_NC.T:
        ordered = own_N[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    row_N = np.empty(len(order), dtype=np.int64)
    row_N[order] = np.cumsum(is_new)
    is_new[0] = True
    return rows_NC[order[is_new]], row_N


def _draws(row_N: IntArray, unit_N: IntArray, resamples: int) -> Iterator[FloatArray]:
    """How often each distinct row occurs in each resample (R, K); the same numbers at each call.

    Whole fours of resamples at a time, if there is room: BLAS adds in the same order then.
    """
    generator = np.random.default_rng(0)
    units, size = int(unit_N.max()) + 1, int(row_N.max()) + 1
    room = min(_CHUNK, _DRAWN // max(units, size))
    chunk = max(1, room - room % 4 if room > 4 else room)
    together = len(row_N) if size > PIECE else PIECE  # where a piece would cost as much as all
    pieces = [slice(first, first + together) for first in range(0, len(row_N), together)]
    few = max(1, TOGETHER // len(row_N))
    for start in range(0, resamples, chunk):
        counts_RK = np.zeros((min(chunk, resamples - start), size))
        for first in range(0, len(counts_RK), few):
            own_FK = counts_RK[first : first + few]
            # The generator gives the same numbers as for one resample after the other.
            drawn_FU = binned(generator.integers(units, size=(len(own_FK), units)), units)
            for some in pieces:
                own_FK += binned(row_N[some], size, drawn_FU.take(unit_N[some], axis=1))
        yield counts_RK
