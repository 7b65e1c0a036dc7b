"""A LongArray is the array of its rows, whatever of it lies on disk, and takes no memory for them."""

import os
import tracemalloc
from collections.abc import Callable
from typing import IO

import numpy as np
import pytest

from llama_peft.errors import UserError
from llama_peft.system.sequences import arrays, nameless
from llama_peft.system.sequences.arrays import LongArray


@pytest.mark.parametrize("limit", [0, 1_000, 1 << 20])
@pytest.mark.parametrize("width", [None, 1, 3])
def test_a_long_array_is_the_array_of_its_rows(
    limit: int, width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_IN_MEMORY", limit)
    monkeypatch.setattr(arrays, "PIECE", 7)
    draws = np.random.default_rng(0)
    plain = draws.normal(size=(300,) if width is None else (300, width))
    held = LongArray.of(plain[:200])
    for first in range(200, 300, 50):
        held.append(plain[first : first + 50])
    assert len(held) == 300 and held[:].shape == plain.shape
    for first, last in ((0, 300), (0, 0), (3, 200), (190, 210), (250, 999), (300, 300)):
        assert np.array_equal(held[first:last], plain[first:last])
    assert np.array_equal(np.concatenate([*held.pieces()]), plain)
    assert np.array_equal(held[::-7], plain[::-7]) and not len(held[9:5])
    places = draws.integers(300, size=50)
    assert np.array_equal(held[places], plain[places])
    assert np.array_equal(held.at(places)[:], plain[places])
    if width is not None:
        assert np.array_equal(held.column(width - 1), plain[:, width - 1])
    assert len(LongArray(np.float64, width)[:]) == 0


def test_rows_take_no_memory_and_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_IN_MEMORY", 1 << 16)
    tracemalloc.start()
    held = LongArray(np.float64, 5)
    for _ in range(100):
        held.append(np.ones((1000, 5)))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held[:].sum() == 500_000 and size < 200_000, "in memory they take 4 MB"
    monkeypatch.setattr(nameless, "_RESERVE", 1 << 60)
    with pytest.raises(UserError, match="do not fit on the disk"):
        held.append(np.ones((9000, 5)))


def test_what_is_written_and_read_in_parts_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call gives 2 GiB at the most, and a disk may take less than it was given."""
    monkeypatch.setattr(arrays, "_IN_MEMORY", 0)
    held = LongArray(np.float64, 3)
    plain = np.random.default_rng(0).normal(size=(1000, 3))
    held.append(plain[:1])
    read, file = os.pread, held._file._file
    assert file is not None
    write = file.write
    monkeypatch.setattr(os, "pread", lambda number, count, at: read(number, min(count, 999), at))
    monkeypatch.setattr(held._file, "_file", Halting(file, write))
    held.append(plain[1:])
    assert np.array_equal(held[:], plain)


class Halting:
    """A file that takes 777 bytes at a time."""

    def __init__(self, file: IO[bytes], write: Callable[[memoryview], int]) -> None:
        self.file, self._write = file, write

    def write(self, raw: memoryview) -> int:
        return self._write(raw[:777])

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)
