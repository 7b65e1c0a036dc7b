"""The right answers of a question, from every usual form of a cell."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llama_peft.data.cells import Cells, broken, literal
from llama_peft.data.labels import label_key


class Answer(NamedTuple):
    """A right answer, and where it starts in the context, in characters; -1 if it is not in it."""

    text: str
    start: int


Pair = tuple[str, int | None]
"""The text of an answer and its start. None means that the start must be found."""


def read_answers(cells: Cells, row: int, context: str, must_quote: bool = True) -> Iterator[Answer]:
    """Yield the right answers of a row.

    must_quote: each is checked against the context. Without it, an answer may be any text, such as
    "yes" or a summary; its start is -1 if it is not in the context.
    """
    raw = cells.cell(row, "answers")
    # What looks like JSON may be text of the passage, as in "returns [] when empty".
    is_quote = isinstance(raw, str) and bool(raw.strip()) and raw in context
    pairs: list[Pair] | None = [(str(raw), None)] if is_quote else _pairs(raw)
    if pairs is None:
        cells.faults.add(row, "answers in an unknown form", raw)
        return
    starts = cells.cell(row, "answer_start")
    if pairs and all(start is None for _, start in pairs) and starts is not None:
        pairs = _with_starts(pairs, starts)
    if pairs is None:
        cells.faults.add(row, "answer_start does not hold one whole number for an answer", starts)
        return
    impossible = cells.marked_impossible(row)
    if impossible is True and pairs:
        cells.faults.add(row, "is_impossible is true, but there are answers")
    if impossible is False and not pairs:
        cells.faults.add(row, "no answer, but is_impossible is not true")
    for text, start in pairs:
        if not text.strip():
            cells.faults.add(row, "an answer is empty")
        elif broken(text):
            cells.faults.add(row, "unpaired Unicode surrogate in an answer", ascii(text))
        elif text not in context and not must_quote:
            if context:
                cells.unquoted.setdefault(row, text)
            yield Answer(text, -1)
        elif start is None and text not in context:
            cells.faults.add(row, "an answer is not in its context", text)
        elif start is None:
            first = context.find(text)
            if context.find(text, first + 1) >= 0:
                cells.repeated.setdefault(row, text)
            yield Answer(text, first)
        elif start < 0 or not context.startswith(text, start):
            cells.faults.add(row, "an answer is not at its offset", {"text": text, "start": start})
        else:
            yield Answer(text, start)


def _pairs(raw: object) -> list[Pair] | None:
    """Return the texts and starts in a cell of any usual form, or None for another form."""
    if isinstance(raw, str) and raw.lstrip().startswith(("{", "[")):
        raw = literal(raw)
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return []
    if isinstance(raw, str):
        return [(raw, None)]
    if isinstance(raw, dict):
        return _parallel_pairs(raw.get("text"), raw.get("answer_start"))
    if not isinstance(raw, list):
        return None
    if all(isinstance(item, dict) for item in raw):
        return _checked((item.get("text"), item.get("answer_start")) for item in raw)
    return _checked((item, None) for item in raw)


def _with_starts(pairs: list[Pair], starts: object) -> list[Pair] | None:
    """Return texts with the starts that stand in a column of their own, if it holds any."""
    if isinstance(starts, str):
        starts = literal(starts)
    values = starts if isinstance(starts, list) else [starts]
    numbers = [label_key(value) for value in values]
    if not any(numbers):
        return pairs
    if len(numbers) != len(pairs) or not all(re.fullmatch("-?[0-9]{1,18}", n) for n in numbers):
        return None
    return [(text, int(number)) for (text, _), number in zip(pairs, numbers, strict=True)]


def _parallel_pairs(texts: object, starts: object) -> list[Pair] | None:
    """Return the pairs of SQuAD's flat form: a list of texts beside a list of starts."""
    if isinstance(texts, str):
        texts, starts = [texts], None if starts is None else [starts]
    if not isinstance(texts, list) or not isinstance(starts, list | None):
        return None
    if texts == [""] and starts in ([-1], [None], [], None):  # some write "no answer" so
        return []
    starts = [None] * len(texts) if starts is None else starts
    return _checked(zip(texts, starts, strict=True)) if len(texts) == len(starts) else None


def _checked(pairs: Iterable[tuple[object, object]]) -> list[Pair] | None:
    result: list[Pair] = []
    for text, start in pairs:
        if not isinstance(text, str) or isinstance(start, bool):
            return None
        if start is not None and not isinstance(start, int):
            return None
        result.append((text, start))
    return result
