"""A file without a name: the system removes it when nobody uses it, or when the process ends, however it ends."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO

from llama_peft.errors import UserError
from llama_peft.system.formatting import disk_space

_RESERVE = 100_000_000
"""Bytes of disk that stay free."""


def scratch() -> str:
    """Return the folder for temporary files that may be large. /tmp is often a part of the memory."""
    on_disk = Path("/var/tmp")
    if "TMPDIR" in os.environ or not os.access(on_disk, os.W_OK):
        return tempfile.gettempdir()
    return str(on_disk)


def check_disk(what: str, needed: int) -> None:
    """Raise UserError if the disk has no room for so many more bytes. what: what they are of."""
    free = shutil.disk_usage(scratch()).free
    if needed + _RESERVE > free:
        raise UserError(
            f"{what}: the rows do not fit on the disk of {scratch()} ({disk_space(free)} are free): "
            "make room, or set TMPDIR to a folder that has room"
        )


class Nameless:
    """Bytes that grow at their end. There is no file before the first of them."""

    def __init__(self, what: str) -> None:
        """what: what the bytes are of, for the message about a full disk."""
        self._what = what
        self._size = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._size

    def append(self, raw: bytes | bytearray | memoryview) -> None:
        """Write bytes at the end. Raises UserError if the disk is full."""
        check_disk(self._what, len(raw))
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=scratch(), buffering=0)  # noqa: SIM115
        self._file.seek(self._size)
        rest = memoryview(raw)
        while rest:  # a file may take or give less at once than it was asked
            written = self._file.write(rest)
            rest, self._size = rest[written:], self._size + written

    def read(self, start: int, count: int) -> bytes:
        """Return bytes that were written."""
        pieces = []
        while count:
            piece = self._some(start, count)
            assert piece, "these bytes were written"
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _some(self, start: int, count: int) -> bytes:
        assert self._file is not None, "bytes were written"
        if sys.platform != "win32":  # a copy of this process may read at the same time
            return os.pread(self._file.fileno(), count, start)
        self._file.seek(start)
        return self._file.read(count)
