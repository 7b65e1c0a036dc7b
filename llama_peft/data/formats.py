"""Parses CSV, JSON, SQuAD and Parquet into one type of table.

Values stay as they are in the file: no word means "null", and only the format is guessed. A file
that is not what it claims to be is refused with the line that is wrong.
"""

import csv
import io
import json
import re
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import BinaryIO, Literal, TextIO

from pydantic import JsonValue

from llama_peft.data.sources.unpack import check_room, while_room
from llama_peft.errors import UserError
from llama_peft.system.sequences.spool import Spool

_BATCH = 1_000
"""Rows of a Parquet file that are read at once."""
_VALUE = 50
"""The least bytes that a value takes."""
_DELIMITERS = ";\t|,"
"""Characters that separate cells in files of many programs."""
_LONGEST_CELL = 2**31 - 1
"""Letters of a CSV cell; the csv module refuses more than 131,072 by itself."""
SHOWN = 3
"""Rows of a kind of fault that are shown."""
_UNQUOTED = ": if quotes are part of the text, set dataset.quoting: none"
_QUOTED = {
    True: ": quotes are part of the text here; if they enclose cells, set dataset.quoting: minimal",
    False: ": put quotes around a cell that contains a separator",
}
"""What to do about rows of other lengths, by whether quotes are part of the text."""


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
    delimiter: str = ""
    """What separates the cells of a text file."""
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The places of dropped rows, by what was wrong with them."""

    def place(self, row: int) -> str:
        """Return where a record is, for messages: "line 7"."""
        return f"{self.unit} {self.places[row]}"


class BadRows:
    """What stands in the place of rows in a file and cannot be rows, by what is wrong with it."""

    def __init__(self, source: str, drop: bool) -> None:
        self.source, self.drop = source, drop
        self.kinds: dict[str, list[tuple[str, str]]] = {}
        self.advice: dict[str, str] = {}

    def add(self, kind: str, place: str, detail: str = "", advice: str = "") -> None:
        """Record a bad row. detail: what stands there. advice: what to do about this kind."""
        self.kinds.setdefault(kind, []).append((place, detail))
        self.advice[kind] = advice

    def without(self, table: Table) -> Table:
        """Return the table of the other rows, which counts these as dropped.

        Raises UserError with every kind if they are not to be dropped, or if there are no others.
        """
        if self.kinds and not (self.drop and table.records):
            bad = sum(map(len, self.kinds.values()))
            count = f"{bad} of {bad + len(table.records)} rows are wrong"
            raise UserError(f"{self.source}: {count}", *self._lines())
        dropped = {kind: [place for place, _ in rows] for kind, rows in self.kinds.items()}
        return replace(table, dropped=dropped)

    def _lines(self) -> Iterator[str]:
        for kind, rows in self.kinds.items():
            first = [": ".join(filter(None, row)) for row in rows[:SHOWN]]
            yield fault_line(kind, len(rows), first) + self.advice[kind]


def fault_line(kind: str, count: int, first: Sequence[str]) -> str:
    """Return a line about bad rows of one kind. first: the places of the first ones."""
    rows = f"{count} row{'s' if count > 1 else ''}"
    return f"{rows}: {kind} (first: {'; '.join(first)})"


class _Lines:
    """The lines of a file. After a row that is broken, those after its first line are read again."""

    def __init__(self, first: str, rest: Iterator[str]) -> None:
        self._waiting, self._rest = deque([first] if first else []), rest
        self._row: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self._row.append(self._waiting.popleft() if self._waiting else next(self._rest))
        return self._row[-1]

    def end_row(self) -> int:
        """Return how many lines were read since the last end of a row."""
        count = len(self._row)
        self._row.clear()
        return count

    def end_broken_row(self) -> int:
        """Return 1: a quote that is not closed takes all lines up to the next quote with it."""
        self._waiting.extendleft(reversed(self._row[1:]))
        self._row.clear()
        return 1


def read_csv(path: str, text: TextIO, delimiter: str, literal: bool, drop: bool) -> Table:
    """Return the rows of a file with a header. A first line `sep=;` names the delimiter, as in Excel.

    literal: whether quotes are part of the text. They enclose cells otherwise. drop: whether rows
    that are broken, or have another number of cells than the header, are dropped.
    """
    first, start = text.readline(), 1
    if named := re.fullmatch(r'"?sep=([^"\r\n])"?[\r\n]*', first):
        delimiter, first, start = named[1], text.readline(), 2
    _check_delimiter(path, first, delimiter, start)
    header: list[str] = []
    records, starts, bad = Spool[dict[str, str]](), array("q"), BadRows(path, drop)
    for line, row in _rows(path, _Lines(first, text), delimiter, literal, bad, start):
        if not header:
            header = row
        elif len(row) == len(header):
            cells = zip(header, row, strict=True)
            records.append({name: cell for name, cell in cells if name.strip()})
            starts.append(line)
        else:
            kind = f"not {len(header)} cells like the header"
            bad.add(kind, f"line {line}", f"{len(row)} cells", _QUOTED[literal])
    names = [name for name in header if name.strip()]  # pandas writes its index without one
    rows = chain([names], (record.values() for record in records))
    if not bad.kinds and not any(cell.strip() for row in rows for cell in row):
        raise _is_empty(path)
    check_names(path, names)
    table = Table(
        source=path, columns=names, records=records, places=starts, unit="line", delimiter=delimiter
    )
    return bad.without(table)


def _rows(
    path: str, lines: _Lines, delimiter: str, literal: bool, bad: BadRows, start: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield every row that is not blank, with the number of its first line."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    for row in while_room(path, _each(reader)):
        if isinstance(row, csv.Error):
            bad.add("broken quotes", f"line {start}", str(row), _UNQUOTED)
            start += lines.end_broken_row()
            continue
        if row:
            yield start, row
        start += lines.end_row()


def _each(rows: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """Yield rows, and what is wrong with those that are broken."""
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _check_delimiter(path: str, header: str, delimiter: str, line: int) -> None:
    """Raise UserError if another character than the delimiter separates the names of a header."""
    csv.field_size_limit(_LONGEST_CELL)
    if len(next(csv.reader([header], delimiter=delimiter), ())) > 1:
        return
    other = max(_DELIMITERS, key=header.count)
    if header.count(other):
        shown = json.dumps(other)
        raise UserError(
            f"{path}: line {line}: the header is one column here, and {shown} stands in its name: "
            f"set dataset.delimiter: {shown}"
        )


def _is_empty(path: str) -> UserError:
    return UserError(f"{path}: the file is empty")


def check_names(source: str, columns: Sequence[str]) -> None:
    """Raise UserError if two columns have one name."""
    if repeated := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise UserError(f"{source}: the header contains {', '.join(repeated)} twice")


def read_jsonl(path: str, lines: TextIO, drop: bool) -> Table:
    """Return the rows of a file with one JSON object on each line. drop: whether bad lines are
    dropped.
    """
    bad = BadRows(path, drop)
    table = _of_objects(path, _json_lines(path, lines, bad), "line", bad)
    if not table.records:
        raise _is_empty(path)
    return table


def _json_lines(path: str, lines: TextIO, bad: BadRows) -> Iterator[tuple[int, object]]:
    """Yield the number and the value of every line that is JSON."""
    for number, line in enumerate(while_room(path, lines), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (RecursionError, ValueError) as error:
                bad.add("not valid JSON", f"line {number}", _why(error))


def read_json(path: str, file: TextIO, squad: bool, drop: bool) -> Table:
    """Return the rows of a JSON file: a list, or an object with a list `data`."""
    text = file.read()
    if not text.strip():
        raise _is_empty(path)
    check_room(path, _VALUE * sum(map(text.count, ",[{")))
    if not squad and _is_lines(text):
        return read_jsonl(path, io.StringIO(text, newline="\n"), drop)
    try:
        content: JsonValue = json.loads(text)
    except (RecursionError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}: {line}not valid JSON: {_why(error)}") from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or (squad and not isinstance(content, dict)):
        expected = "SQuAD's" if squad else "a list of rows, or"
        raise UserError(f'{path}: must be {expected} {{"data": [...]}}')
    return of_list(path, rows, squad, drop)


def _why(error: Exception) -> str:
    """Return in a few words why a text is not JSON that can be used."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "it is nested too deeply, or a number is too long"


def _is_lines(text: str) -> bool:
    """Return whether a text holds one JSON object on each line, whatever its file is called."""
    first, _, rest = text.strip().partition("\n")
    if not (first.startswith("{") and rest.lstrip().startswith("{")):
        return False
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(first), dict)
    return False


def of_list(source: str, rows: Sequence[object], squad: bool, drop: bool) -> Table:
    """Return the table of a list of objects, or of SQuAD's articles.

    drop: whether what is not an object is dropped.
    """
    first = rows[0] if rows and isinstance(rows[0], Mapping) else {}
    if "qas" in first and "context" in first:  # passages that stand in no article
        return _of_articles(source, [{"paragraphs": rows}])
    if squad or "paragraphs" in first:
        return _of_articles(source, rows)
    return _of_objects(source, enumerate(rows, start=1), "row", BadRows(source, drop))


def _of_objects(
    source: str, values: Iterable[tuple[int, object]], unit: str, bad: BadRows
) -> Table:
    """Return the table of those values that are objects.

    values: each with its place. bad: rows that are not even values.
    """
    records, kept, columns = Spool[dict[str, object]](), array("q"), dict[str, None]()
    for place, value in values:
        if isinstance(value, dict):
            records.append(value)
            kept.append(place)
            columns.update(dict.fromkeys(value))
        else:
            bad.add("not an object with named values", f"{unit} {place}")
    table = Table(source=source, columns=[*columns], records=records, places=kept, unit=unit)
    return bad.without(table)


def _of_articles(source: str, articles: Sequence[object]) -> Table:
    records = Spool(_squad_rows(source, articles))
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

    records = Spool[dict[str, object]]()
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        about = opened.metadata
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        check_room(path, max(size, _VALUE * about.num_rows * about.num_columns))
        for batch in opened.iter_batches(_BATCH):
            check_room(path, batch.nbytes)
            records.extend(batch.to_pylist())
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
