"""One process a folder: a second one is refused, and told who holds it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_peft.errors import UserError


@contextmanager
def only_process(folder: Path, doing: str, hold: bool = True) -> Iterator[None]:
    """Hold a folder, made where it is not there. Raises UserError where another process does, by its number.

    hold: False for the other processes of one job, whose first one holds it. The system lets go of the lock of a killed
    process.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    if not hold:
        yield
        return
    holder = folder / ".holder"
    try:
        with FileLock(folder / ".lock", timeout=0):
            holder.write_text(str(os.getpid()), "utf-8")
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
    except Timeout:
        raise UserError(
            f"{folder}: {_named(holder)} is {doing} here; wait for it or stop it"
        ) from None


def _named(holder: Path) -> str:
    """The process that holds a folder; it comes and goes at its own time."""
    try:
        number = holder.read_text("utf-8")
    except OSError:
        number = ""
    return f"process {number}" if number else "another process"
