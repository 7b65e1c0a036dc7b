"""Scores with their intervals, and differences of two systems with their tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..evidence import Evidence, in_order
from ..ids import are_same, in_rising_order
from .exact import mcnemar, randomisation
from .measured import Measured, Metrics, measured_metrics, units_of
from .spread import LEVEL, Interval, Spread, interval_around, spread_of


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one system: the mean over its runs."""

    score: float
    interval: Interval | None
    """Over the examples and, if there are several runs, over the seeds; None if a single passage
    tells nothing about a metric that has no bounds.
    """
    runs: int
    is_seed_measured: bool
    """Whether the interval would hold another training run: False after one run of what is trained."""


class WinCounts(NamedTuple):
    """On how many examples the second system is better, worse or the same."""

    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second system against the first on one metric."""

    difference: float
    interval: Interval
    p_value: float
    """Two-sided, of the test whose inversion is the interval: below 0.05 exactly if 0 lies outside."""
    exact_p: float | None
    """Exact McNemar for right and wrong; randomisation by passage for other means over examples, and
    for questions that share passages. None with several runs, which it cannot count, and for a
    metric that is not such a mean.
    """
    counts: WinCounts | None
    """None for a metric that has no value for a single example."""
    is_seed_measured: bool
    """Whether each system has several runs, or nothing to train."""

    @property
    def is_real(self) -> bool:
        """Whether it survives the examples and the seed."""
        return self.is_seed_measured and self.p_value < LEVEL


def mean_over_seeds(system: Measured) -> Score:
    """The mean over a system's runs with its interval."""
    score = float(system.scores_S.mean())
    count = int(system.counted_N.sum())
    return Score(
        score=score,
        interval=interval_around(score, spread_of(system), system.bounds, count),
        runs=system.runs,
        is_seed_measured=_is_seed_measured(system),
    )


def difference(first: Measured, second: Measured) -> Difference:
    """The second system minus the first, on the same examples in the same order.

    If the metric has bounds, half a win and half a loss by the whole range are added before the
    interval is made, and so its middle is the difference times n / (n + 1). This is for small
    samples as Wilson's interval is for a score: 3 wins and no loss of 50 are not certain to be an
    advantage. Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions", add the same to n examples, and two ties.

    Raises ValueError unless both systems were measured on the same examples.
    """
    if not np.array_equal(first.unit_N, second.unit_N):
        raise ValueError("a difference needs both systems on the same examples")
    found = float(second.scores_S.mean() - first.scores_S.mean())
    count, (low, high) = int(first.counted_N.sum()), first.bounds
    scale = high - low if np.isfinite(high - low) else 0.0
    # The mean over several runs jumps less from right to wrong than a single run does.
    jump = scale / float(np.sqrt(first.runs * second.runs))
    middle, spread = _with_half_a_win(found, spread_of(second, first), count, jump)
    half, limit = spread.half_width(), scale or float("inf")
    return Difference(
        difference=found,
        interval=Interval(
            min(found, max(-limit, middle - half)), max(found, min(limit, middle + half))
        ),
        p_value=spread.p_value(middle),
        exact_p=_exact_p(first, second),
        counts=_win_counts(first, second),
        is_seed_measured=_is_seed_measured(first) and _is_seed_measured(second),
    )


def _with_half_a_win(
    found: float, spread: Spread, count: int, scale: float
) -> tuple[float, Spread]:
    """The difference and its spread with half an example at each end of the scale."""
    if not scale:
        return found, spread
    middle = found * count / (count + 1)
    added = (scale**2 + middle**2) / (count + 1) ** 2
    return middle, Spread(
        examples=spread.examples * (count / (count + 1)) ** 2 + added,
        examples_freedom=spread.examples_freedom,
        seeds=spread.seeds,
        seeds_freedom=spread.seeds_freedom,
    )


def intervals(evidence: Evidence, groups: Mapping[str, str] | None = None) -> dict[str, Interval]:
    """Each metric's 95 % interval. groups: as in `measured_metrics`."""
    found = {
        name: mean_over_seeds(system).interval
        for name, system in measured_metrics([evidence], groups).items()
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def paired(
    first: Evidence, second: Evidence, groups: Mapping[str, str] | None = None
) -> dict[str, Difference]:
    """The second system's metrics minus the first's, if both have them, on the same examples in any
    order. Raises ValueError if the examples differ.
    """
    if not are_same(first.ids, second.ids):
        raise ValueError("a paired test needs both systems on the same examples, each once")
    ids = in_rising_order(first.ids)
    unit_N = units_of(ids, groups or {})
    one, other = (Metrics([in_order(system, ids)], unit_N) for system in (first, second))
    found = {name: difference(one[name], other[name]) for name in one if name in other}
    return {name: its for name, its in found.items() if np.isfinite(its.interval.high)}


def _is_seed_measured(system: Measured) -> bool:
    return system.is_deterministic or system.runs > 1


def _exact_p(first: Measured, second: Measured) -> float | None:
    if first.values_SN is None or second.values_SN is None or first.runs + second.runs > 2:
        return None
    is_plain = first.units == first.counted_N.sum()
    if is_plain and first.is_right_or_wrong and second.is_right_or_wrong:
        wins, losses, _ = _win_counts(first, second) or (0, 0, 0)
        return mcnemar(wins, losses)
    difference_SN = first.counted(second.values_SN - first.values_SN)
    return randomisation(difference_SN[0], first.counted(first.unit_N))


def _win_counts(first: Measured, second: Measured) -> WinCounts | None:
    """By the mean over the runs."""
    if first.values_SN is None or second.values_SN is None:
        return None
    gain_N = first.counted(second.values_SN.mean(axis=0))
    gain_N -= first.counted(first.values_SN.mean(axis=0))
    wins, losses, ties = (int(np.sum(found)) for found in (gain_N > 0, gain_N < 0, gain_N == 0))
    if not first.higher_is_better:
        wins, losses = losses, wins
    return WinCounts(wins=wins, losses=losses, ties=ties)
