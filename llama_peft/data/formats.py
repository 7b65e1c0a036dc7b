"""Parses CSV, JSON, SQuAD and Parquet into one type of table.

Values stay as they are in the file: no word means "null", and only the format is guessed. A file
that is not what it claims to be is refused with the line that is wrong.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO, TextIO, TypeVar

from pydantic import JsonValue

from llama_peft.errors import UserError
from llama_peft.system.formatting import memory
from llama_peft.system.memory import available

_BATCH = 1_000
"""After so many rows the free memory is looked at again: short rows take many times their bytes."""
_RESERVE = 100_000_000
"""Bytes of memory that stay free."""
_VALUE = 50
"""The least bytes that a value takes."""
_DELIMITERS = ";\t|,"
"""Characters that separate cells in files of many programs."""
_LONGEST_CELL = 2**31 - 1
"""Letters of a CSV cell; the csv module refuses more than 131,072 by itself."""
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Records with the names of their columns, and the place of each record in its source."""

    source: str
    columns: Sequence[str]
    records: Sequence[Mapping[str, object]]
    places: Sequence[str | int]
    unit: str = "row"
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The names that the whole numbers of a column stand for, if the source gives names."""
    impossible: Sequence[bool] | None = None
    """SQuAD's own mark of questions without an answer, if the source has it."""

    numbers: Sequence[int] | None = None
    """The number of each record in its source, from 0, if bad rows were dropped between them."""
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The places of dropped rows, by what was wrong with them."""

    def place(self, row: int) -> str:
        """Return where a record is, for messages: "line 7"."""
        return f"{self.unit} {self.places[row]}"


def read_csv(path: str, text: TextIO, delimiter: str, literal: bool, drop: bool) -> Table:
    """Return the rows of a file with a header.

    literal: whether quotes are part of the text. They enclose cells otherwise. drop: whether rows
    with another number of cells than the header are dropped.
    """
    first = text.readline()
    _check_delimiter(path, first, delimiter)
    lines = csv.reader(
        chain([first], text) if first else (),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    records, starts, wrong, start = [], [], [], 1
    try:
        for row in _while_room(path, lines):
            if row and not header:
                header = row
            elif row and len(row) == len(header):
                cells = zip(header, row, strict=True)
                records.append({name: cell for name, cell in cells if name.strip()})
                starts.append(start)
            elif row:  # not a blank line
                wrong.append((start, len(row)))
            start = lines.line_num + 1
    except csv.Error as error:
        hint = "if quotes are part of the text, set dataset.quoting: none"
        raise UserError(f"{path}: line {start}: malformed row ({error}): {hint}") from None
    named = [name for name in header if name.strip()]  # pandas writes its index without a name
    rows = chain([named], (record.values() for record in records))
    if not wrong and not any(cell.strip() for row in rows for cell in row):
        raise _is_empty(path)
    check_names(path, named)
    if wrong and not (drop and records):
        raise _ragged(path, wrong, len(records) + len(wrong), len(header), literal)
    ragged = {f"not {len(header)} cells like the header": [f"line {line}" for line, _ in wrong]}
    return Table(
        source=path,
        columns=named,
        records=records,
        places=starts,
        unit="line",
        dropped=ragged if wrong else {},
    )


def _check_delimiter(path: str, header: str, delimiter: str) -> None:
    """Raise UserError if another character than the delimiter separates the names of a header."""
    csv.field_size_limit(_LONGEST_CELL)
    if len(next(csv.reader([header], delimiter=delimiter), ())) > 1:
        return
    other = max(_DELIMITERS, key=header.count)
    if header.count(other):
        shown = json.dumps(other)
        raise UserError(
            f"{path}: line 1: the header is one column here, and {shown} stands in its name: "
            f"set dataset.delimiter: {shown}"
        )


def _ragged(
    path: str, wrong: Sequence[tuple[int, int]], rows: int, cells: int, literal: bool
) -> UserError:
    """Return what is wrong with rows that have another number of cells than the header."""
    line, found = wrong[0]
    hint = (
        "quotes are part of the text here; if they enclose cells, set dataset.quoting: minimal"
        if literal
        else "put quotes around a cell that contains a separator"
    )
    return UserError(
        f"{path}: {len(wrong)} of {rows} rows do not have {cells} cells like the header "
        f"(first: line {line} has {found}): {hint}"
    )


def room() -> int:
    """Return the bytes of memory that the rows of a file may take."""
    return available() - _RESERVE


def check_room(path: str, needed: int) -> None:
    """Raise UserError if the machine has not so many bytes of memory for the rows of a file."""
    free = room()
    if needed > free:
        raise UserError(
            f"{path}: its rows do not fit into the memory of this machine "
            f"({memory(max(free, 0))} are free): use a smaller file"
        )


def _while_room(path: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows. Raises UserError before they fill the memory of the machine."""
    for number, row in enumerate(rows):
        if number % _BATCH == 0:
            check_room(path, 0)
        yield row


def _is_empty(path: str) -> UserError:
    return UserError(f"{path}: the file is empty")


def check_names(source: str, columns: Sequence[str]) -> None:
    """Raise UserError if two columns have one name."""
    if repeated := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise UserError(f"{source}: the header contains {', '.join(repeated)} twice")


def read_jsonl(path: str, lines: TextIO) -> Table:
    """Return the rows of a file with one JSON object on each line."""
    records, numbers = [], []
    for number, line in enumerate(_while_room(path, lines), start=1):
        if line.strip():
            records.append(_parse(path, line.removesuffix("\n"), number))
            numbers.append(number)
    if not records:
        raise _is_empty(path)
    return _of_objects(path, records, numbers, "line")


def read_json(path: str, file: TextIO, squad: bool) -> Table:
    """Return the rows of a JSON file: a list, or an object with a list `data`."""
    text = file.read()
    if not text.strip():
        raise _is_empty(path)
    check_room(path, _VALUE * sum(map(text.count, ",[{")))
    if not squad and _is_lines(text):
        return read_jsonl(path, io.StringIO(text, newline="\n"))
    content = _parse(path, text)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or (squad and not isinstance(content, dict)):
        expected = "SQuAD's" if squad else "a list of rows, or"
        raise UserError(f'{path}: must be {expected} {{"data": [...]}}')
    return of_list(path, rows, squad)


def _is_lines(text: str) -> bool:
    """Return whether a text holds one JSON object on each line, whatever its file is called."""
    first, _, rest = text.strip().partition("\n")
    if not (first.startswith("{") and rest.lstrip().startswith("{")):
        return False
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(first), dict)
    return False


def _parse(path: str, text: str, line: int | None = None) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}"
        raise UserError(f"{path}: {place}: is not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError):
        raise UserError(
            f"{path}: cannot be used: its JSON is nested too deeply, or a number is too long"
        ) from None
    return value


def of_list(source: str, rows: Sequence[object], squad: bool) -> Table:
    """Return the table of a list of objects, or of SQuAD's articles."""
    first = rows[0] if rows and isinstance(rows[0], Mapping) else {}
    if "qas" in first and "context" in first:  # passages that stand in no article
        return _of_articles(source, [{"paragraphs": rows}])
    if squad or "paragraphs" in first:
        return _of_articles(source, rows)
    return _of_objects(source, rows, range(1, len(rows) + 1), "row")


def _of_objects(source: str, values: Sequence[object], places: Sequence[int], unit: str) -> Table:
    records = [value for value in values if isinstance(value, dict)]
    if len(records) < len(values):
        first = next(index for index, value in enumerate(values) if not isinstance(value, dict))
        raise UserError(
            f"{source}: {len(values) - len(records)} of {len(values)} rows are not objects with "
            f"named values (first: {unit} {places[first]})"
        )
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Table(source=source, columns=columns, records=records, places=places, unit=unit)


def _of_articles(source: str, articles: Sequence[object]) -> Table:
    records = list(_squad_rows(source, articles))
    return Table(
        source=source,
        columns=["id", "question", "context", "answers", "title"],
        records=records,
        places=[f"{row} (id {record['id']})" for row, record in enumerate(records, start=1)],
        unit="question",
        impossible=[record["is_impossible"] is True for record in records],
    )


def _squad_rows(source: str, articles: Sequence[object]) -> Iterator[dict[str, object]]:
    """Yield every question of SQuAD's nested form (v1.1 and v2) with its passage and title."""
    for number, article in enumerate(articles, start=1):
        place = f"{source}: article {number}"
        article, paragraphs = _with_list(article, "paragraphs", place)
        for index, paragraph in enumerate(paragraphs, start=1):
            inner = f"{place}, paragraph {index}"
            paragraph, questions = _with_list(paragraph, "qas", inner)
            for entry in questions:
                if not isinstance(entry, dict):
                    raise UserError(f"{inner}: a question is not an object")
                yield {
                    "id": entry.get("id"),
                    "question": entry.get("question"),
                    "context": paragraph.get("context"),
                    "answers": entry.get("answers"),
                    "title": article.get("title"),
                    "is_impossible": entry.get("is_impossible", False),
                }


def _with_list(value: object, key: str, place: str) -> tuple[Mapping[str, object], list[object]]:
    """Return an object and its list of that name."""
    inner = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(inner, list):
        raise UserError(f"{place}: has no list {key}, so this is not SQuAD's format")
    return value, inner


def read_parquet(path: str, file: BinaryIO) -> Table:
    """Return the rows of a Parquet file.

    A small file can hold many rows, and what it says of itself may be wrong, so it is read in
    batches.
    """
    import pyarrow
    import pyarrow.parquet

    records: list[dict[str, object]] = []
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        about = opened.metadata
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        check_room(path, max(size, _VALUE * about.num_rows * about.num_columns))
        for batch in opened.iter_batches(_BATCH):
            check_room(path, batch.nbytes)
            records += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None
    schema = opened.schema_arrow
    return numbered(path, schema.names, records, _class_names(schema.metadata or {}))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of classes by column, which the datasets library writes into its files."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        items = {key: value.get("feature", value) for key, value in features.items()}  # of lists
        classes = {key: value for key, value in items.items() if "names" in value}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # another program wrote the file
    return {
        column: [*map(str, feature["names"])]
        for column, feature in classes.items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list)
    }


def numbered(
    source: str,
    columns: Iterable[str],
    records: Sequence[Mapping[str, object]],
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Return a table whose places are the numbers of its rows, from 1."""
    return Table(
        source=source,
        columns=list(columns),
        records=records,
        places=range(1, len(records) + 1),
        class_names=class_names or {},
    )
