"""The cells of a table by the recipe's names for columns, and what is wrong with them.

Nothing is repaired and nothing is dropped. A row that cannot be used stops the run before it costs
anything. All bad rows are counted, and the first three of each kind are shown.
"""

import ast
import json
import re
from contextlib import suppress

from llama_peft.data.formats import Table
from llama_peft.errors import UserError
from llama_peft.recipe import Columns, Recipe
from llama_peft.tasks import TASKS

_SURROGATE = re.compile("[\ud800-\udfff]")


_SHOWN = 3
"""Rows of a kind of fault that are shown."""
_NUMBERED = ": make the ids unique, or set dataset.columns.id: null to number the rows"
_ADVICE = {"empty id": _NUMBERED, "duplicate id": _NUMBERED}


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
            if detail is not None and len(rows) <= _SHOWN:
                self.details[kind, row] = f": {short(detail)}"

    def check(self) -> None:
        """Raise UserError if any row is bad."""
        if not self.kinds:
            return
        bad = len({row for rows in self.kinds.values() for row in rows})
        lines = [f"{self.table.source}: {bad} of {len(self.table.records)} rows are wrong"]
        for kind, rows in self.kinds.items():
            count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
            first = [
                f"{self.table.place(row)}{self.details.get((kind, row), '')}"
                for row in rows[:_SHOWN]
            ]
            lines.append(f"{count}: {kind} (first: {'; '.join(first)}){_ADVICE.get(kind, '')}")
        raise UserError(*lines)


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


def find_columns(table: Table, recipe: Recipe) -> dict[str, str]:
    """Return the table's name of each column that the recipe knows and the table has.

    Raises UserError if a needed column is missing.
    """
    if not table.records:
        raise UserError(f"{table.source}: contains no rows")
    columns, usual = recipe.dataset.columns, Columns()
    needed = {*recipe.kind.columns}
    if recipe.dataset.group_by in ("title", "group"):
        needed.add(recipe.dataset.group_by)
    found, lines = {}, []
    each = label_columns(recipe)
    for name in each:
        if name not in table.columns:
            lines.append(f"no column named {name}, which dataset.columns.label lists as a label")
    for key in Columns.model_fields:
        names = each[:1] if each and key == "label" else columns.names(key)
        present = [name for name in names if name in table.columns]
        is_own = names != usual.names(key) and _concerns(key, recipe)
        if len(present) > 1 and is_own:
            raise UserError(
                f"{table.source}: dataset.columns.{key} lists names for one column, but the data "
                f"have {' and '.join(present)}: keep one of them"
            )
        if present:
            found[key] = present[0]
        elif key in needed or is_own:
            looked = f"no column named {' or '.join(names)}"
            lines.append(f"{looked}: set dataset.columns.{key} to the column with the {key}")
    if lines:
        lines.append(f"the columns are: {', '.join(table.columns)}")
        raise UserError(f"{table.source}: missing column", *lines)
    return found


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

    def __init__(self, table: Table, recipe: Recipe, part: str) -> None:
        self.table = table
        self.columns = find_columns(table, recipe)
        self.faults = Faults(table)
        self.part = part
        self.ids: set[str] = set()
        self.repeated: dict[int, str] = {}
        """By row: an answer without a start that occurs several times in its passage."""

    def __len__(self) -> int:
        return len(self.table.records)

    def cell(self, row: int, key: str) -> object:
        """Return a cell as it is. It is None if there is no such column."""
        return self.table.records[row].get(self.columns[key]) if key in self.columns else None

    def text(self, row: int, key: str) -> str:
        """Return a cell that must hold text."""
        value = self.cell(row, key)
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
            return f"{self.part}-{row + 1}"
        text = self.name(row, "id", needed=True)
        if text and text in self.ids:
            self.faults.add(row, "duplicate id", text)
        self.ids.add(text)
        return text

    def marked_impossible(self, row: int) -> object:
        """Return the source's mark of a question without an answer. None: there is no mark."""
        marks = self.table.impossible
        return self.table.records[row].get("is_impossible") if marks is None else marks[row]
