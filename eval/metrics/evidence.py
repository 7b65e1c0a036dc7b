"""What the scores of one system need to know of each example, and how they follow from it.

Every score is a function of the distinct rows and of how often each occurs. So it can be computed
for many resamples of the examples at once, and equal rows are merged first.

Shapes: R resamples, K distinct rows, C columns. A statistic reads rows_KC once, and returns what maps
counts_RK to one value for each resample and each of its metrics: R is small if K is large, so what
depends on the rows alone is not computed for every few resamples. NaN marks a value that a resample
cannot have, for example because it holds no unanswerable question; such values are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .columns import FloatArray, Floats, IntArray, Texts
from .ids import are_same, places

Scores = Callable[[FloatArray], dict[str, FloatArray]]
Statistic = Callable[[FloatArray], Scores]
Vector = Callable[[FloatArray], FloatArray]
Bounds = tuple[float, float]
"""The lowest and the highest value that a score can have; they may be infinite."""

SHARE: Bounds = (0.0, 1.0)
CORRELATION: Bounds = (-1.0, 1.0)
LOSS: Bounds = (0.0, float("inf"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the scores of one system need to know of each example."""

    ids: Texts
    rows: Floats
    """One row for each example, in the order of `ids`."""
    statistic: Statistic
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    """For each metric that is a mean over the examples: what maps rows_NC to the value of each example,
    or NaN if the mean leaves it out.
    """
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """The bounds of the metrics that do not run from 0 to 1."""

    def vector(self, name: str) -> FloatArray:
        """The value of each example of a metric that is their mean."""
        return np.concatenate([self.vectors[name](piece) for piece in self.rows.pieces()])

    def at(self, places: IntArray) -> "Evidence":
        """The evidence of the examples at these places."""
        return replace(self, ids=self.ids[places], rows=self.rows.at(places))


def scores_of(evidence: Evidence) -> dict[str, float]:
    """Each metric on the examples as they are; without those that no example contributes to."""
    return {name: value for name, value in values_of(evidence).items() if not np.isnan(value)}


def values_of(evidence: Evidence) -> dict[str, float]:
    """Each metric on the examples as they are; NaN if no example contributes to it."""
    ones_1K = np.ones((1, len(evidence.rows)))
    scores = evidence.statistic(evidence.rows[:])(ones_1K)
    return {name: float(value[0]) for name, value in scores.items()}


def in_order(evidence: Evidence, ids: Texts) -> Evidence:
    """The same evidence with its examples in the order of `ids`. Raises ValueError unless both hold
    the same ids, each once.
    """
    if not are_same(evidence.ids, ids):
        raise ValueError("a paired test needs both systems on the same examples, each once")
    order = places(evidence.ids, ids)
    return evidence if order is None else evidence.at(order)
