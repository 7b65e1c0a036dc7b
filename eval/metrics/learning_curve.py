"""How a score grows with the number of training examples, and what more of them would bring."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_EXPONENTS = np.linspace(0.05, 2.0, 118)
"""How fast the error falls. Published learning curves lie well inside (Hestness et al. 2017,
arXiv 1712.00409: 0.07 to 0.35; small parts fall faster)."""
FEWEST = 4
"""Sizes that a curve needs: three numbers are fitted, and one size is held out."""


class Point(NamedTuple):
    """A score on a number of training examples."""

    examples: int
    score: float


class Curve(NamedTuple):
    """score(n) = highest - slope * n ** -exponent (the power law of Hestness et al. 2017)."""

    highest: float
    slope: float
    exponent: float

    def at(self, examples: float) -> float:
        """Return the score that so many examples give."""
        return self.highest - self.slope * examples**-self.exponent


def fit(points: Sequence[Point]) -> Curve:
    """Return the curve of the smallest squared error that does not fall.

    For each exponent the other two numbers are a linear regression, so no search can end elsewhere.
    """
    sizes = np.array([one.examples for one in points], dtype=np.float64)
    scores = np.array([one.score for one in points])
    best, smallest = Curve(float(scores.mean()), 0.0, 1.0), float(scores.var() * len(scores))
    for exponent in _EXPONENTS:
        falls = sizes**-exponent
        centred = falls - falls.mean()
        slope = max(0.0, -float(centred @ scores) / float(centred @ centred))
        highest = float(scores.mean() + slope * falls.mean())
        error = float(np.sum((highest - slope * falls - scores) ** 2))
        if error < smallest - 1e-15:
            best, smallest = Curve(highest, slope, float(exponent)), error
    return best


def predicts(points: Sequence[Point]) -> bool:
    """Return whether curves foretell the next size better than a flat line does.

    Each of the largest sizes is held out in turn (those with three or more below it), and foretold
    from the smaller ones: by their curve, and by the score of the largest of them.
    """
    ordered = sorted(points)
    if len(ordered) < FEWEST:
        return False
    curved = flat = 0.0
    for held_out in range(FEWEST - 1, len(ordered)):
        known, (examples, score) = ordered[:held_out], ordered[held_out]
        curved += (fit(known).at(examples) - score) ** 2
        flat += (known[-1].score - score) ** 2
    return curved < flat


def examples_for(points: Sequence[Point], more: float) -> int | None:
    """Return how many more training examples would raise the score by `more`.

    None if the curve ends below that, foretells no better than a flat line, or says more than ten
    times as many as the largest size: so far no curve can be trusted.
    """
    if not predicts(points):
        return None
    curve, largest = fit(points), max(one.examples for one in points)
    gap = curve.highest - (curve.at(largest) + more)
    if gap <= 0 or curve.slope <= 0:
        return None
    needed = (curve.slope / gap) ** (1 / curve.exponent)
    return None if needed > 10 * largest else math.ceil(needed - largest)
