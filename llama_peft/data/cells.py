"""The cells of a table by the recipe's names for columns, and what is wrong with them.

Nothing is repaired. A row that cannot be used stops the run before it costs anything, unless the
recipe says to drop such rows. All are counted, and the first three of each kind are shown.
"""

import ast
import json
import logging
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from llama_peft.data.formats import SHOWN, Table, fault_line
from llama_peft.errors import UserError
from llama_peft.recipe import Columns, Prompt, Recipe, templates
from llama_peft.system.sequences.views import Chosen
from llama_peft.tasks import TASKS

log = logging.getLogger(__name__)
_SURROGATE = re.compile("[\ud800-\udfff]")
TRUTH = ("label", "answers", "answer_start")
"""The columns with what a model should say. Rows that are only to be predicted need none of them."""

_NUMBERED = ": make the ids unique, or set dataset.columns.id: null to number the rows"
SEVERAL = "label holds several values, but a row has one class"
_ADVICE = {
    "empty id": _NUMBERED,
    "duplicate id": _NUMBERED,
    "context is not text": ": write each passage as one text",
    SEVERAL: ": if a row may have any number of labels, set dataset.single_label: false",
}


class Faults:
    """Bad rows by kind of fault. Each kind knows its first rows."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.kinds: dict[str, list[int]] = {}
        self.details: dict[tuple[str, int], str] = {}

    def add(self, row: int, kind: str, detail: object = None) -> None:
        """Record that a row is bad. The details of the first rows of a kind are shown."""
        rows = self.kinds.setdefault(kind, [])
        if rows[-1:] != [row]:  # two bad answers are one bad row
            rows.append(row)
            if detail is not None and len(rows) <= SHOWN:
                self.details[kind, row] = f": {short(detail)}"

    @property
    def rows(self) -> set[int]:
        """The bad rows."""
        return {row for rows in self.kinds.values() for row in rows}

    def check(self) -> None:
        """Raise UserError if any row is bad."""
        if self.kinds:
            count = f"{len(self.rows)} of {len(self.table.records)} rows are wrong"
            raise UserError(f"{self.table.source}: {count}", *self._lines())

    def drop(self) -> Table:
        """Return the table without its bad rows, which are logged. Raises UserError if all are bad."""
        table, bad = self.table, self.rows
        places = {kind: [table.place(row) for row in rows] for kind, rows in self.kinds.items()}
        dropped = {**table.dropped, **places}
        kept = array("q", (row for row in range(len(table.records)) if row not in bad))
        if not dropped:
            return table
        if not kept:
            self.check()
        count = len(bad) + sum(map(len, table.dropped.values()))
        log.warning(
            "%s: %d of %d rows are dropped: %s",
            *(table.source, count, count + len(kept), "; ".join(self._lines())),
        )
        marks = table.impossible
        return replace(
            table,
            records=Chosen(table.records, kept),
            places=Chosen(table.places, kept),
            impossible=None if marks is None else Chosen(marks, kept),
            numbers=kept,
            dropped=dropped,
        )

    def _lines(self) -> Iterator[str]:
        """Yield a line for each kind of fault."""
        for kind, places in self.table.dropped.items():
            yield fault_line(kind, len(places), places[:SHOWN])
        for kind, rows in self.kinds.items():
            first = [
                f"{self.table.place(row)}{self.details.get((kind, row), '')}"
                for row in rows[:SHOWN]
            ]
            yield fault_line(kind, len(rows), first) + _ADVICE.get(kind, "")


def short(value: object) -> str:
    """Return a value for a message, in at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def broken(text: str) -> bool:
    """Return whether a text contains an unpaired Unicode surrogate, which no file can hold."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def literal(text: str) -> object:
    """Return the list or object that a text writes in JSON or in Python, or the text itself."""
    if text.lstrip().startswith(("{", "[", "(")):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value: object = parse(text.strip())
                return value
    return text


def find_columns(table: Table, recipe: Recipe, with_truth: bool = True) -> dict[str, str]:
    """Return the table's name of each column that the recipe knows and the table has.

    with_truth: False looks only for what a model reads, and for the ids if there are any. Raises
    UserError if a needed column is missing.
    """
    if not table.records:
        raise UserError(f"{table.source}: contains no rows")
    columns, usual = recipe.dataset.columns, Columns()
    needed = {*recipe.kind.columns} if with_truth else {*recipe.kind.columns} - {*TRUTH}
    needed -= {key for key in needed if not columns.names(key)}  # null: there is no such column
    keys = [key for key in Columns.model_fields if with_truth or key in {*needed, "id"}]
    if with_truth and recipe.dataset.group_by in ("title", "group"):
        needed.add(recipe.dataset.group_by)
    found, lines = {}, []
    each = label_columns(recipe) if with_truth else []
    for name in each:
        if name not in table.columns:
            lines.append(f"no column named {name}, which dataset.columns.label lists as a label")
    for key in keys:
        names = each[:1] if each and key == "label" else columns.names(key)
        present = [name for name in names if name in table.columns]
        is_own = names != usual.names(key) and _concerns(key, recipe)
        fields = recipe.prompt.fields if key == "text" else ()
        if fields and {*names} != {*fields}:
            raise UserError(
                f"{table.source}: the prompt names {templates.listed(fields)}: set "
                f"dataset.columns.text: [{', '.join(fields)}]"
            )
        if key == "text" and is_own and (len(present) > 1 or recipe.prompt.fields):
            _check_fields(table, recipe, names)
        elif len(present) > 1 and is_own:
            raise UserError(
                f"{table.source}: dataset.columns.{key} lists names for one column, but the data "
                f"have {' and '.join(present)}: keep one of them"
            )
        if present:
            found[key] = present[0]
        elif key in needed or (is_own and with_truth):
            line = f"no column named {' or '.join(names)}: set dataset.columns.{key} to the column "
            line += f"with the {key}"
            if key == "context" and recipe.kind.head is None:
                line += ", or to null if the questions have no passage"
            lines.append(line)
    if lines:
        lines.append(f"the columns are: {', '.join(table.columns)}")
        raise UserError(f"{table.source}: missing column", *lines)
    return found


def _check_fields(table: Table, recipe: Recipe, names: Sequence[str]) -> None:
    """Raise UserError unless the data have all columns of a text, and the templates name them."""
    absent = [name for name in names if name not in table.columns]
    if absent:
        raise UserError(
            f"{table.source}: dataset.columns.text names {', '.join(names)}, but the data have no "
            f"column named {' or '.join(absent)}: name the columns of one text, all of which the data "
            f"have; the columns are: {', '.join(table.columns)}"
        )
    for key, usual in Prompt():
        value = getattr(recipe.prompt, key)
        is_of_texts = key in ("template", "zero_shot") and value != usual
        if is_of_texts and templates.names(value) == [templates.ONE_TEXT]:
            raise UserError(
                f"{table.source}: prompt.{key} has {{text}}, which stands for one column, but the "
                f"data have {len(names)} of dataset.columns.text: write {templates.listed(names)}"
            )


def label_columns(recipe: Recipe) -> list[str]:
    """Return the columns that are a label each; empty if one column holds the labels of a row."""
    names = recipe.dataset.columns.names("label")
    is_own = names != Columns().names("label")
    return names if recipe.kind.side == "label_sets" and is_own and len(names) > 1 else []


def _concerns(key: str, recipe: Recipe) -> bool:
    """Return whether the task would read a column that the data do not have."""
    others = {key for kind in TASKS.values() for key in kind.columns} - {*recipe.kind.columns}
    return key not in others and bool(recipe.dataset.columns.names(key))


class Cells:
    """The cells of a table by the recipe's names for columns. Reading one checks it."""

    def __init__(self, table: Table, recipe: Recipe, part: str, with_truth: bool = True) -> None:
        self.table = table
        self.columns = find_columns(table, recipe, with_truth)
        names, usual = recipe.dataset.columns.names("text"), Columns().names("text")
        is_several = len(names) > 1 and names != usual and {*names} <= {*table.columns}
        self.fields = tuple(names) if is_several else ()
        """The columns that make up a text, if there are several."""
        self.faults = Faults(table)
        self.part = part
        self._record: tuple[int, Mapping[str, object]] = (-1, {})
        self._ids = array("q")
        """The hashes of the ids that were read."""
        self.repeated: dict[int, str] = {}
        """By row: an answer without a start that occurs several times in its passage."""
        self.unquoted: dict[int, str] = {}
        """By row: an answer that is not in its passage, where it need not be."""

    def __len__(self) -> int:
        return len(self.table.records)

    def cell(self, row: int, key: str) -> object:
        """Return a cell as it is. It is None if there is no such column."""
        return self.record(row).get(self.columns[key]) if key in self.columns else None

    def record(self, row: int) -> Mapping[str, object]:
        """Return the cells of a row by the table's own names of columns."""
        if self._record[0] != row:
            self._record = row, self.table.records[row]
        return self._record[1]

    def text(self, row: int, key: str) -> str:
        """Return a cell that must hold text."""
        return self._text(row, key, self.cell(row, key))

    def field(self, row: int, column: str) -> str:
        """Return a cell of one of the columns that make up a text."""
        return self._text(row, column, self.record(row).get(column))

    def _text(self, row: int, key: str, value: object) -> str:
        if value is None or (isinstance(value, str) and not value.strip()):
            self.faults.add(row, f"empty {key}")
        elif not isinstance(value, str):
            self.faults.add(row, f"{key} is not text", value)
        else:
            return self._checked(row, key, value)
        return ""

    def name(self, row: int, key: str, needed: bool) -> str:
        """Return a cell that identifies: a word or a whole number. It is "" if there is none."""
        value = self.cell(row, key)
        if isinstance(value, float) and value.is_integer():  # a column of integers with a gap
            value = int(value)
        named = isinstance(value, int | str)
        text = str(value).strip() if named else ""
        if needed and not text:
            empty = named or value is None or value != value
            kind = f"empty {key}" if empty else f"{key} is neither text nor a whole number"
            self.faults.add(row, kind, None if empty else value)
        return self._checked(row, key, text)

    def _checked(self, row: int, key: str, text: str) -> str:
        if broken(text):
            self.faults.add(row, f"unpaired Unicode surrogate in the {key}", ascii(text))
        return text

    def id(self, row: int) -> str:
        """Return the row's id, or its part and number if there is no column of ids."""
        if "id" not in self.columns:
            numbers = self.table.numbers
            return f"{self.part}-{(row if numbers is None else numbers[row]) + 1}"
        text = self.name(row, "id", needed=True)
        self._ids.append(hash(text))
        return text

    def check_ids(self) -> None:
        """Record the rows whose id an earlier row has, after all were read."""
        import numpy

        if len(numpy.unique(numpy.array(self._ids))) == len(self._ids):
            return
        seen = set[str]()
        for row in range(len(self)):
            text = self.name(row, "id", needed=False)
            if text and text in seen:
                self.faults.add(row, "duplicate id", text)
            seen.add(text)

    def marked_impossible(self, row: int) -> object:
        """Return the source's mark of a question without an answer. None: there is no mark."""
        marks = self.table.impossible
        return self.record(row).get("is_impossible") if marks is None else marks[row]
