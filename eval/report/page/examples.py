"""All examples of a part as JSON, from which the page's script lists, filters and searches them.

Texts that many examples share are written once: passages, and prompts around them.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llama_peft.system.sequences.spool import Spool
from llama_peft.system.terminal import visible

from ...lines import PredictionLine
from ...metrics.catalogue import metrics_of
from ...metrics.columns import FloatArray, IntArray
from ...metrics.ids import found
from ...results import SystemResults
from .part import Part, is_punctuation

_TEXT, _PASSAGE = "\ue000", "\ue001"
"""What stands for the text and for the passage in a prompt; `page.js` knows them too."""
_MOST = 100_000
"""Examples of a part that are written as JSON, to see whether they have room; 20 MB are fewer."""
_TOGETHER = 1024
"""Examples that are Python objects at a time."""
Columns = dict[str, list[object]]


class _Pieces:
    """The list of each column as JSON, in pieces without brackets."""

    def __init__(self) -> None:
        self._texts: Spool[str] = Spool()
        self._columns: dict[str, list[int]] = {}
        """Which of the texts are of each column."""

    def add(self, columns: Columns) -> int:
        """Add some rows, and return how many characters they take."""
        written = 0
        for name, values in columns.items():
            text = _as_json(values)[1:-1]
            self._columns.setdefault(name, []).append(len(self._texts))
            self._texts.append(text)
            written += len(text)
        return written

    def json(self) -> Iterator[str]:
        """Yield the pieces of the object of all columns."""
        return _between("{}", (self._column(name) for name in self._columns))

    def _column(self, name: str) -> Iterator[str]:
        yield f'"{name}":'
        yield from _between("[]", ([self._texts[one]] for one in self._columns[name]))


class Store:
    """Texts by their number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.size = 0
        """Characters of all texts."""

    def number(self, text: str) -> int:
        """Return the number of a text; -1 if it is empty."""
        if text and text not in self._numbers:
            self._numbers[text] = len(self._numbers)
            self.size += len(text)
        return self._numbers[text] if text else -1

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)


def embedded(parts: Sequence[Part], largest: int) -> Iterator[str]:
    """Yield the examples of all parts as pieces of JSON for a page, at most about `largest` bytes."""
    room = largest // max(1, len(parts))
    return _between("[]", (_fitting(part, room).json() for part in parts))


def _fitting(part: Part, room: int) -> "_Sample":
    """Return as many examples of a part, drawn at random, as there is room for."""
    chosen: Sequence[int] = range(len(part.first.lines))
    if len(chosen) > _MOST:
        chosen = random.Random(0).sample(chosen, _MOST)
    while True:
        sample = _Sample(part, chosen)
        sample.fill(room)
        if sample.size <= room or len(chosen) < 2:
            return sample
        kept = int(0.95 * sample.examples * room / sample.size)
        chosen = random.Random(0).sample(chosen, max(1, min(kept, len(chosen) - 1)))


class _Sample:
    """Chosen examples of a part as JSON, of which a few are Python objects at a time."""

    def __init__(self, part: Part, chosen: Sequence[int]) -> None:
        ids, places = part.first.told.ids, np.array(chosen, dtype=np.int64)
        places = places[np.argsort(ids[places], kind="stable")]
        self._part, self._places = part, places
        self._passages, self._frames = Store(), Store()
        self._rows = _Pieces()
        self._systems: list[_System | None] = []
        """What each system said; None if it was evaluated on other examples."""
        for system in part.systems.values():
            own = found(system.told.ids, ids[places])
            self._systems.append(None if own is None else _System(system, own))
        self._facts = _as_json(_facts(part))[:-1]
        self.examples, self._written = 0, len(self._facts)

    @property
    def size(self) -> int:
        """Characters of what is written."""
        return self._written + self._passages.size + self._frames.size

    def fill(self, room: int) -> None:
        """Write the examples in the order of their ids, and stop when they take more than `room`."""
        while self.examples < len(self._places) and self.size <= room:
            now = slice(self.examples, self.examples + _TOGETHER)
            lines = [self._part.first.lines[place] for place in self._places[now].tolist()]
            self._written += self._rows.add(_rows(lines, self._passages))
            for system in filter(None, self._systems):
                self._written += system.pieces.add(system.said(now, self._frames))
            self.examples += len(lines)

    def json(self) -> Iterator[str]:
        """Yield the pieces of the part."""
        said = (["null"] if one is None else one.pieces.json() for one in self._systems)
        yield self._facts
        yield ',"rows":'
        yield from self._rows.json()
        yield ',"said":'
        yield from _between("[]", said)
        for name, store in (("passages", self._passages), ("frames", self._frames)):
            yield f',"{name}":'
            yield from _between("[]", ([_as_json(text)] for text in store))
        yield "}"


class _System:
    """What one system said of the chosen examples."""

    def __init__(self, system: SystemResults, places: IntArray) -> None:
        """places: where the chosen examples are among its lines."""
        self._system, self._places = system, places
        self.pieces = _Pieces()
        metric = metrics_of(system.side)[0]
        sign = 1.0 if metric.higher_is_better else -1.0
        self._right = sign * self._values(metric.name)
        """1 for each prediction that is right and 0 for the others; of a number, minus its error."""
        self._score = self._values("f1") if system.side == "answers" else self._right

    def _values(self, metric: str) -> FloatArray:
        divided = 100 if self._system.side == "answers" else 1
        return self._system.evidence.vector(metric)[self._places] / divided

    def said(self, now: slice, frames: Store) -> Columns:
        """Return what it said of some of the examples."""
        own = [self._system.lines[place] for place in self._places[now].tolist()]
        return {
            "prediction": [line.prediction for line in own],
            "right": _rounded(self._right[now]),
            "score": _rounded(self._score[now]),
            "sure": [_sure(line) for line in own],
            "raw": [None if line.raw == line.prediction else line.raw for line in own],
            "start": [line.start for line in own],
            "frame": [frames.number(_frame(line)) for line in own],
            "hollow": [int(_is_hollow(line, self._system)) for line in own],
        }


def _rounded(values: FloatArray) -> list[object]:
    return [round(value, 4) for value in values.tolist()]


def _between(ends: str, items: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the pieces of items, with commas between them and brackets around them."""
    yield ends[0]
    for number, pieces in enumerate(items):
        if number:
            yield ","
        yield from pieces
    yield ends[1]


def _as_json(value: object) -> str:
    """Return JSON that cannot end the element which holds it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").encode("utf-8", "replace").decode("utf-8")


def _facts(part: Part) -> dict[str, object]:
    """Return what is said of a part beside its examples."""
    return {
        "title": part.title,
        "side": part.first.side,
        "labels": part.first.labels,
        "metric": part.metric.name,
        "before": [*part.systems].index(part.before),
        "after": [*part.systems].index(part.after),
        "examples": len(part.first.lines),
        "systems": [
            {"name": name, "scores": system.results.results[system.task]}
            for name, system in part.systems.items()
        ],
    }


def _rows(lines: Sequence[PredictionLine], passages: Store) -> Columns:
    return {
        "id": [line.id for line in lines],
        "text": [_seen(line.text) for line in lines],
        "passage": [passages.number(_seen(line.passage)) for line in lines],
        "gold": [line.gold for line in lines],
        "starts": [line.gold_starts for line in lines],
    }


def _is_hollow(line: PredictionLine, system: SystemResults) -> bool:
    """Whether an answer is punctuation only, which is scored as an abstention."""
    return system.side == "answers" and is_punctuation(str(line.prediction))


def _sure(line: PredictionLine) -> float | None:
    """Return the probability of what is predicted; None if it is not known. Of several labels, that
    of the least sure decision.
    """
    if line.probabilities:
        if isinstance(line.prediction, list):
            return round(min(max(one, 1 - one) for one in line.probabilities), 4)
        return round(max(line.probabilities), 4)
    if line.no_answer_probability is None:
        return None
    silent = line.no_answer_probability
    return round(silent if line.prediction == "" else 1 - silent, 4)


def _frame(line: PredictionLine) -> str:
    """Return the prompt with marks in place of the passage and the text."""
    whole = _seen(line.prompt)
    if _TEXT in whole or _PASSAGE in whole:
        return whole
    for text, mark in ((line.passage, _PASSAGE), (line.text, _TEXT)):
        whole = whole.replace(_seen(text), mark) if text else whole
    return whole


def _seen(text: str) -> str:
    """Return a text whose control characters are seen."""
    return visible(text)
