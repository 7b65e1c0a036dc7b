"""One process per folder: a second one is refused, and told which process holds the folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.system import files

if TYPE_CHECKING:
    from filelock import FileLock

LOCK, HOLDER = ".lock", ".holder"


@contextmanager
def only_process(folder: Path, doing: str, hold: bool = True) -> Iterator[None]:
    """Hold a folder, which is made if it does not exist. Raises UserError if another process holds
    it.

    doing: what this process does in the folder, for the other one's message. hold: False for the
    other processes of one job, whose first process holds the folder. The system releases the lock
    of a killed process. What such a process left half written in the folder is removed.
    """
    from filelock import Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be created: {error.strerror}") from None
    if not hold:
        yield
        return
    try:
        with file_lock(folder / LOCK, timeout=0):
            files.write_text(folder, HOLDER, str(os.getpid()))
            try:
                files.sweep(folder)
                yield
            finally:
                files.remove_file(folder, HOLDER)
    except Timeout:
        raise UserError(
            f"{folder}: {_name_of_holder(folder)} is {doing} here; wait until it ends, or stop it"
        ) from None


def is_held(folder: Path) -> bool:
    """Return whether a process that is alive holds a folder. Nothing is made for this."""
    from filelock import Timeout

    if not files.is_file(folder, LOCK) or not files.is_file(folder, HOLDER):
        return False
    try:
        with file_lock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, UserError):  # it may not be opened, or is not a lock
        return False


def file_lock(path: Path, timeout: float = -1) -> "FileLock":
    """The lock of a file, which is empty. Raises UserError if something else is there.

    timeout: how many seconds to wait for it; below 0, as long as it takes.
    """
    from filelock import FileLock

    # filelock would empty the file that a link points to.
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_size):
        raise UserError(f"{path}: this is not a lock of ours, which is an empty file; remove it")
    return FileLock(path, timeout=timeout)


def _name_of_holder(folder: Path) -> str:
    """The process that holds a folder. It may end at any time, and its file with it."""
    try:
        number = files.read_text(folder, HOLDER)
    except (OSError, ValueError, UserError):
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"
