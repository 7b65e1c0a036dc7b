"""Views on sequences: several as one, some items in a chosen order, each item as something else."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import index as whole
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")
Other = TypeVar("Other")


class View(Sequence[Item]):
    """A sequence whose items are made when they are asked for. A slice is a list."""

    def at(self, index: int) -> Item:
        """Return an item by its number, which is in range."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self.at(number) for number in range(*index.indices(len(self)))]
        number = whole(index)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError("there is no item of this number")
        return self.at(number)

    def __iter__(self) -> Iterator[Item]:
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list


class Chosen(View[Item]):
    """The items of a sequence with these numbers, in this order."""

    def __init__(self, items: Sequence[Item], numbers: Iterable[int]) -> None:
        self._items, self._numbers = items, array("q", numbers)
        if isinstance(items, Chosen):  # a choice from a choice is one choice
            self._items = items._items
            self._numbers = array("q", map(items._numbers.__getitem__, self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, index: int) -> Item:
        """Return an item by its number, which is in range."""
        return self._items[self._numbers[index]]

    def __iter__(self) -> Iterator[Item]:
        items = self._items
        return map(items.at if isinstance(items, View) else items.__getitem__, self._numbers)


class Joined(View[Item]):
    """Sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Item]]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def at(self, index: int) -> Item:
        """Return an item by its number, which is in range."""
        part = bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self._parts)


class Mapped(View[Item], Generic[Item, Other]):
    """What a function makes of each item."""

    def __init__(self, function: Callable[[Other], Item], items: Sequence[Other]) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def at(self, index: int) -> Item:
        """Return an item by its number, which is in range."""
        return self._function(self._items[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._function, self._items)
