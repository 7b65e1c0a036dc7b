"""Many lines of predictions.jsonl, which stay on disk.

In memory is only where each begins. A line is read when it is asked for, so a report or a score of a
million rows holds a few of them at a time.
"""

import json
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from llama_peft.system.files import append, inside, open_regular, scratch

from ..metrics.columns import IntArray
from .line import PredictionLine

_SPOOL = "lines.jsonl"


class Lines(Sequence[PredictionLine]):
    """Lines of an open file, in any order."""

    def __init__(self, file: BinaryIO, starts: IntArray, among: "Lines | None" = None) -> None:
        """among: the lines that these are some of. The file is closed when none of them is used."""
        self._file, self._starts, self._among = file, starts, among
        if among is None:
            weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> PredictionLine: ...
    @overload
    def __getitem__(self, place: slice) -> "Lines": ...
    def __getitem__(self, place: int | slice) -> "PredictionLine | Lines":
        if isinstance(place, slice):
            return Lines(self._file, self._starts[place], self)
        return PredictionLine.model_validate_json(self._text(int(self._starts[place])))

    def __iter__(self) -> Iterator[PredictionLine]:
        return map(PredictionLine.model_validate_json, self.texts())

    def at(self, places: IntArray) -> "Lines":
        """Return the lines at these places."""
        return Lines(self._file, self._starts[places], self)

    def texts(self) -> Iterator[str]:
        """Yield the lines as they are written."""
        return (self._text(start) for start in map(int, self._starts))

    def _text(self, start: int) -> str:
        self._file.seek(start)
        return self._file.readline().decode()


def read_lines(path: Path) -> Lines:
    """Return the lines of a file, without empty ones. Raises OSError, or UserError as `open_regular`.

    What a line holds is checked when it is read.
    """
    file = open_regular(inside(path.parent, path.name))
    starts, start = array("q"), 0
    for raw in file:
        if raw != b"\n":
            starts.append(start)
        start += len(raw)
    return Lines(file, np.frombuffer(starts, dtype=np.int64))


@contextmanager
def spooled(folder: Path, lines: Iterable[PredictionLine]) -> Iterator[Lines]:
    """Return lines that wait on disk, in the order in which they are made, as long as the context lasts.

    folder: in which they wait. Lines that are on disk already stay where they are.
    """
    if isinstance(lines, Lines):
        yield lines
        return
    with scratch(folder) as waiting:
        with append(waiting, _SPOOL) as file:
            for line in lines:
                file.write(
                    json.dumps(line.model_dump(exclude_none=True), ensure_ascii=False) + "\n"
                )
        yield read_lines(waiting / _SPOOL)
