"""One process per folder: a second one is refused, and told which process holds the folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_peft.errors import UserError


@contextmanager
def only_process(folder: Path, doing: str, hold: bool = True) -> Iterator[None]:
    """Hold a folder, which is made if it does not exist. Raises UserError if another process holds
    it.

    doing: what this process does in the folder, for the other one's message. hold: False for the
    other processes of one job, whose first process holds the folder. The system releases the lock
    of a killed process.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be created: {error.strerror}") from None
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
            f"{folder}: {_name_of(holder)} is {doing} here; wait until it ends, or stop it"
        ) from None


def _name_of(holder: Path) -> str:
    """The process that holds a folder. It may end at any time, and its file with it."""
    try:
        number = holder.read_text("utf-8")
    except OSError:
        number = ""
    return f"process {number}" if number else "another process"
