"""The package imports on Windows, and its files reach the disk there.

`make check` runs mypy as on Windows, which finds every call that Windows lacks.
"""

import ast
import os
import sys
from pathlib import Path

import pytest

from llama_peft.system import files, limits
from tests.system.test_border import BORDER, SOURCES

POSIX_ONLY = {
    "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline", "resource", "spwd",
    "syslog", "termios", "tty",
}  # fmt: skip
"""Modules of the standard library that Windows lacks, by the documentation of each."""


def imported(body: list[ast.stmt]) -> set[str]:
    """The top-level names of the modules that statements import, at any depth."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in plain
        | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    }


def test_modules_that_windows_lacks_are_imported_in_functions_of_system_alone() -> None:
    users = set()
    for name, path in SOURCES.items():
        body = ast.parse(path.read_text("utf-8")).body
        if POSIX_ONLY & imported(body):
            users.add(name)
        outside = [one for one in body if not isinstance(one, ast.FunctionDef)]
        assert not POSIX_ONLY & imported(outside), f"{name} cannot be imported on Windows"
    assert users and all(name.startswith(BORDER) for name in users)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says on Windows: no fork, no second names, no descriptor of a folder, and
    fsync only of what may be written.
    """
    import fcntl

    really_open, really_sync = os.open, os.fsync

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return really_open(path, flags, mode)

    def synced(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        really_sync(descriptor)

    def linked(*names: Path, follow_symlinks: bool = True) -> None:
        raise NotImplementedError("link: follow_symlinks unavailable on this platform")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.delattr(os, "fork")


@pytest.mark.usefixtures("windows")
def test_files_are_written_appended_and_published(tmp_path: Path) -> None:
    files.write_text(tmp_path, "a.json", "one\n")
    with files.append(tmp_path, "a.json") as file:
        file.write("two\n")
    files.publish(tmp_path, "a.json", "b.json")
    assert (tmp_path / "b.json").read_bytes() == b"one\ntwo\n" and not (
        tmp_path / "a.json"
    ).exists()
    files.write_text(tmp_path, "c.json", "three")
    with pytest.raises(FileExistsError):
        files.publish(tmp_path, "c.json", "b.json")
    assert files.read_text(tmp_path, "b.json") == "one\ntwo\n"


@pytest.mark.usefixtures("windows")
def test_work_is_done_without_a_process_of_its_own() -> None:
    assert limits.limited(lambda: os.getpid()) == os.getpid()
