"""An array of numbers of any length: a short one stays in memory, a long one lies in a file.

So scores of a million rows take the memory of what is computed at a time, not of all that is known.
"""

from collections.abc import Iterator
from math import prod
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from llama_peft.system.sequences.nameless import Nameless

Number = TypeVar("Number", bound=np.generic)

_IN_MEMORY = 1 << 20
"""Bytes of an array that stay in memory."""
PIECE = 8192
"""Rows that are in memory at a time, where one after the other is enough."""


class LongArray(Generic[Number]):
    """An array that grows at its end. What is asked of it is an array in memory, which nobody changes.

    Shape (N,), or (N, C) if it was given a width C.
    """

    def __init__(self, dtype: type[Number], width: int | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self._row = () if width is None else (width,)
        self._bytes_a_row = self.dtype.itemsize * prod(self._row)
        self._tail: list[NDArray[Number]] = []
        self._file = Nameless("scores")
        self._size = self._waiting = 0

    @classmethod
    def of(cls, array: NDArray[Number]) -> "LongArray[Number]":
        """Return what holds the numbers of an array of one or two dimensions."""
        found = cls(array.dtype.type, array.shape[1] if array.ndim > 1 else None)
        for first in range(0, len(array), PIECE):
            found.append(array[first : first + PIECE])
        return found

    def append(self, rows: NDArray[Number]) -> None:
        """Add rows at the end. Raises UserError if the disk is full."""
        self._tail.append(np.array(rows, dtype=self.dtype).reshape(-1, *self._row))
        self._size += len(rows)
        self._waiting += len(rows)
        if self._waiting * self._bytes_a_row > _IN_MEMORY:
            self._file.append(self._in_memory().tobytes())
            self._tail, self._waiting = [], 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: "slice | NDArray[np.int64]") -> NDArray[Number]:
        """Return rows: a slice, or those at any places, for which all are read."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            return self[:][rows]
        first, last, _ = rows.indices(self._size)
        last = max(first, last)
        written = self._size - self._waiting
        if first >= written:
            return self._in_memory()[first - written : last - written]
        stop = min(last, written)
        raw = self._file.read(first * self._bytes_a_row, (stop - first) * self._bytes_a_row)
        read = np.frombuffer(raw, dtype=self.dtype).reshape(-1, *self._row)
        return read if last <= written else np.concatenate([read, self[written:last]])

    def _in_memory(self) -> NDArray[Number]:
        if len(self._tail) != 1:
            self._tail = [np.concatenate([np.empty((0, *self._row), self.dtype), *self._tail])]
        return self._tail[0]

    def pieces(self) -> Iterator[NDArray[Number]]:
        """Yield all rows in order, some at a time."""
        return (self[first : first + PIECE] for first in range(0, self._size, PIECE))

    def column(self, number: int) -> NDArray[Number]:
        """Return one column of all rows."""
        return np.concatenate([self[:0][:, number], *(piece[:, number] for piece in self.pieces())])

    def at(self, places: NDArray[np.int64]) -> "LongArray[Number]":
        """Return the rows at these places."""
        return LongArray.of(self[places])
