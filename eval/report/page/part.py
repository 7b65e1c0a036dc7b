"""What the page shows of one part of the data: counts of right and wrong, and figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from llama_peft.tasks import MAIN

from ...metrics.catalogue import Metric, metrics_of
from ...metrics.classification import confusion
from ...metrics.confidence import reliability, selective_curve
from ...metrics.ids import matched
from ...metrics.squad_v2 import normalise, threshold_curve
from ...results import SystemResults
from ..charts import Chart, figures
from ..charts.figures import Colours, Curve, Mean
from .kinds import by_kind

MOST_COLUMNS = 12
"""Labels of a table of counts; more of them are drawn."""
_PAIRS = 10
"""Pairs of labels that are listed if there is no table of counts."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The systems that were evaluated on one part of the data."""

    title: str
    systems: Mapping[str, SystemResults]
    """By the name that the page calls them."""
    before: str
    """The system that the others are compared with: the untouched base, or the first one."""
    after: str
    """The system that is compared: the tuned one, or the last one."""

    @property
    def first(self) -> SystemResults:
        return self.systems[self.before]

    @property
    def two(self) -> Mapping[str, SystemResults]:
        """The two that are compared; one, if there is no other."""
        return {name: self.systems[name] for name in (self.before, self.after)}

    @property
    def metric(self) -> Metric:
        """The main metric."""
        side = self.first.side
        return next(metric for metric in metrics_of(side) if metric.name == MAIN[side][0])

    @property
    def means(self) -> dict[str, Mean]:
        """The main score of each system that has one."""
        known = {name: _mean(one, self.metric) for name, one in self.systems.items()}
        return {name: one for name, one in known.items() if one is not None}

    @property
    def colours(self) -> Colours:
        """The colour of each system; the two that are compared have the same in every report."""
        return figures.colours_of([*dict.fromkeys((self.after, self.before, *self.systems))])


class Share(NamedTuple):
    """A number of examples, and its share of the row, 0 to 1."""

    examples: int
    share: float


class Grid(NamedTuple):
    """Counts of what one system predicted, by what is true."""

    caption: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Share]]


def grids(part: Part) -> Iterator[Grid]:
    """Yield the counts of each system. Numbers have none, and many labels have no room."""
    for name, system in part.systems.items():
        if system.side == "numbers" or len(system.labels) > MOST_COLUMNS:
            continue
        columns, rows = counts_of(system)
        shares = {
            label: [Share(count, count / (sum(row) or 1)) for count in row]
            for label, row in rows.items()
        }
        yield Grid(name, tuple(columns), shares)


def counts_of(system: SystemResults) -> tuple[list[str], dict[str, list[int]]]:
    """Return what is predicted as columns, and the counts of each true label or kind of question."""
    if system.side == "label_sets":
        return ["right", "missed", "given by mistake"], _label_counts(system)
    if system.side == "answers":
        return _answer_counts(system)
    counts = confusion(system.texts, system.gold_labels, system.labels)
    columns = [*system.labels, "no label"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    return columns, {k: row.tolist() for k, row in zip(system.labels, counts, strict=True)}


def confused(system: SystemResults) -> list[tuple[str, str, int]]:
    """Return the commonest mistakes, as true label, predicted label and count, if the labels are too
    many for a table of counts.
    """
    if system.side != "labels" or len(system.labels) <= MOST_COLUMNS:
        return []
    columns, rows = counts_of(system)
    pairs = [
        (label, said, count)
        for label, row in rows.items()
        for said, count in zip(columns, row, strict=True)
        if count and said != label
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:_PAIRS]


def _label_counts(system: SystemResults) -> dict[str, list[int]]:
    """For each label: in how many texts it is right, missed, and given by mistake."""
    gold_NL, given_NL = np.hsplit(system.evidence.rows[:] > 0, 2)
    kinds = (gold_NL & given_NL, gold_NL & ~given_NL, given_NL & ~gold_NL)
    counts_LK = np.stack([kind_NL.sum(axis=0) for kind_NL in kinds], axis=1)
    return dict(zip(system.labels, counts_LK.tolist(), strict=True))


def is_punctuation(said: str) -> bool:
    """Whether an answer holds nothing that is compared, as "?": it is scored like no answer."""
    return said != "" and not normalise(said)


def _answer_counts(system: SystemResults) -> tuple[list[str], dict[str, list[int]]]:
    columns = ["answered right", "answered wrong", "no answer", "punctuation only"]
    rows = {"answerable": [0] * 4, "unanswerable": [0] * 4}
    pairs = matched(system.texts, system.gold_lists)
    for (said, gold), exact in zip(pairs, system.evidence.vector("exact"), strict=True):
        column = 2 if not said else 3 if is_punctuation(said) else 0 if exact else 1
        rows["answerable" if any(gold) else "unanswerable"][column] += 1
    kept = 4 if any(row[3] for row in rows.values()) else 3
    return columns[:kept], {name: row[:kept] for name, row in rows.items() if any(row)}


def drawn(part: Part) -> Iterator[Chart]:
    """Yield every figure that the predictions of a part allow."""
    colours = part.colours
    yield from filter(None, [figures.scores(part.metric.name, part.means, colours)])
    found = [
        figures.reliability(_each(part.two, _bins), colours),
        figures.coverage(_each(part.systems, _surest), colours),
        figures.threshold(_each(part.two, _thresholds), colours),
        _matrix(part),
    ]
    yield from filter(None, found)
    for name, title, kinds, own in by_kind(part.systems):
        if chart := figures.by_kind(name, title, kinds, own, colours):
            yield chart


def _mean(system: SystemResults, metric: Metric) -> Mean | None:
    """Return a system's score with its interval; None if it has none."""
    score, bounds = system.score(metric.name), system.interval(metric.name)
    if score is None:
        return None
    return Mean(score, bounds.low, bounds.high) if bounds else Mean(score, score, score)


Found = TypeVar("Found")
Bins = tuple[list[float], list[float], list[float]]


def _each(
    systems: Mapping[str, SystemResults], find: Callable[[SystemResults], Found | None]
) -> dict[str, Found]:
    """Return what is found of each system, without those that have nothing of it."""
    found = {name: find(system) for name, system in systems.items()}
    return {name: one for name, one in found.items() if one is not None}


def _matrix(part: Part) -> Chart | None:
    system = part.systems[part.after]
    if system.side != "labels":
        return None
    return figures.confusion("confusion", part.after, *counts_of(system))


def _bins(system: SystemResults) -> Bins | None:
    """Return examples, mean probability and accuracy of each bin; None if a line has no
    probabilities.
    """
    known, size = system.told.probabilities, len(system.labels)
    if system.side != "labels" or len(known) < len(system.lines):
        return None
    if any(len(own) != size or not all(0 <= one <= 1 for one in own) for own in known.values()):
        return None
    counts, confidences, accuracies = reliability(known, system.gold_labels, system.labels).values()
    return counts, confidences, accuracies


def _surest(system: SystemResults) -> Curve | None:
    """Return what is right of the surest predictions, by the share that is kept: accuracy of labels,
    or exact match of answers (0 to 1). None if a line does not say how sure it is.
    """
    if system.side == "labels":
        sureness = np.fromiter(map(max, system.told.probabilities.values()), dtype=np.float64)
    else:
        sureness = np.fromiter(
            (-one for one in system.told.no_answer_probabilities.values()), dtype=np.float64
        )
    if len(sureness) < len(system.lines) or (sureness == sureness[0]).all():
        return None
    if system.side == "labels":
        right = system.evidence.vector("accuracy")
    elif system.side == "answers":
        right = system.evidence_of(system.before).vector("exact") / 100
    else:
        return None
    curve = selective_curve(sureness, right)
    return Curve(curve.coverage, curve.score).thinned()


def _thresholds(system: SystemResults) -> Curve | None:
    """Return F1 by the threshold on "no answer"; None if a line has no probability of it."""
    known = system.told.no_answer_probabilities
    if system.side != "answers" or len(known) < len(system.lines):
        return None
    limits, scores = threshold_curve(system.before, system.gold_lists, known)
    used = system.results.configs[system.task].no_answer_threshold
    return Curve(limits, scores, used).thinned() if len(limits) > 1 else None
