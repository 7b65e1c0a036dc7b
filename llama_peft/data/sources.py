"""Files, the Hub and the generator: whatever holds rows becomes one Table of records.

Values come as they stand: no word means "null" here, and nothing is guessed but the format. A file
that cannot be read as what it claims to be is refused with the line at fault.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_peft.errors import UserError
from llama_peft.recipe import Data

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Records with the names of their columns and the place that each has in its source."""

    source: str
    columns: Sequence[str]
    records: Sequence[dict[str, Any]]
    places: Sequence[str | int]
    unit: str = "row"
    label_names: tuple[str, ...] = ()
    impossible: Sequence[bool] | None = None
    """SQuAD's own mark of unanswerable questions, where the source has one."""

    def place(self, row: int) -> str:
        return f"{self.unit} {self.places[row]}"


def read_file(path: str, data: Data) -> Table:
    """The rows of a local file, in the format that the recipe or the file's name says."""
    try:
        file = Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{path}: {error}") from None
    kind = FORMATS.get(file.suffix.lower()) if data.format == "auto" else data.format
    _check_file(path, file)
    if kind is None:
        raise UserError(
            f"{path}: the name does not say the format: set dataset.format to one of "
            f"{', '.join(dict.fromkeys(FORMATS.values()))}, squad"
        )
    if kind == "parquet":
        return _read_parquet(path, file)
    text = _decode(path, file.read_bytes())
    if kind in ("csv", "tsv"):
        return _read_csv(path, text, kind, data.quoting)
    if kind == "jsonl":
        return _read_jsonl(path, text)
    return _read_json(path, text, squad=kind == "squad")


def is_file_name(path: str) -> bool:
    """Whether a user who writes this means a file, not a name on the Hub or a folder like one."""
    if path == "tiny" or Path(path).is_dir():
        return False
    local = path.startswith(("/", "./", "../", "~"))
    return local or Path(path).suffix.lower() in FORMATS or Path(path).is_file()


def _check_file(path: str, file: Path) -> None:
    if file.is_dir():
        raise UserError(f"{path}: is a folder: name a file in it")
    if file.exists():
        return
    if not file.parent.is_dir():
        raise UserError(f"{path}: no such file: there is no folder {file.parent}")
    names = [entry.name for entry in file.parent.iterdir()]
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {file.parent / near[0]}?" if near else f" in {file.parent.resolve()}"
    raise UserError(f"{path}: no such file{hint}")


def _decode(path: str, raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: not UTF-8 text (byte {raw[error.start]:#04x}): save it as UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return text


def _read_csv(path: str, text: str, kind: str, quoting: str) -> Table:
    literal = quoting == "none" or (quoting == "auto" and kind == "tsv")
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if kind == "tsv" else ",",
        quoting=csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL,
        strict=True,
    )
    rows, lines = _csv_rows(path, reader)
    header, rows, lines = rows[0], rows[1:], lines[1:]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path}: the header names {', '.join(repeated)} twice")
    wrong = [place for place, row in enumerate(rows) if len(row) != len(header)]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} of {len(rows)} rows have not {len(header)} cells as the header "
            f"(first: line {lines[wrong[0]]} has {len(rows[wrong[0]])}): {_quoting_hint(literal)}"
        )
    records = [dict(zip(header, row, strict=True)) for row in rows]
    return Table(source=path, columns=header, records=records, places=lines, unit="line")


def _csv_rows(path: str, reader: Any) -> tuple[list[list[str]], list[int]]:
    """The rows that are not blank, and the line that each starts on."""
    rows, lines, start = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        hint = "if quotes are plain text here, set dataset.quoting: none"
        raise UserError(f"{path}: line {start}: malformed row ({error}): {hint}") from None
    return rows, lines


def _quoting_hint(literal: bool) -> str:
    if literal:
        return "quotes are plain text here; if they enclose cells, set dataset.quoting: minimal"
    return "enclose a cell with a separator in quotes"


def _read_jsonl(path: str, text: str) -> Table:
    records, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            records.append(_parse(path, line, number))
            lines.append(number)
    return _of_objects(path, records, lines, "line")


def _parse(path: str, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}"
        raise UserError(f"{path}: {place}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError):
        raise UserError(f"{path}: not usable JSON: too deep, or a number too long") from None


def _of_objects(source: str, values: Sequence[Any], places: Sequence[int], unit: str) -> Table:
    wrong = [place for place, value in zip(places, values, strict=True) if type(value) is not dict]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} of {len(values)} rows are not objects with named values "
            f"(first: {unit} {wrong[0]})"
        )
    columns = list(dict.fromkeys(key for value in values for key in value))
    return Table(source=source, columns=columns, records=values, places=places, unit=unit)


def _read_json(path: str, text: str, squad: bool) -> Table:
    content = _parse(path, text)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or (squad and not isinstance(content, dict)):
        shape = "SQuAD's" if squad else "a list of rows, or"
        raise UserError(f'{path}: must be {shape} {{"data": [...]}}')
    if squad or (rows and isinstance(rows[0], dict) and "paragraphs" in rows[0]):
        return _read_squad(path, rows)
    return _of_objects(path, rows, range(1, len(rows) + 1), "row")


def _read_squad(path: str, articles: Sequence[Any]) -> Table:
    records = list(_squad_rows(path, articles))
    return Table(
        source=path,
        columns=["id", "question", "context", "answers", "title"],
        records=records,
        places=[f"{row} (id {record['id']})" for row, record in enumerate(records, start=1)],
        unit="question",
        impossible=[record["is_impossible"] is True for record in records],
    )


def _squad_rows(path: str, articles: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every question with its passage and title, in SQuAD's nested form (v1.1 and v2)."""
    for number, article in enumerate(articles, start=1):
        place = f"{path}: article {number}"
        for index, paragraph in enumerate(_list_in(article, "paragraphs", place), start=1):
            spot = f"{place}, paragraph {index}"
            for entry in _list_in(paragraph, "qas", spot):
                if type(entry) is not dict:
                    raise UserError(f"{spot}: a question is not an object")
                yield {
                    "id": entry.get("id"),
                    "question": entry.get("question"),
                    "context": paragraph.get("context"),
                    "answers": entry.get("answers"),
                    "title": article.get("title"),
                    "is_impossible": entry.get("is_impossible", False),
                }


def _list_in(value: Any, key: str, place: str) -> list[Any]:
    inner = value.get(key) if isinstance(value, dict) else None
    if not isinstance(inner, list):
        raise UserError(f"{place}: has no list {key}: this is not SQuAD's format")
    return inner


def _read_parquet(path: str, file: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read: {error}") from None
    return _of_arrow(path, table.column_names, records)


def _of_arrow(
    source: str, columns: Iterable[str], records: list[dict[str, Any]], labels: Sequence[str] = ()
) -> Table:
    return Table(
        source=source,
        columns=list(columns),
        records=records,
        places=range(1, len(records) + 1),
        label_names=tuple(labels),
    )


def read_hub(path: str, split: str, data: Data, name: str | None) -> Table:
    """One split of a data set on the Hub, or of a folder in the Hub's layout."""
    import datasets

    try:
        rows = datasets.load_dataset(path, name, split=split, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: {_hub_advice(path, error)}") from None
    columns = [column for column in data.columns.names("label") if column in rows.features]
    feature = rows.features[columns[0]] if columns else None
    labels = feature.names if isinstance(feature, datasets.ClassLabel) else ()
    return _of_arrow(f"{path} ({split})", rows.column_names, rows.to_list(), labels)


def _hub_advice(path: str, error: Exception) -> str:
    """What happened, in a line, and what to do about it."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "gated" in reason:
        page = f"https://huggingface.co/datasets/{path}"
        return f"{reason}: accept its terms at {page}, then `hf auth login`"
    if "OfflineModeIsEnabled" in reason:
        return f"{reason}: unset HF_HUB_OFFLINE, or name local files under dataset.parts"
    if isinstance(error, ConnectionError):
        return f"{reason}: check the network, or name local files under dataset.parts"
    if "split" in reason:
        return f"{reason}: set dataset.parts"
    if "config" in reason.lower():
        return f"{reason}: set dataset.name"
    if "doesn't exist" in reason:
        return f"{reason}: check the name; a private one needs `hf auth login`; no such file either"
    return reason


def read_tiny(kind: str, part: str, count: int, seed: int) -> Table:
    """Rows that the project's own generator writes."""
    from llama_peft.tiny.generator import generate

    try:
        records = generate(kind, part, count, seed)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"dataset path tiny: {error}: name is reviews or passages") from None
    columns = list(records[0]) if records else []
    return _of_arrow(f"tiny {kind} ({part})", columns, records)
