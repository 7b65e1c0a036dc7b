"""Values by id in columns: tens of bytes a row, where a dict of Python objects takes hundreds.

A column is a Mapping like a dict, so every metric takes either, and gives the same numbers to the
last bit. It is read in the order in which it was filled, some rows at a time; to look up a single
id takes a pass over all. Numbers of many rows lie on disk, and of texts that are few, as labels and
the names of passages are, a row holds only which one it is.
"""

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain, islice, pairwise, repeat
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from llama_peft.system.sequences.arrays import PIECE, LongArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = LongArray[np.float64]
Codes = LongArray[np.uint32]
Texts = np.ndarray[tuple[int], np.dtypes.StringDType]
"""Texts as UTF-8: 16 bytes each and, if they are longer than 15, their own bytes."""

_TEXT = np.dtypes.StringDType()
_FEW = 16
"""Different texts that are always few."""
TOGETHER = 1 << 12
"""Values that are counted in one call: a call for each short row would take longer than its counting."""
_ROWS_A_TEXT = 4
"""Rows that each of more different texts must have."""

Value = TypeVar("Value", covariant=True)
Any_ = TypeVar("Any_")


class Coded:
    """Texts of which there are few."""

    def __init__(self, names: Sequence[str], codes: Codes) -> None:
        """codes: the place of each text among the names."""
        self._names = names
        self._codes = codes

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: slice | IntArray) -> "Coded":
        return Coded(self._names, LongArray.of(self._codes[rows]))

    def tolist(self) -> list[str]:
        """Return the texts."""
        return [self._names[code] for code in self._codes[:].tolist()]

    def are(self, text: str) -> Flags:
        """Return for each text whether it is this one."""
        own = self._names.index(text) if text in self._names else len(self._names)
        return self._codes[:] == own


class Lists:
    """Lists of texts or of numbers, one behind the other."""

    def __init__(self, flat: "Texts | Coded | Floats", ends: LongArray[np.int64]) -> None:
        self.flat = flat
        self.ends = ends
        """Where each list ends in `flat`."""

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[object]:
        start = 0
        for ends in self.ends.pieces():
            flat = self.flat[start : ends[-1]].tolist()
            bounds = [0, *(ends - start).tolist()]
            yield from (flat[i:j] for i, j in pairwise(bounds))
            start = int(ends[-1])

    def at(self, order: IntArray) -> "Lists":
        """Return the lists at these places."""
        starts = np.append(0, self.ends[:])[order]
        sizes = self.ends[:][order] - starts
        ends = sizes.cumsum()
        places = np.repeat(starts - (ends - sizes), sizes) + np.arange(sizes.sum())
        return Lists(_at(self.flat, places), LongArray.of(ends))


Held = Texts | Coded | Floats | Lists


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
        return Column(self.ids[order], _at(self.held, order))

    def of(self, text: str) -> IntArray:
        """Return the places of a text."""
        return np.flatnonzero(are(self.held, text))

    def known(self, nothing: str) -> "Column[Value]":
        """Return the rows that hold another text than this one."""
        is_nothing = are(self.held, nothing)
        return self.at(np.flatnonzero(~is_nothing)) if is_nothing.any() else self


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


def _at(held: Any_, places: IntArray) -> Any_:
    """Return what is held at these places."""
    found = held.at(places) if isinstance(held, Lists | LongArray) else held[places]  # type: ignore[index]
    return cast("Any_", found)


def are(held: Held, text: str) -> Flags:
    """Return for each of the texts whether it is this one."""
    return held.are(text) if isinstance(held, Coded) else cast("Flags", held == text)


def texts(values: "Iterable[str] | NDArray[np.generic]") -> Texts:
    """Return texts as an array."""
    if isinstance(values, Column):
        return values.ids
    if isinstance(values, np.ndarray):
        return cast("Texts", values)
    pieces = [np.array(piece, dtype=_TEXT) for piece in cut(values)]
    return cast("Texts", np.concatenate(pieces) if pieces else np.array([], dtype=_TEXT))


def held(values: Iterable[object]) -> Held:
    """Return values of one type as an array: texts, numbers, or lists of either.

    Raises ValueError if they are not of one type, or cannot be written as UTF-8.
    """
    filling = Filling()
    for piece in cut(values):
        filling.add(piece)
    return filling.held()


def cut(values: Iterable[Any_]) -> Iterator[list[Any_]]:
    """Yield the values as lists of at most PIECE."""
    every = iter(values)
    while piece := [*islice(every, PIECE)]:
        yield piece


class Filling:
    """What a column will hold, while it grows."""

    def __init__(self) -> None:
        self._texts: _Texts | None = None
        self._floats: Floats | None = None
        self._lists: tuple[Filling, LongArray[np.int64]] | None = None
        self._flat = 0

    def add(self, values: Sequence[object]) -> None:
        """Add a few values. Raises ValueError as `held`."""
        if not values:
            return
        if all(isinstance(one, str) for one in values):
            self._texts = self._texts or _Texts()
            self._texts.add(cast("Sequence[str]", values))
        elif all(isinstance(one, float) for one in values):
            self._floats = self._floats or LongArray(np.float64)
            self._floats.append(np.array(values))
        elif all(isinstance(one, list) for one in values):
            self._add_lists(cast("Sequence[list[object]]", values))
        else:
            raise ValueError("the values are of several types")

    def _add_lists(self, values: "Sequence[list[object]]") -> None:
        filling, ends = self._lists = self._lists or (Filling(), LongArray(np.int64))
        flat = [*chain.from_iterable(values)]
        if flat and isinstance(flat[0], list):
            raise ValueError("the values are of several types")
        filling.add(flat)
        ends.append(self._flat + np.cumsum([len(one) for one in values]))
        self._flat += len(flat)

    def held(self) -> Held:
        """Return all values."""
        found: list[Held] = []
        if self._texts is not None:
            found.append(self._texts.held())
        if self._floats is not None:
            found.append(self._floats)
        if self._lists is not None:
            flat = self._lists[0].held()
            assert not isinstance(flat, Lists), "lists of lists are refused"
            found.append(Lists(flat, self._lists[1]))
        if len(found) > 1:
            raise ValueError("the values are of several types")
        return found[0] if found else texts([])


class _Texts:
    """Texts, while they grow: as numbers of those that occurred, as long as these are few."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._codes: Codes = LongArray(np.uint32)
        self._plain: list[Texts] = []
        """The texts themselves, once they are not few."""

    def add(self, values: Sequence[str]) -> None:
        if self._plain:
            self._plain.append(texts(values))
            return
        numbers = self._numbers
        codes = [numbers.setdefault(one, len(numbers)) for one in values]
        self._codes.append(np.array(codes, dtype=np.uint32))
        if len(numbers) > max(_FEW, len(self._codes) // _ROWS_A_TEXT):
            self._plain = [texts(texts(numbers)[self._codes[:]])]

    def held(self) -> Texts | Coded:
        if self._plain:
            return texts(np.concatenate(self._plain))
        # The array raises ValueError for what cannot be written.
        return Coded(texts(self._numbers).tolist(), self._codes)


def in_pieces(
    rows_KC: FloatArray, each: Callable[[FloatArray], Sequence[NDArray[Any]]]
) -> "list[NDArray[Any]]":
    """Return the arrays that a function makes of the rows, one by one, without all between them."""
    starts = range(0, max(1, len(rows_KC)), PIECE)
    found = [each(rows_KC[first : first + PIECE]) for first in starts]
    return [np.concatenate(own) for own in zip(*found, strict=True)]


def rows(values: Iterable[Sequence[float]], count: int, width: int) -> Floats:
    """Return (count, width): the numbers of each row. Raises ValueError if there are others."""
    found: Floats = LongArray(np.float64, width)
    for piece in cut(values):
        if any(len(one) != width for one in piece):
            raise ValueError(f"a row has not {width} numbers")
        flat = np.fromiter(chain.from_iterable(piece), np.float64, len(piece) * width)
        found.append(flat.reshape(len(piece), width))
    if len(found) != count:
        raise ValueError(f"there are {len(found)} rows, and should be {count}")
    return found


def binned(
    place: NDArray[np.integer], size: int, weights_RN: FloatArray | None = None
) -> FloatArray:
    """What each of `size` places holds of each row's weights (R, size): np.bincount row by row.

    place: of each weight, (R, N), or (N) for all rows. weights_RN: 1 each if there are none.
    """
    place_RN = np.broadcast_to(place, place.shape if weights_RN is None else weights_RN.shape)
    held_RP = np.empty((len(place_RN), size))
    several = max(1, TOGETHER // max(place_RN.shape[1], size))
    for first in range(0, len(held_RP), several):
        own_RN, held = place_RN[first : first + several], held_RP[first : first + several]
        if len(own_RN) > 1:
            own_RN = own_RN + size * np.arange(len(own_RN))[:, None]
        each_N = None if weights_RN is None else weights_RN[first : first + several].ravel()
        held[:] = np.bincount(own_RN.ravel(), each_N, held.size).reshape(held.shape)
    return held_RP
