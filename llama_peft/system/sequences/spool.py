"""A list of any length: few items stay in memory, more go to a file without a name.

Rows as Python objects take kilobytes each, and a file of them is read in order almost always. The
file is removed by the system when nobody uses the list, or when the process ends, however it ends.
"""

import io
import pickle
from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TypeVar

from llama_peft.errors import UserError
from llama_peft.system.sequences.nameless import Nameless
from llama_peft.system.sequences.views import View

Item = TypeVar("Item")
_IN_MEMORY = 4 << 20
"""Bytes of a list that stay in memory."""
_TOGETHER = 256
"""Items that are read at once."""


class Spool(View[Item]):
    """A list that grows at its end and whose items are copies: changing one changes nothing in it."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._ends = array("q")
        self._tail = bytearray()
        self._file = Nameless("data")
        self._start, self._held, self._last = 0, memoryview(b""), 0
        """The bytes that were read last, where they start, and the number of the last item."""
        self.extend(items)

    def append(self, item: Item) -> None:
        """Add an item. Raises UserError if the disk is full, or if the item cannot be copied."""
        try:
            self._tail += pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"data: row {len(self) + 1} holds a value that is no text, number or short list of them: {error}"
            ) from error
        self._ends.append(len(self._file) + len(self._tail))
        if len(self._tail) > _IN_MEMORY:
            self._file.append(self._tail)
            self._tail = bytearray()

    def extend(self, items: Iterable[Item]) -> None:
        """Add items."""
        for item in items:
            self.append(item)

    def __reduce__(self) -> tuple[type["Spool[Item]"], tuple[list[Item]]]:
        """A process that was not forked, as one that prepares batches, gets a copy."""
        return type(self), ([*self],)

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, index: int) -> Item:
        """Return an item by its number, which is in range."""
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        if not self._start <= start <= end <= self._start + len(self._held):
            # Whoever reads in order, perhaps not every item, gets the next ones from here, too.
            ahead = _TOGETHER if 0 <= index - self._last <= _TOGETHER else 1
            stop = self._ends[min(index + ahead, len(self._ends)) - 1]
            self._start, self._held = start, memoryview(self._bytes(start, stop))
        self._last = index
        item: Item = pickle.loads(self._held[start - self._start : end - self._start])
        return item

    def __iter__(self) -> Iterator[Item]:
        for first in range(0, len(self), _TOGETHER):
            start = self._ends[first - 1] if first else 0
            ends = self._ends[first : first + _TOGETHER]
            raw = io.BytesIO(self._bytes(start, ends[-1]))
            yield from map(pickle.load, repeat(raw, len(ends)))

    def _bytes(self, start: int, stop: int) -> bytes:
        written = len(self._file)
        held = self._tail[max(0, start - written) : max(0, stop - written)]
        if start >= written:
            return bytes(held)
        return self._file.read(start, min(stop, written) - start) + bytes(held)
