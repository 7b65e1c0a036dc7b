"""What a file holds, also if gzip or zip packed it, and whether the memory has room for it.

The first bytes say whether a file is packed, because names often do not. A small packed file can
hold more than the memory of the machine, so no more of it is read than fits there.
"""

import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from llama_peft.errors import UserError
from llama_peft.system.formatting import memory
from llama_peft.system.memory import available

if TYPE_CHECKING:
    from typing_extensions import Buffer

SUFFIXES = (".gz", ".zip")
Row = TypeVar("Row")
_BATCH = 1_000
"""After so many rows the free memory is looked at again: short rows take many times their bytes."""
_RESERVE = 100_000_000
"""Bytes of memory that stay free."""
_GZIP = b"\x1f\x8b"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
"""What the libraries raise for what is damaged, and RuntimeError for what has a password."""


_NOTE = re.compile(r"/$|(^|/)(__MACOSX/|\.|desktop\.ini$|Thumbs\.db$)")
"""Names of folders in an archive, and of notes that systems add."""


class Content(NamedTuple):
    """What is in a file, and the name that says its format."""

    name: str
    file: io.BufferedReader
    is_packed: bool


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


def content(path: str, file: io.BufferedReader, size: int, room: int) -> Content:
    """Return what an open file of `size` bytes holds.

    room: the most bytes of a packed file that are read. Raises UserError, also while it is read, if
    it holds more, is damaged, or is a zip archive of several files.
    """
    start = file.peek(4)
    if start.startswith(_GZIP):
        unpacked = gzip.GzipFile(fileobj=io.BufferedReader(_Start(file, size)))
        return Content(_bare(path), _bounded(path, unpacked, room), is_packed=True)
    if start.startswith(_ZIP):
        name, member = _only_member(path, file)
        named = name if PurePosixPath(name).suffix else _bare(path)
        return Content(named, _bounded(path, member, room), is_packed=True)
    return Content(_bare(path), io.BufferedReader(_Start(file, size)), is_packed=False)


def _bare(path: str) -> str:
    """Return a name without the suffix of a packed file."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in SUFFIXES else path


def _only_member(path: str, file: IO[bytes]) -> tuple[str, _Reads]:
    """Return the name of the one file in a zip archive, and the file."""
    try:
        archive = zipfile.ZipFile(file)
        names = [name for name in archive.namelist() if not _NOTE.search(name)]
        if len(names) == 1:
            return names[0], archive.open(name=names[0], mode="r")
    except _FAULTS as error:
        raise _damaged(path, error) from None
    listed = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    raise UserError(
        f"{path}: this archive holds {len(names)} files{listed}: unpack it and name one of them"
    )


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be unpacked ({error}): unpack it yourself and name the file")


def _bounded(path: str, file: _Reads, room: int) -> io.BufferedReader:
    return io.BufferedReader(_Unpacked(path, file, room))


class _Start(io.RawIOBase):
    """The first bytes of a file, so that reading a file that grows comes to an end."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, as far as there is room for them."""

    def __init__(self, path: str, file: _Reads, room: int) -> None:
        self._path, self._file, self._room, self._left = path, file, room, room

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        into = memoryview(buffer)
        try:
            piece = self._file.read(len(into))
        except _FAULTS as error:
            raise _damaged(self._path, error) from None
        self._left -= len(piece)
        if self._left < 0:
            raise UserError(
                f"{self._path}: it holds more than {max(self._room, 0):,} bytes, and its rows would "
                "not fit into the memory of this machine: use a smaller file"
            )
        into[: len(piece)] = piece
        return len(piece)


def room() -> int:
    """Return the bytes of memory that the rows of a file may take."""
    return available() - _RESERVE


def check_room(path: str, needed: int) -> None:
    """Raise UserError if the machine has not so many bytes of memory for the rows of a file."""
    free = room()
    if needed > free:
        raise UserError(
            f"{path}: its rows do not fit into the memory of this machine "
            f"({memory(max(free, 0))} are free): use a smaller file"
        )


def while_room(path: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows. Raises UserError before they fill the memory of the machine."""
    for number, row in enumerate(rows):
        if number % _BATCH == 0:
            check_room(path, 0)
        yield row
