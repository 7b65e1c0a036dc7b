"""Parses CSV, JSON, SQuAD and Parquet into one type of table.

Values stay as they are in the file: no word means "null", and only the format is guessed. A file
that is not what it claims to be is refused with the line that is wrong.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from llama_peft.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Records with the names of their columns, and the place of each record in its source."""

    source: str
    columns: Sequence[str]
    records: Sequence[Mapping[str, object]]
    places: Sequence[str | int]
    unit: str = "row"
    label_names: tuple[str, ...] = ()
    impossible: Sequence[bool] | None = None
    """SQuAD's own mark of questions without an answer, if the source has it."""

    def place(self, row: int) -> str:
        """Return where a record is, for messages: "line 7"."""
        return f"{self.unit} {self.places[row]}"


def read_csv(path: str, text: str, kind: str, quoting: str) -> Table:
    """Return the rows of a text with a header and with commas or, if kind is tsv, tabs."""
    literal = quoting == "none" or (quoting == "auto" and kind == "tsv")
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if kind == "tsv" else ",",
        quoting=csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL,
        strict=True,
    )
    rows, starts, start = [], [], 1
    try:
        for row in lines:
            if row:  # not a blank line
                rows.append(row)
                starts.append(start)
            start = lines.line_num + 1
    except csv.Error as error:
        hint = "if quotes are part of the text, set dataset.quoting: none"
        raise UserError(f"{path}: line {start}: malformed row ({error}): {hint}") from None
    return _with_header(path, rows, starts, literal)


def _with_header(path: str, rows: list[list[str]], starts: list[int], literal: bool) -> Table:
    """Return the table of a header and its rows; `starts` are the lines on which they start."""
    header, rows, starts = rows[0], rows[1:], starts[1:]
    check_names(path, header)
    wrong = [index for index, row in enumerate(rows) if len(row) != len(header)]
    if wrong:
        hint = (
            "quotes are part of the text here; if they enclose cells, set dataset.quoting: minimal"
            if literal
            else "put quotes around a cell that contains a separator"
        )
        raise UserError(
            f"{path}: {len(wrong)} of {len(rows)} rows do not have {len(header)} cells like the "
            f"header (first: line {starts[wrong[0]]} has {len(rows[wrong[0]])}): {hint}"
        )
    records = [dict(zip(header, row, strict=True)) for row in rows]
    return Table(source=path, columns=header, records=records, places=starts, unit="line")


def check_names(source: str, columns: Sequence[str]) -> None:
    """Raise UserError if two columns have one name."""
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(f"{source}: the header contains {', '.join(repeated)} twice")


def read_jsonl(path: str, text: str) -> Table:
    """Return the rows of a text with one JSON object on each line."""
    records, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            records.append(_parse(path, line, number))
            lines.append(number)
    return _of_objects(path, records, lines, "line")


def read_json(path: str, text: str, squad: bool) -> Table:
    """Return the rows of a JSON text: a list, or an object with a list `data`."""
    content = _parse(path, text)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or (squad and not isinstance(content, dict)):
        expected = "SQuAD's" if squad else "a list of rows, or"
        raise UserError(f'{path}: must be {expected} {{"data": [...]}}')
    return of_list(path, rows, squad)


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
    if squad or (rows and isinstance(rows[0], Mapping) and "paragraphs" in rows[0]):
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


def read_parquet(path: str, file: Path) -> Table:
    """Return the rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from None
    return numbered(path, table.column_names, records)


def numbered(
    source: str,
    columns: Iterable[str],
    records: Sequence[Mapping[str, object]],
    labels: Sequence[str] = (),
) -> Table:
    """Return a table whose places are the numbers of its rows, from 1."""
    return Table(
        source=source,
        columns=list(columns),
        records=records,
        places=range(1, len(records) + 1),
        label_names=tuple(labels),
    )
