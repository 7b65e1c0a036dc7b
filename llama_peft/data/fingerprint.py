"""Sums and texts that identify a data set: what a run folder stores about its data."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache

from llama_peft.data.dataset import TRAINED_ON, Dataset
from llama_peft.data.examples import Example

_LETTERS = 16
"""Letters of a short sum."""
_TOGETHER = 8192
"""Sums that are strings at a time: a string takes five times as much memory."""


def split_ids(dataset: Dataset) -> dict[str, list[str]]:
    """Return the ids of each part."""
    return {part: [example.id for example in rows] for part, rows in dataset.parts.items()}


def split_pieces(dataset: Dataset) -> Iterator[str]:
    """Yield the text of split.json, the JSON of `split_ids`, in pieces: a million ids are large."""
    for number, (part, rows) in enumerate(dataset.parts.items()):
        yield f"{', ' if number else '{'}{json.dumps(part)}: ["
        for place, example in enumerate(rows):
            yield f"{', ' if place else ''}{json.dumps(example.id, ensure_ascii=False)}"
        yield "]"
    yield "}" if dataset.parts else "{}"


def split_text(dataset: Dataset) -> str:
    """Return the text of split.json."""
    return "".join(split_pieces(dataset))


def split_sum(dataset: Dataset) -> str:
    """Return the sha256 of split.json."""
    digest = hashlib.sha256()
    for piece in split_pieces(dataset):
        digest.update(piece.encode())
    return digest.hexdigest()


def record_pieces(dataset: Dataset) -> Iterator[str]:
    """Yield the text of a run's record of its data, in pieces."""
    import numpy

    yield f"{content_sum(dataset)}\n"
    sums = numpy.unique(numpy.fromiter(map(str.encode, _asked_sums(dataset)), f"S{_LETTERS}"))
    for first in range(0, len(sums), _TOGETHER):
        yield "".join(f"{one.decode()}\n" for one in sums[first : first + _TOGETHER].tolist())


def record_text(dataset: Dataset) -> str:
    """Return the text of a run's record of its data."""
    return "".join(record_pieces(dataset))


def asked_sums(dataset: Dataset) -> set[str]:
    """Return the sums of what a model is asked in training and in its validation."""
    return {*_asked_sums(dataset)}


def _asked_sums(dataset: Dataset) -> Iterator[str]:
    return (asked_sum(example) for part in TRAINED_ON for example in dataset.parts.get(part, ()))


def asked_sum(example: Example) -> str:
    """Return a short sum of what an example asks. Its id, letter case and spaces do not matter."""
    texts = [_normalized(text) for text in example.asked]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:_LETTERS]


@lru_cache(maxsize=64)  # many questions have the same passage
def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()


def content_sum(dataset: Dataset) -> str:
    """Return a sum of every example. Ids alone do not show that a text or a label has changed."""
    digest = hashlib.sha256()
    for part, examples in dataset.parts.items():
        for example in examples:
            digest.update(json.dumps([part, asdict(example)], ensure_ascii=True).encode())
    return digest.hexdigest()
