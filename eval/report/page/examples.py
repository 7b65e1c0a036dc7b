"""All examples of a part as JSON, from which the page's script lists, filters and searches them.

Texts that many examples share are written once: passages, and prompts around them.
"""

import json
import random
from collections.abc import Sequence

from llama_peft.system.terminal import visible

from ...lines import PredictionLine
from ...metrics.catalogue import metrics_of
from ...metrics.columns import IntArray, Texts, texts
from ...metrics.ids import found
from ...results import SystemResults
from .part import Part, is_punctuation

_TEXT, _PASSAGE = "\ue000", "\ue001"
"""What stands for the text and for the passage in a prompt; `page.js` knows them too."""
_MOST = 100_000
"""Examples of a part that are written as JSON, to see whether they have room; 20 MB are fewer."""
Columns = dict[str, list[object]]


class Store:
    """Texts by their number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text; -1 if it is empty."""
        return self._numbers.setdefault(text, len(self._numbers)) if text else -1

    @property
    def texts(self) -> list[str]:
        return [*self._numbers]


def embedded(parts: Sequence[Part], largest: int) -> str:
    """Return the examples of all parts as JSON for a page, with at most about `largest` bytes."""
    room = largest // max(1, len(parts))
    return f"[{','.join(_fitting(part, room) for part in parts)}]"


def _fitting(part: Part, room: int) -> str:
    """Return a part with as many examples, drawn at random, as there is room for."""
    ids = part.first.told.ids
    chosen: Sequence[int] = range(len(ids))
    if len(ids) > _MOST:
        chosen = random.Random(0).sample(chosen, _MOST)
    while True:
        chosen = sorted(chosen, key=lambda place: ids[place])
        text = _as_json(_part(part, chosen))
        if len(text) <= room or len(chosen) < 2:
            return text
        kept = int(0.95 * len(chosen) * room / len(text))
        chosen = random.Random(0).sample(chosen, max(1, min(kept, len(chosen) - 1)))


def _as_json(value: object) -> str:
    """Return JSON that cannot end the element which holds it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").encode("utf-8", "replace").decode("utf-8")


def _part(part: Part, chosen: Sequence[int]) -> dict[str, object]:
    first, passages, frames = part.first, Store(), Store()
    own = [first.lines[place] for place in chosen]
    keys = texts(line.id for line in own)
    said = [_said(system, keys, frames) for system in part.systems.values()]
    return {
        "title": part.title,
        "side": first.side,
        "labels": first.labels,
        "metric": part.metric.name,
        "before": [*part.systems].index(part.before),
        "after": [*part.systems].index(part.after),
        "examples": len(first.lines),
        "rows": _rows(own, passages),
        "said": said,
        "passages": passages.texts,
        "frames": frames.texts,
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


def _said(system: SystemResults, keys: Texts, frames: Store) -> Columns | None:
    """Return what a system said of each example; None if it was evaluated on others."""
    places = found(system.told.ids, keys)
    if places is None:
        return None
    own, right = [system.lines[place] for place in places.tolist()], _right(system, places)
    return {
        "prediction": [line.prediction for line in own],
        "right": right,
        "score": _values(system, places, "f1") if system.side == "answers" else right,
        "sure": [_sure(line) for line in own],
        "raw": [None if line.raw == line.prediction else line.raw for line in own],
        "start": [line.start for line in own],
        "frame": [frames.number(_frame(line)) for line in own],
        "hollow": [int(_is_hollow(line, system)) for line in own],
    }


def _is_hollow(line: PredictionLine, system: SystemResults) -> bool:
    """Whether an answer is punctuation only, which is scored as an abstention."""
    return system.side == "answers" and is_punctuation(str(line.prediction))


def _right(system: SystemResults, places: IntArray) -> list[object]:
    """Return 1 for each prediction that is right and 0 for the others; of a number, minus its error."""
    metric = metrics_of(system.side)[0]
    return _values(system, places, metric.name, 1.0 if metric.higher_is_better else -1.0)


def _values(
    system: SystemResults, places: IntArray, metric: str, sign: float = 1.0
) -> list[object]:
    values = system.evidence.vectors[metric][places].tolist()
    divided = 100 if system.side == "answers" else 1
    return [round(sign * value / divided, 4) for value in values]


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
