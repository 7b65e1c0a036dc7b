"""How far an estimate may be off, because of the examples drawn and because of the training seeds.

Each of the two parts has a variance and the degrees of freedom with which it was estimated. The
interval inverts the test: it holds the values that the p-value does not refute at 5 %. So an interval
of a difference leaves out 0 exactly if p is below 0.05.

The parts are joined by adding the squares of their half-widths, each with its own t quantile (the
method of variance estimates recovery: Zou and Donner 2008, "Construction of confidence limits about
effect measures", section 2). Two or three seeds have one or two degrees of freedom, and t quantiles
of 12.7 and 4.3; one quantile for the joint variance (Satterthwaite 1946) is too small if the few
seeds happen to agree: it covered 84 to 90 % for two seeds that matter, and this 90 to 94 %.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit

from ..columns import FloatArray
from ..evidence import Bounds
from .measured import Measured

_FAR = 12.0
"""No p-value is below that of a normal variable so many standard deviations off: 4e-33."""
LEVEL = 0.05
"""1 minus the share of cases in which an interval holds the truth."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The variance of an estimate by its two sources."""

    examples: float
    examples_freedom: float
    """Degrees of freedom; infinite if the variance follows from the estimate itself."""
    seeds: float = 0.0
    seeds_freedom: float = float("inf")

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the symmetric interval; infinite if there is one unit only."""
        if self.examples_freedom < 1:
            return float("inf")
        return float(
            np.hypot(
                _quantile(self.examples_freedom, level) * np.sqrt(self.examples),
                _quantile(self.seeds_freedom, level) * np.sqrt(self.seeds) if self.seeds else 0.0,
            )
        )

    def p_value(self, distance: float) -> float:
        """The level at which the symmetric interval ends at this distance from the estimate."""
        size = abs(distance)

        def excess(normal: float) -> float:
            """The root is sought over normal quantiles, in which half-widths are almost linear."""
            return self.half_width(2 * float(ndtr(-normal))) - size

        if excess(0.0) >= 0:
            return 1.0
        if excess(_FAR) <= 0:
            return 2 * float(ndtr(-_FAR))
        return 2 * float(ndtr(-brentq(excess, 0.0, _FAR)))


def spread_of(system: Measured, other: Measured | None = None) -> Spread:
    """The spread of a system's mean over its runs, or of its difference to another's.

    The runs of two systems are independent, and their examples are the same.
    """
    deviations_D = system.deviations_SD.mean(axis=0)
    if other is not None:
        deviations_D = deviations_D - other.deviations_SD.mean(axis=0)
    systems = [system] if other is None else [system, other]
    follows = other is None and system.runs == 1 and system.is_right_or_wrong
    is_plain = system.units == system.counted_N.sum()
    seeds = [(*_between(one), one.runs - 1) for one in systems if one.runs > 1]
    between = sum(variance for variance, _, _ in seeds)
    freedom = float("inf")
    if between > 0:  # Welch 1947: the degrees of freedom of a sum of variances
        freedom = between**2 / sum(variance**2 / each for variance, _, each in seeds)
    examples = float(deviations_D @ deviations_D)
    if follows and is_plain:  # p (1 - p) / n, without the n - 1 of an estimate
        examples *= 1 - 1 / system.units if system.units > 1 else 1
    return Spread(
        examples=examples,
        examples_freedom=float("inf") if follows and is_plain else system.units - 1,
        seeds=max(0.0, between - sum(explained for _, explained, _ in seeds)),
        seeds_freedom=freedom,
    )


def _between(system: Measured) -> tuple[float, float]:
    """The variance of the mean over the runs by the scatter of their scores, and what of it to leave
    out because the scatter over the examples shows it already.

    The runs and the examples are crossed, so what a run does to single examples is in both scatters,
    and their sum counts it twice (Cameron, Gelbach and Miller 2011, "Robust inference with multiway
    clustering"). Of two runs only half of it is taken off: their scatter comes out small by chance
    so often that taking off all of it covered 90 % where this covers 91 to 98.
    """
    runs = system.runs
    own_SD = system.deviations_SD - system.deviations_SD.mean(axis=0)
    explained = float((own_SD**2).sum()) / ((runs - 1) * runs)
    return float(system.scores_S.var(ddof=1)) / runs, min(1.0, (runs - 1) / 2) * explained


def interval_around(estimate: float, spread: Spread, bounds: Bounds, count: int) -> Interval | None:
    """The interval of a score; None if nothing bounds it. count: the examples behind it.

    Between two bounds it is Wilson's: it holds each value v for which the estimate is not further
    away than the half-width that belongs to v, whose variance goes with v (1 - v) (Wilson 1927,
    "Probable inference, the law of succession, and statistical inference"). What is not a plain
    proportion, or comes in groups, has the number of examples that gives its own variance, as in
    Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data". An estimate without any variance, as 100 of 100
    right, has the examples themselves. A loss has the symmetric interval of its logarithm.

    Simulated at n = 50 and 400: this covers 91.5 to 98 % for F1 of tokens and of labels, MCC and BLEU
    whose true score is .2 to .98; percentile, BCa and t intervals cover 62 to 98 % of the same.
    """
    half, (low, high) = spread.half_width(), bounds
    if np.isinf(half):
        return Interval(low, high) if np.isfinite(bounds).all() else None
    if np.isfinite(bounds).all():
        share = (estimate - low) / (high - low)
        chance = share * (1 - share)
        ratio = _quantile(np.inf, LEVEL) ** 2 / count
        if half and chance > 0:
            ratio = (half / (high - low)) ** 2 / chance
        middle = (share + ratio / 2) / (1 + ratio)
        width = np.sqrt(max(chance, 0.0) * ratio + ratio**2 / 4) / (1 + ratio)
        ends = low + (high - low) * np.array([middle - width, middle + width])
    elif low == 0 and estimate > 0:
        ends = estimate * np.exp(np.array([-half, half]) / estimate)
    else:
        ends = estimate + np.array([-half, half])
    return _within(ends, bounds, estimate)


def _within(ends: FloatArray, bounds: Bounds, estimate: float) -> Interval:
    """The ends between the bounds; sums of floats never put the estimate outside."""
    low, high = np.clip(ends, *bounds).tolist()
    return Interval(min(low, estimate), max(high, estimate))


def _quantile(freedom: float, level: float) -> float:
    """The t quantile of a two-sided level."""
    return -float(stdtrit(freedom, level / 2))
