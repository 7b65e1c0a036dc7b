"""Values by id in columns: tens of bytes a row, where a dict of Python objects takes hundreds.

A column is a Mapping like a dict, so every metric takes either, and gives the same numbers to the
last bit. It is read in the order in which it was filled, some rows at a time; to look up a single
id takes a pass over all.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain, islice, pairwise, repeat
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Texts = np.ndarray[tuple[int], np.dtypes.StringDType]
"""Texts as UTF-8: 16 bytes each and, if they are longer than 15, their own bytes."""
Flat = Texts | FloatArray

PIECE = 8192
"""Rows that are Python objects at a time."""
_TEXT = np.dtypes.StringDType()

Value = TypeVar("Value", covariant=True)
Any_ = TypeVar("Any_")


class Lists:
    """Lists of texts or of numbers, one behind the other."""

    def __init__(self, flat: Flat, ends: IntArray) -> None:
        self.flat = flat
        self.ends = ends
        """Where each list ends in `flat`."""

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[object]:
        start = 0
        for first in range(0, len(self.ends), PIECE):
            ends = self.ends[first : first + PIECE]
            flat = self.flat[start : ends[-1]].tolist()
            bounds = [0, *(ends - start).tolist()]
            yield from (flat[i:j] for i, j in pairwise(bounds))
            start = int(ends[-1])

    def at(self, order: IntArray) -> "Lists":
        """Return the lists at these places."""
        starts = np.append(0, self.ends)[order]
        sizes = self.ends[order] - starts
        ends = sizes.cumsum()
        places = np.repeat(starts - (ends - sizes), sizes) + np.arange(sizes.sum())
        return Lists(self.flat[places], ends)


Held = Texts | FloatArray | Lists


class Column(Mapping[str, Value], Generic[Value]):
    """Values by id. Columns that share the array `ids` are known to match."""

    def __init__(self, ids: Texts, held: Held) -> None:
        self.ids, self.held = ids, held

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return cast("Iterator[str]", _each(self.ids))

    def __getitem__(self, key: str) -> Value:
        found = np.flatnonzero(self.ids == key)[:1]
        if not len(found):
            raise KeyError(key)
        return next(iter(self.at(found).values()))

    def values(self) -> ValuesView[Value]:
        """Return the values in order."""
        return _Values(self)

    def items(self) -> ItemsView[str, Value]:
        """Return the ids and the values in order."""
        return _Items(self)

    def each(self, value: object) -> "Column[Value]":
        """Return the same ids with one value for all."""
        return Column(self.ids, held(repeat(value, len(self))))

    def at(self, order: IntArray) -> "Column[Value]":
        """Return the rows at these places."""
        held = self.held.at(order) if isinstance(self.held, Lists) else self.held[order]
        return Column(self.ids[order], held)


class _Values(ValuesView[Value]):
    def __init__(self, column: Column[Value]) -> None:
        super().__init__(column)
        self._column = column

    def __iter__(self) -> Iterator[Value]:
        return cast("Iterator[Value]", _each(self._column.held))


class _Items(ItemsView[str, Value]):
    def __init__(self, column: Column[Value]) -> None:
        super().__init__(column)
        self._column = column

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return zip(self._column, self._column.values(), strict=True)


def _each(held: Held) -> Iterator[object]:
    if isinstance(held, Lists):
        return iter(held)
    pieces = (held[first : first + PIECE] for first in range(0, len(held), PIECE))
    return chain.from_iterable(piece.tolist() for piece in pieces)


def texts(values: "Iterable[str] | NDArray[np.generic]") -> Texts:
    """Return texts as an array."""
    if isinstance(values, Column):
        return values.ids
    if isinstance(values, np.ndarray):
        return cast("Texts", values)
    return cast("Texts", held(values))


def held(values: Iterable[object]) -> Held:
    """Return values of one type as an array: texts, numbers, or lists of either.

    Raises ValueError if they are not of one type, or cannot be written as UTF-8.
    """
    return joined([piece_of(piece) for piece in cut(values)])


def cut(values: Iterable[Any_]) -> Iterator[list[Any_]]:
    """Yield the values as lists of at most PIECE."""
    every = iter(values)
    while piece := [*islice(every, PIECE)]:
        yield piece


def piece_of(values: Sequence[object]) -> Held:
    """Return a few values of one type as an array. Raises ValueError as `held`."""
    if all(isinstance(one, str) for one in values):
        return np.array(values, dtype=_TEXT)
    if all(isinstance(one, float) for one in values):
        return np.array(values, dtype=np.float64)
    lists = [one for one in values if isinstance(one, list)]
    flat = piece_of([*chain.from_iterable(lists)])
    if len(lists) < len(values) or isinstance(flat, Lists):
        raise ValueError("the values are of several types")
    return Lists(flat, np.cumsum([len(one) for one in lists]))


def joined(parts: Sequence[Held]) -> Held:
    """Return one array for those of all pieces. Raises ValueError as `held`."""
    lists = [one for one in parts if isinstance(one, Lists)]
    flats = [one for one in parts if not isinstance(one, Lists)]
    if not lists:
        return _end_to_end(flats)
    if flats:
        raise ValueError("the values are of several types")
    starts = np.cumsum([0, *(len(one.flat) for one in lists)])
    ends = [one.ends + start for one, start in zip(lists, starts[:-1], strict=True)]
    return Lists(_end_to_end([one.flat for one in lists if len(one.flat)]), np.concatenate(ends))


def _end_to_end(parts: Sequence[Flat]) -> Flat:
    if len({one.dtype for one in parts}) > 1:
        raise ValueError("the values are of several types")
    return np.concatenate(parts) if parts else np.array([], dtype=_TEXT)


def rows(values: Iterable[Iterable[float]], count: int, width: int) -> FloatArray:
    """Return (count, width): the numbers of each row. Raises ValueError if there are others."""
    flat = np.fromiter(chain.from_iterable(values), dtype=np.float64, count=count * width)
    return flat.reshape(count, width)
