"""No file keeps a command waiting, or takes all memory: it is refused in one line, at once."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft.data import formats
from llama_peft.data.sources import unpack
from llama_peft.data.sources.places import FORMATS
from tests.support.tables import refusal, to_csv, to_parquet, whole, write


def _zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _itself(path: Path) -> None:
    path.symlink_to(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (os.mkfifo, "this is not a regular file"),
        (_zero, "this is not a regular file"),
        (_socket, "this is not a regular file"),
        (_itself, "this is a link to itself"),
        (_sparse, "do not fit into the memory of this machine"),
    ],
)
def test_what_has_no_end_is_refused(
    tmp_path: Path, suffix: str, plant: Callable[[Path], None], message: str
) -> None:
    plant(tmp_path / f"a{suffix}")
    assert message in refusal(whole(tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_rows_are_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(5_000)]
    form = {"a.csv": to_csv, "a.parquet": to_parquet}.get(name)
    lines = "\n".join(str(row).replace("'", '"') for row in rows)
    path = write(tmp_path / name, form(rows) if form else rows if name == "a.json" else lines)
    left = iter([10**9] * 3)  # the size fits, the rows do not
    monkeypatch.setattr(unpack, "available", lambda: next(left, 0))
    monkeypatch.setattr(formats, "_BATCH", 500)
    monkeypatch.setattr(unpack, "_BATCH", 500)
    if name == "a.json":
        monkeypatch.setattr(formats, "_VALUE", 10**6)
    assert "do not fit into the memory of this machine" in refusal(whole(path))


def test_a_file_that_grows_is_read_to_its_first_end_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "a,x\nb,y\n" * 1000)
    right = unpack.check_room

    def grow(source: str, needed: int) -> None:
        right(source, needed)
        with path.open("a") as file:
            file.write("c,x\n" * 1000)

    monkeypatch.setattr(unpack, "check_room", grow)
    assert "the file changed while it was read" in refusal(whole(path))


def test_a_header_of_many_columns_is_read_at_once(tmp_path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(100_000))
    path = write(tmp_path / "a.csv", f"{names}\n")
    assert "contains no rows" in refusal(whole(path))
