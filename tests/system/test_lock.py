"""A lock is an empty file of ours; nothing else in its place is emptied or followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft.errors import UserError
from llama_peft.system.lock import LOCK, only_process

IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "a link": lambda lock: lock.symlink_to(lock.parent / "outside"),
    "a link to itself": lambda lock: lock.symlink_to(lock),
    "a lock of another tool": lambda lock: lock.write_text("4711"),
    "a folder": lambda lock: lock.mkdir(),
    "a pipe": lambda lock: os.mkfifo(lock),
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_what_is_in_the_place_of_a_lock_stays(what: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    IN_ITS_PLACE[what](tmp_path / LOCK)
    before = (tmp_path / LOCK).lstat()
    with (
        pytest.raises(UserError, match=r"\.lock: this is not a lock of ours"),
        only_process(tmp_path, "training"),
    ):
        pass
    after = (tmp_path / LOCK).lstat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert outside.read_text() == "mine"


def test_a_folder_is_locked_again(tmp_path: Path) -> None:
    for _ in range(2):
        with only_process(tmp_path, "training"):
            assert (tmp_path / LOCK).is_file()
