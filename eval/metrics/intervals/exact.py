"""Tests of a difference that assume nothing but that the systems could be exchanged, and Holm's
correction for several of them.
"""

from collections.abc import Sequence

import numpy as np

from ..columns import FloatArray, IntArray

_SWAPS = 2000
_DRAWN = 300_000
"""Values that are in memory at a time."""


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p-value of paired right and wrong: how likely so uneven wins and losses are
    if either system wins with probability 1/2 (McNemar 1947, "Note on the sampling error of the
    difference between correlated proportions or percentages").
    """
    from scipy.stats import binomtest

    changed = wins + losses
    return float(binomtest(wins, changed).pvalue) if changed else 1.0


def randomisation(difference_N: FloatArray, unit_N: IntArray) -> float:
    """The p-value of approximate randomisation (Noreen 1989, "Computer-Intensive Methods for Testing
    Hypotheses"), which Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance
    in NLP", recommend for scores without a known distribution.

    If the systems were exchangeable, their answers to all questions on one passage could be swapped
    freely. So the p-value is the share of random swaps with at least the observed difference, and the
    observed one counts as one of them.
    """
    sums_U = np.bincount(np.unique(unit_N, return_inverse=True)[1], weights=difference_N)
    size_K, count_K = np.unique(np.abs(sums_U[sums_U != 0]), return_counts=True)
    generator, least = np.random.default_rng(0), abs(sums_U.sum()) - 1e-9
    together, beyond = max(1, _DRAWN // max(1, len(count_K))), 0
    for first in range(0, _SWAPS, together):
        size = (min(together, _SWAPS - first), len(count_K))
        swapped = (2.0 * generator.binomial(count_K, 0.5, size=size) - count_K) @ size_K
        # The tolerance is for sums in another order.
        beyond += int(np.sum(np.abs(swapped) >= least))
    return (1 + beyond) / (1 + _SWAPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, raised so that the chance of any false alarm among them is
    the level that each is compared with (Holm 1979, "A simple sequentially rejective multiple test
    procedure").

    The smallest of m is multiplied by m, the next by m - 1, and none is below a smaller one's.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
