"""Many lines of predictions.jsonl, which stay on disk.

A line is read when it is asked for, so a report or a score of a million rows holds a few of them at a
time.
"""

import json
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from llama_peft.system.files import append, inside, open_regular, scratch
from llama_peft.system.sequences.arrays import LongArray

from ..metrics.columns import IntArray, cut
from .line import PredictionLine

_SPOOL = "lines.jsonl"


class Lines(Sequence[PredictionLine]):
    """Lines of an open file, in any order."""

    def __init__(
        self, file: BinaryIO, starts: LongArray[np.int64], among: "Lines | None" = None
    ) -> None:
        """starts: where each begins. among: the lines that these are some of. The file is closed when
        none of them is used.
        """
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
            return Lines(self._file, LongArray.of(self._starts[place]), self)
        number = range(len(self))[place]
        return PredictionLine.model_validate_json(
            self._text(int(self._starts[number : number + 1][0]))
        )

    def __iter__(self) -> Iterator[PredictionLine]:
        return map(PredictionLine.model_validate_json, self.texts())

    def at(self, places: IntArray) -> "Lines":
        """Return the lines at these places."""
        return Lines(self._file, self._starts.at(places), self)

    def texts(self) -> Iterator[str]:
        """Yield the lines as they are written."""
        return (self._text(start) for own in self._starts.pieces() for start in own.tolist())

    def _text(self, start: int) -> str:
        self._file.seek(start)
        return self._file.readline().decode()


def read_lines(path: Path) -> Lines:
    """Return the lines of a file, without empty ones. Raises OSError, or UserError as `open_regular`.

    What a line holds is checked when it is read.
    """
    file = open_regular(inside(path.parent, path.name))
    starts: LongArray[np.int64] = LongArray(np.int64)
    for some in cut(_starts(file)):
        starts.append(np.array(some))
    return Lines(file, starts)


def _starts(file: BinaryIO) -> Iterator[int]:
    start = 0
    for raw in file:
        if raw != b"\n":
            yield start
        start += len(raw)


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
