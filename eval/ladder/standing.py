"""Where each rung stands: its score, what the recipe's own training gains over it, and what it costs."""

from dataclasses import dataclass
from statistics import fmean

from llama_peft.run_folder.ladder.whole import WholeRecord
from llama_peft.tasks import MAIN

from ..metrics.catalogue import Metric, metrics_of
from ..metrics.intervals import Difference, Score, difference, holm, mean_over_seeds
from .read import Climbed, Rung

REAL = 0.05
"""Below this p-value, after Holm's correction, a difference is called real."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a rung takes; None is not known, or not needed."""

    train_seconds: float | None = None
    train_memory: float | None = None
    seconds_per_1000: float | None = None
    bytes_to_ship: float | None = None
    jobs: int = 1
    """How many measurements shared the device meanwhile, at most."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One rung on all training examples."""

    rung: Rung
    mean: Score
    cost: Cost
    gain: Difference | None
    """What the best rung scores more than this one, on the same examples; None of the best itself."""
    p_adjusted: float | None
    """The p-value of this difference after Holm's correction over all of the ladder's."""

    @property
    def is_within_noise(self) -> bool:
        """Whether the best rung is not proven to be better."""
        return self.p_adjusted is not None and self.p_adjusted >= REAL


def metric_of(climbed: Climbed) -> Metric:
    """Return the metric that the ladder is judged by."""
    side = climbed.rungs[0].first.side
    return next(metric for metric in metrics_of(side) if metric.name == MAIN[side][0])


def standings(climbed: Climbed, metric: Metric, against: Rung) -> list[Standing]:
    """Return every rung on all training examples, the cheapest first, with what another gains over it.

    A constant number has no correlation, so a rung may have no score.
    """
    scored = [rung for rung in climbed.rungs if metric.name in rung.measured]
    gains = {
        rung.name: difference_of(rung, against, metric) for rung in scored if rung is not against
    }
    adjusted = dict(zip(gains, holm([one.p_value for one in gains.values()]), strict=True))
    return [
        Standing(
            rung=rung,
            mean=mean_of(rung, metric),
            cost=cost_of(rung),
            gain=gains.get(rung.name),
            p_adjusted=adjusted.get(rung.name),
        )
        for rung in scored
    ]


def best_of(climbed: Climbed, metric: Metric) -> Rung:
    """Return the rung of the best mean; of equal ones, the cheapest."""
    sign = 1 if metric.higher_is_better else -1
    scored = (rung for rung in climbed.rungs if metric.name in rung.measured)
    return max(scored, key=lambda rung: sign * mean_of(rung, metric).score)


def mean_of(rung: Rung, metric: Metric) -> Score:
    """Return a rung's score, the mean over its seeds, with its interval."""
    return mean_over_seeds(rung.measured[metric.name])


def difference_of(first: Rung, second: Rung, metric: Metric) -> Difference:
    """Return what the second rung scores more than the first one on the same examples."""
    return difference(first.measured[metric.name], second.measured[metric.name])


def cost_of(rung: Rung) -> Cost:
    """Return what a rung takes: the mean over its seeds, and the highest memory."""
    costs = [system.results.costs for system in rung.systems]
    records = [one.record for one in rung.repeats if one.record is not None]
    trained = [one for one in records if not isinstance(one, WholeRecord)]
    seconds = [one.wall_seconds for one in records]
    seconds = seconds or [one.fit_seconds for one in costs if one.fit_seconds is not None]
    rates = [one.seconds_per_1000 for one in costs if one.seconds_per_1000 is not None]
    sizes = [one.bytes for one in records if isinstance(one, WholeRecord)]
    sizes = sizes or [one.bytes_to_ship for one in costs if one.bytes_to_ship is not None]
    peaks = [one.peak_memory_bytes for one in records if one.peak_memory_bytes is not None]
    return Cost(
        train_seconds=fmean(seconds) if seconds else None,
        train_memory=max(peaks) if peaks else None,
        seconds_per_1000=fmean(rates) if rates else None,
        bytes_to_ship=max(sizes) if sizes else None,
        jobs=max((*(one.jobs for one in costs), *(one.jobs for one in trained)), default=1),
    )
