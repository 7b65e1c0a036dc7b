"""Reads files, here or behind a URL. Several files are read as one table, in the order of their names."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

from llama_peft.data import formats
from llama_peft.data.formats import Table
from llama_peft.data.sources import unpack
from llama_peft.data.sources.encoding import as_text, not_text
from llama_peft.data.sources.places import (
    FORMATS,
    check_file,
    check_readable,
    expanded,
    files_of,
    format_of,
    is_url,
)
from llama_peft.data.sources.remote import fetched
from llama_peft.errors import UserError
from llama_peft.recipe import Data
from llama_peft.system.files import open_regular
from llama_peft.system.sequences.views import Joined, Mapped

_LOOSE = ("json", "jsonl", "squad")
_PIECE = 1 << 20
"""Bytes of standard input that are read at once."""
_IN_MEMORY = 2
"""Bytes of memory that a byte of a file takes at the least: one long text is held twice while it is
read. Rows of 200 letters take 2.6 in CSV, 2.9 in JSONL and 3.2 in JSON.
"""


def read_files(place: str, data: Data) -> Table:
    """Return the rows of a file, or of all files of a folder or a pattern as one table."""
    files = files_of(place, data.format != "auto")
    if files == [place]:
        return read_file(place, data)
    return _joined(place, [read_file(file, data) for file in files], data)


def _joined(place: str, tables: Sequence[Table], data: Data) -> Table:
    """Return tables as one. Raises UserError for the first whose columns are not those of the first."""
    first = tables[0]
    for table in tables:
        names = PurePath(table.source).name, PurePath(first.source).name
        # In JSON a row has only the columns that it needs.
        is_loose = (data.format if data.format != "auto" else format_of(table.source)) in _LOOSE
        if not is_loose and (odd := {*table.columns} ^ {*first.columns}):
            raise UserError(
                f"{table.source}: the columns differ from those of {names[1]} (only one of them has "
                f"{', '.join(sorted(odd))}): all files of {place} need the same columns"
            )
        if table.class_names != first.class_names:
            raise UserError(
                f"{table.source}: the names of its classes differ from those of {names[1]}"
            )
    marks = [table.impossible for table in tables if table.impossible is not None]
    dropped: dict[str, list[str]] = {}
    for table in tables:
        for kind, places in table.dropped.items():
            name = PurePath(table.source).name
            dropped.setdefault(kind, []).extend(f"file {name}, {place}" for place in places)
    return Table(
        source=place,
        columns=list(dict.fromkeys(name for table in tables for name in table.columns)),
        records=Joined([table.records for table in tables]),
        places=Joined([_places(table) for table in tables]),
        unit="file",
        class_names=first.class_names,
        impossible=Joined(marks) if len(marks) == len(tables) else None,
        delimiter=first.delimiter,
        dropped=dropped,
    )


def _places(table: Table) -> Sequence[str]:
    """Return where the rows of one of several files are."""
    name = PurePath(table.source).name
    return Mapped(lambda row: f"{name}, {table.place(row)}", range(len(table.records)))


def read_file(path: str, data: Data) -> Table:
    """Return the rows of one file. The recipe or the name of the file says the format."""
    with _opened(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        unpack.check_room(path, size * _IN_MEMORY)
        table = _parse(path, opened, size, data)
        if os.fstat(opened.fileno()).st_size != size:
            raise UserError(
                f"{path}: the file changed while it was read: wait until it is finished"
            )
    return table


@contextmanager
def _opened(path: str) -> Iterator[io.BufferedReader]:
    """Open a file. What is behind a URL is fetched into a file without a name."""
    if is_url(path):
        with fetched(path) as copy:
            yield copy
        return
    file = expanded(path)
    check_file(path, file)
    with open_regular(file) as opened:
        yield opened


def read_stdin(data: Data) -> Table:
    """Return the rows that come through standard input. Unless the recipe says the format, the first
    letters do.
    """
    source, raw = "standard input", bytearray()
    while piece := sys.stdin.buffer.read(_PIECE):
        unpack.check_room(source, _IN_MEMORY * (len(raw) + len(piece)))
        raw += piece
    kind = _kind_of(bytes(raw[:_PIECE])) if data.format == "auto" else data.format
    file: io.BufferedReader = io.BufferedReader(io.BytesIO(raw))
    return _parse(source, file, len(raw), data.model_copy(update={"format": kind}))


def read_lines(path: str, data: Data, column: str) -> Table:
    """Return a row for each line of a text file, unless it is blank. column: its name in the table."""
    with _opened(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        unpack.check_room(path, size * _IN_MEMORY)
        try:
            lines = [
                line.rstrip("\n") for line in as_text(path, opened, data.encoding, newline=None)
            ]
        except UnicodeError:
            opened.seek(0)
            raise not_text(path, opened, data.encoding) from None
    kept = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return Table(
        source=path,
        columns=[column],
        records=[{column: line} for _, line in kept],
        places=[number for number, _ in kept],
        unit="line",
    )


def _kind_of(start: bytes) -> str:
    """Return the format of bytes whose name does not say it."""
    if start.startswith(b"PAR1"):
        return "parquet"
    text = start.decode("utf-8-sig", "replace").lstrip()
    if text.startswith(("{", "[")):
        return "json"  # which also reads lines
    header = text.partition("\n")[0]
    return "tsv" if "\t" in header and "," not in header else "csv"


def _parse(path: str, file: io.BufferedReader, size: int, data: Data) -> Table:
    """Return the rows of an open file of `size` bytes."""
    if data.format == "auto":
        check_readable(path)
    room = unpack.room() // _IN_MEMORY
    found = unpack.content(path, file, size, room)
    kind = format_of(found.name) if data.format == "auto" else data.format
    if kind is None:
        raise UserError(
            f"{path}: the name does not say the format: set dataset.format to one of "
            f"{', '.join(dict.fromkeys(FORMATS.values()))}, squad, or give the file such an ending"
        )
    if kind == "parquet":
        return formats.read_parquet(
            path, io.BytesIO(found.file.read()) if found.is_packed else file
        )
    is_csv, drop = kind in ("csv", "tsv"), data.on_bad_rows == "drop"
    try:
        text = as_text(path, found.file, data.encoding, newline="" if is_csv else "\n")
        if is_csv:
            delimiter = data.delimiter or ("\t" if kind == "tsv" else ",")
            literal = data.quoting == "none" or (data.quoting == "auto" and kind == "tsv")
            return formats.read_csv(path, text, delimiter, literal, drop)
        if kind == "jsonl":
            return formats.read_jsonl(path, text, drop)
        return formats.read_json(path, text, squad=kind == "squad", drop=drop)
    except UnicodeError:
        file.seek(0)
        again = unpack.content(path, file, size, room)
        raise not_text(path, again.file, data.encoding) from None
