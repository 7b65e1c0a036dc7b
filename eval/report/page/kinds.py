"""The F1 of answers by kind of question: the length of the answer, the question word, the passage."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ...lines import PredictionLine
from ...metrics.columns import Column, held
from ...metrics.evidence import in_order
from ...metrics.ids import aligned, are_same
from ...metrics.intervals import mean_over_seeds, measured_means
from ...metrics.measure import texts_of
from ...metrics.squad_v2 import normalise
from ...results import SystemResults
from ..charts.figures import Mean

_WORDS = ("what", "who", "whom", "whose", "which", "when", "where", "why", "how")
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_LENGTHS = {"1": 1, "2": 2, "3-4": 4, "5-9": 9}
"""The most words of an answer of each length; the longest have more."""
_FEWEST = 2
"""Questions of a kind: a single one has no interval."""
_QUARTERS = 4


class ByKind(NamedTuple):
    """The F1 by kind of question."""

    name: str
    title: str
    kinds: Mapping[str, int]
    """How many questions each kind has."""
    means: Mapping[str, Mapping[str, Mean]]
    """For each system, the F1 by kind."""


def by_kind(systems: Mapping[str, SystemResults]) -> Iterator[ByKind]:
    """Yield the F1 of all systems by each way to sort questions; none if labels or numbers are
    predicted.
    """
    first = next(iter(systems.values()))
    if first.side != "answers":
        return
    ways: dict[tuple[str, str], Callable[[PredictionLine], str]] = {
        ("answer_length", "F1 by words of the answer"): _answer_length,
        ("question_word", "F1 by question word"): _question_word,
        ("passage_length", "F1 by words of the passage"): _quarters(first.lines),
    }
    for (name, title), kind_of in ways.items():
        order = [*_LENGTHS, "10+"] if name == "answer_length" else []
        if not all(are_same(one.told.ids, first.told.ids) for one in systems.values()):
            continue
        kinds = Column[str](first.told.ids, held(map(kind_of, first.lines)))
        counts = _counted(filter(None, kinds.values()), order)
        own = {name: _means(system, kinds, counts) for name, system in systems.items()}
        yield ByKind(name, title, counts, own)


def _counted(kinds: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """Return how many questions each kind has, without the rarest; in a given order or the commonest
    first.
    """
    found = Counter(kinds)
    names = (
        [name for name in order if name in found] if order else sorted(found, key=_natural(found))
    )
    return {name: found[name] for name in names if found[name] >= _FEWEST}


def _natural(found: Mapping[str, int]) -> Callable[[str], tuple[int, str]]:
    """Return a key that sorts numbers by their size, and words by how common they are."""
    return lambda name: (
        (int(digits[0]), name) if (digits := re.findall(r"\d+", name)) else (-found[name], name)
    )


def _means(system: SystemResults, kinds: Column[str], counts: Mapping[str, int]) -> dict[str, Mean]:
    values_N = in_order(system.evidence, kinds.ids).vector("f1")
    units, found = aligned(system.told.units, kinds.ids), {}
    for kind in counts:
        own = kinds.of(kind)
        groups = [*units.at(own).values()]
        mean = mean_over_seeds(measured_means(values_N[None, own], groups, bounds=(0.0, 100.0)))
        bounds = mean.interval
        low, high = (bounds.low, bounds.high) if bounds else (mean.score, mean.score)
        found[kind] = Mean(mean.score, low, high)
    return found


def _answer_length(line: PredictionLine) -> str:
    """Return the words of the shortest right answer; "" if there is none."""
    words = [len(normalise(text).split()) for text in texts_of(line.gold)]
    if not any(words):
        return ""
    shortest = min(count for count in words if count)
    return next((name for name, most in _LENGTHS.items() if shortest <= most), "10+")


def _question_word(line: PredictionLine) -> str:
    """Return the first question word, or "other"."""
    found = _WORD.search(line.text)
    if not found:
        return "other" if line.text else ""
    return {"whom": "who", "whose": "who"}.get(word := found[0].lower(), word)


def _quarters(lines: Sequence[PredictionLine]) -> Callable[[PredictionLine], str]:
    """Return a function that names the quarter of the passages, by their words, of a question."""
    counts = (len(line.passage.split()) for line in lines if line.passage)
    lengths = np.sort(np.fromiter(counts, dtype=np.int64))
    if not len(lengths):
        return lambda line: ""
    places = [max(0, len(lengths) * n // _QUARTERS - 1) for n in range(1, _QUARTERS + 1)]
    ends = sorted({*lengths[places].tolist()})
    starts = [int(lengths[0]), *(end + 1 for end in ends[:-1])]
    return partial(_quarter, [*zip(starts, ends, strict=True)])


def _quarter(bounds: Sequence[tuple[int, int]], line: PredictionLine) -> str:
    words = len(line.passage.split())
    own = next((bound for bound in bounds if line.passage and words <= bound[1]), None)
    return "" if own is None else f"{own[0]}-{own[1]}"
