"""Reads rows from files, the Hub, the generator and Python objects into one type of table."""

import difflib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llama_peft.data import formats, unpack
from llama_peft.data.encoding import as_text, not_text
from llama_peft.data.formats import Table
from llama_peft.errors import UserError
from llama_peft.recipe import Data
from llama_peft.system.files import open_regular

if TYPE_CHECKING:
    import datasets
    import pandas

Rows: TypeAlias = "Sequence[Mapping[str, object]] | pandas.DataFrame | datasets.Dataset"
"""Rows that are given from Python."""
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

_PIECE = 1 << 20
"""Bytes of standard input that are read at once."""
_IN_MEMORY = 2
"""Bytes of memory that a byte of a file takes at the least: one long text is held twice while it is
read. Rows of 200 letters take 2.6 in CSV, 2.9 in JSONL and 3.2 in JSON.
"""


def read_file(path: str, data: Data) -> Table:
    """Return the rows of a local file. The recipe or the name of the file says the format."""
    try:
        file = Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{path}: {error}") from None
    _check_file(path, file)
    with open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        unpack.check_room(path, size * _IN_MEMORY)
        table = _parse(path, opened, size, data)
        if os.fstat(opened.fileno()).st_size != size:
            raise UserError(
                f"{path}: the file changed while it was read: wait until it is finished"
            )
    return table


def read_any(source: "str | Path | Rows", data: Data, split: str | None) -> tuple[Table, str]:
    """Return the rows of a file, of a Hub data set or from Python, and the word that the ids of rows
    without an id begin with.

    split: of a Hub data set. None: test, or the recipe's test part if the data set is its own.
    """
    if not isinstance(source, str | Path):
        return read_rows(source, data), split or "rows"
    if is_file_name(str(source)):
        return read_file(str(source), data), Path(source).stem
    is_own = str(source) == data.path
    part = str(split or (data.parts.test if is_own else None) or "test")
    name = data.name if is_own else None
    return read_hub(str(source), part, data, name, advice="name one of these splits"), part


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
    file = Path(path).expanduser()
    _check_file(path, file)
    with open_regular(file) as opened:
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


def is_file_name(path: str) -> bool:
    """Return whether a user who writes this means a file, and not a name on the Hub or a folder."""
    if path == "tiny" or Path(path).is_dir():
        return False
    local = path.startswith(("/", "./", "../", "~"))
    is_named = Path(path).suffix.lower() in (*FORMATS, *unpack.SUFFIXES)
    return local or is_named or Path(path).is_file()


def _format(name: str) -> str | None:
    return FORMATS.get(Path(name).suffix.lower())


def _check_file(path: str, file: Path) -> None:
    if file.is_dir():
        raise UserError(f"{path}: is a folder: name a file in it")
    if file.exists() and not file.is_file():  # a socket cannot even be opened
        raise UserError(f"{path}: this is not a regular file")
    if file.exists():
        return
    if file.is_symlink():
        raise UserError(f"{path}: this is a link to itself or to a file that does not exist")
    if not file.parent.is_dir():
        raise UserError(f"{path}: no such file: there is no folder {file.parent}")
    names = [entry.name for entry in file.parent.iterdir()]
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {file.parent / near[0]}?" if near else f" in {file.parent.resolve()}"
    raise UserError(f"{path}: no such file{hint}")


def _parse(path: str, file: io.BufferedReader, size: int, data: Data) -> Table:
    """Return the rows of an open file of `size` bytes."""
    room = unpack.room() // _IN_MEMORY
    found = unpack.content(path, file, size, room)
    kind = _format(found.name) if data.format == "auto" else data.format
    if kind is None:
        raise UserError(
            f"{path}: the name does not say the format: set dataset.format to one of "
            f"{', '.join(dict.fromkeys(FORMATS.values()))}, squad"
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


def read_hub(
    path: str, split: str, data: Data, name: str | None, advice: str = "set dataset.parts"
) -> Table:
    """Return one split of a data set on the Hub, or of a folder in the Hub's layout.

    advice: what to do if there is no such split.
    """
    import datasets

    _check_meaning(path)
    try:
        rows = datasets.load_dataset(path, name, split=split, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: {_hub_advice(path, error, advice)}") from None
    return _of_dataset(f"{path} ({split})", rows)


def _check_meaning(path: str) -> None:
    """Raise UserError for a name that the library takes for something else than the user may mean."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if path in _PACKAGED_DATASETS_MODULES:
        raise UserError(
            f"{path}: this is a file format of the datasets library, which would read the working "
            f"directory; write ./{path} for a folder, or owner/name for a data set on the Hub"
        )
    with suppress(HFValidationError):  # what cannot be a name on the Hub is a folder
        validate_repo_id(path)
        if Path(path).is_dir():
            raise UserError(
                f"{path}: this can be a folder here or a data set on the Hub; write ./{path} for "
                "the folder, or work in another directory for the data set"
            )


def _of_dataset(source: str, rows: "datasets.Dataset") -> Table:
    import datasets

    # In a column of lists, the feature of the list's items has the names.
    features = {name: getattr(each, "feature", each) for name, each in rows.features.items()}
    names = {
        name: each.names for name, each in features.items() if isinstance(each, datasets.ClassLabel)
    }
    return formats.numbered(source, rows.column_names, rows.to_list(), names)


def _hub_advice(path: str, error: Exception, split_advice: str) -> str:
    """Return what happened, in one line, and what to do about it."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "gated" in reason:
        page = f"https://huggingface.co/datasets/{path}"
        return f"{reason}: accept its terms at {page}, then run `hf auth login`"
    if "OfflineModeIsEnabled" in reason:
        return f"{reason}: unset HF_HUB_OFFLINE, or name local files under dataset.parts"
    if isinstance(error, ConnectionError):
        return f"{reason}: check the network, or name local files under dataset.parts"
    if "split" in reason:
        return f"{reason}: {split_advice}"
    if "config" in reason.lower():
        return f"{reason}: set dataset.name"
    if "doesn't exist" in reason:
        return (
            f"{reason}: check the name (there is no such file either); "
            "a private data set needs `hf auth login`"
        )
    return reason


def read_tiny(kind: str, part: str, count: int, seed: int) -> Table:
    """Return rows that the project's own generator writes."""
    from llama_peft.tiny.generator import generate

    try:
        records = generate(kind, part, count, seed)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"dataset.name: {error}: with path tiny, set it to reviews, mixed-reviews or passages"
        ) from None
    columns = list(records[0]) if records else []
    return formats.numbered(f"tiny {kind} ({part})", columns, records)


def read_rows(rows: "Rows", data: Data, source: str = "rows") -> Table:
    """Return the rows of a list of dicts, a pandas DataFrame or a datasets.Dataset.

    Missing cells of pandas (NaN, NaT, NA) become empty cells. Numbers stay as they are.
    source: what messages call the rows.
    """
    # Who holds such an object has imported its library, so nothing heavy needs to be imported here.
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return _of_dataset(source, rows)
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        columns = [str(name) for name in rows.columns]
        formats.check_names(source, columns)
        cells = rows.itertuples(index=False, name=None)
        records = [dict(zip(columns, map(_cell, row), strict=True)) for row in cells]
        return formats.numbered(source, columns, records)
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        values = [_cell(row) for row in rows]
        return formats.of_list(source, values, data.format == "squad", data.on_bad_rows == "drop")
    expected = "a list of dicts, a pandas DataFrame or a datasets.Dataset"
    raise UserError(f"{source}: must be {expected}, not of type {type(rows).__name__}")


def _cell(value: object) -> object:
    """Return a value with Python's own types, as JSON would give it."""
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _cell(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(inner) for inner in value]
    if isinstance(value, float) and value != value:
        return None
    if pandas is not None and (value is pandas.NA or value is pandas.NaT):
        return None
    return value
