"""How certain a score is, and whether a difference is real: over the examples and the training seeds.

    system = measured_means(scores[S][N], groups)       # or measured_metrics(evidence of each run, groups)
    mean_over_seeds(system)                             # score, interval, whether the seed was measured
    difference(first, second)                           # difference, interval, p-values, is_real
    holm(p_values)                                      # of several comparisons

`intervals` and `paired` are the same for every metric of one evaluation of each system.
"""

from .compare import (
    Difference,
    Score,
    WinCounts,
    difference,
    intervals,
    mean_over_seeds,
    paired,
)
from .exact import holm, mcnemar, randomisation
from .measured import Measured, measured_means, measured_metrics
from .spread import Interval

__all__ = [
    "Difference",
    "Interval",
    "Measured",
    "Score",
    "WinCounts",
    "difference",
    "holm",
    "intervals",
    "mcnemar",
    "mean_over_seeds",
    "measured_means",
    "measured_metrics",
    "paired",
    "randomisation",
]
