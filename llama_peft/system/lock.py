"""One process per folder: a second one is refused, and told which process holds the folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.system import files

LOCK, HOLDER = ".lock", ".holder"


@contextmanager
def only_process(folder: Path, doing: str, hold: bool = True) -> Iterator[None]:
    """Hold a folder, which is made if it does not exist. Raises UserError if another process holds
    it.

    doing: what this process does in the folder, for the other one's message. hold: False for the
    other processes of one job, whose first process holds the folder. The system releases the lock
    of a killed process. What such a process left half written in the folder is removed.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be created: {error.strerror}") from None
    if not hold:
        yield
        return
    if (folder / LOCK).is_symlink():  # filelock would empty the file that it points to
        raise UserError(f"{folder / LOCK}: this is a link, which nothing of ours is; remove it")
    try:
        with FileLock(folder / LOCK, timeout=0):
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


def _name_of_holder(folder: Path) -> str:
    """The process that holds a folder. It may end at any time, and its file with it."""
    try:
        number = files.read_text(folder, HOLDER)
    except (OSError, ValueError, UserError):
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"
