"""Rows of any source become examples, or one message says everything that is wrong with them.

Nothing is repaired and nothing is dropped: a row that cannot be used stops the run before it costs
anything, with all bad rows counted and the first of each kind shown.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llama_peft.data.sources import Table
from llama_peft.errors import UserError
from llama_peft.recipe import Columns, Recipe
from llama_peft.tasks import TASKS


class Answer(NamedTuple):
    """A right answer and where it starts in the context, in characters."""

    text: str
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextExample:
    """A text and the number of its label; rows of one group stay in one part."""

    id: str
    text: str
    label: int
    group: str = ""

    @property
    def asked(self) -> tuple[str, ...]:
        """What a model is asked, without the truth."""
        return (self.text,)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionExample:
    """A question on a passage; no answers means that the passage does not answer it."""

    id: str
    context: str
    question: str
    answers: tuple[Answer, ...]
    title: str = ""
    group: str = ""

    @property
    def asked(self) -> tuple[str, ...]:
        """What a model is asked, without the truth."""
        return (self.question, self.context)


Example = TextExample | QuestionExample

NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})")


class Faults:
    """Bad rows, counted by kind, each kind with its first row."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.kinds: dict[str, list[int]] = {}
        self.details: dict[str, str] = {}

    def add(self, row: int, kind: str, detail: object = None) -> None:
        rows = self.kinds.setdefault(kind, [])
        if not rows and detail is not None:
            self.details[kind] = f": {_short(detail)}"
        if rows[-1:] != [row]:  # two bad answers are one bad row
            rows.append(row)

    def check(self) -> None:
        """Raise if there was any."""
        if not self.kinds:
            return
        bad = len({row for rows in self.kinds.values() for row in rows})
        lines = [f"{self.table.source}: {bad} of {len(self.table.records)} rows are wrong"]
        for kind, rows in self.kinds.items():
            count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
            first = f"first: {self.table.place(rows[0])}{self.details.get(kind, '')}"
            lines.append(f"{count}: {kind} ({first})")
        raise UserError("\n  ".join(lines))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def find_columns(table: Table, recipe: Recipe) -> dict[str, str]:
    """The table's name of each column that the recipe speaks of and the table has."""
    if not table.records:
        raise UserError(f"{table.source}: holds no rows")
    columns, usual = recipe.dataset.columns, Columns()
    needed = {*recipe.kind.columns}
    if recipe.dataset.group_by in ("title", "group"):
        needed.add(recipe.dataset.group_by)
    found, lines = {}, []
    for key in Columns.model_fields:
        names = columns.names(key)
        present = next((name for name in names if name in table.columns), None)
        if present is not None:
            found[key] = present
        elif key in needed or (names != usual.names(key) and _concerns(key, recipe)):
            looked = f"no column named {' or '.join(names)}"
            lines.append(f"{looked}: set dataset.columns.{key} to the one with the {key}")
    if lines:
        lines.append(f"the columns are: {', '.join(table.columns)}")
        raise UserError("\n  ".join([f"{table.source}: missing column", *lines]))
    return found


def _concerns(key: str, recipe: Recipe) -> bool:
    """Whether a column that the recipe names, but the data lack, would have been read."""
    others = {key for kind in TASKS.values() for key in kind.columns} - {*recipe.kind.columns}
    return key not in others and bool(recipe.dataset.columns.names(key))


def label_names(table: Table, recipe: Recipe) -> tuple[str, ...]:
    """The names of labels 0, 1, ...: the recipe's, the Hub's, or those that stand in the data.

    Numbers that count from 0 may leave one out; others (ratings from 1 to 5) are names like any other, so that no class
    stands in the scores that is in no row.
    """
    if not recipe.kind.has_labels:
        return ()
    if recipe.dataset.labels is not None:
        return tuple(recipe.dataset.labels)
    if table.label_names:
        return table.label_names
    column = find_columns(table, recipe)["label"]
    values = {_label_text(record.get(column)) for record in table.records} - {""}
    if all(NUMBER.fullmatch(value) for value in values):
        if "0" not in values:
            return tuple(sorted(values, key=int))
        # More classes than rows: the column holds something else, and the names would fill memory.
        return tuple(map(str, range(min(max(map(int, values)) + 1, len(table.records)))))
    return tuple(sorted(values))


def _label_text(value: object) -> str:
    """A label as a word: 1, 1.0 and "1" are one label, true is "true"; "" is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, int | str) else ""


def to_examples(
    table: Table, recipe: Recipe, part: str, labels: Sequence[str]
) -> Sequence[Example]:
    """Every row as an example; raises UserError with all that is wrong."""
    columns = find_columns(table, recipe)
    faults = Faults(table)
    rows = _Rows(table, columns, faults, part)
    if recipe.kind.has_labels:
        examples: list[Example] = list(_texts(rows, labels, recipe.dataset.group_by == "group"))
    else:
        no_answer = recipe.prompt.no_answer if recipe.kind.head is None else None
        examples = list(_questions(rows, recipe.dataset.group_by, no_answer))
    faults.check()
    return examples


class _Rows:
    """The cells of a table by the recipe's column names, with their checks."""

    def __init__(self, table: Table, columns: dict[str, str], faults: Faults, part: str) -> None:
        self.table = table
        self.columns = columns
        self.faults = faults
        self.part = part
        self.ids: set[str] = set()

    def __len__(self) -> int:
        return len(self.table.records)

    def cell(self, row: int, key: str) -> Any:
        return self.table.records[row].get(self.columns[key]) if key in self.columns else None

    def text(self, row: int, key: str) -> str:
        value = self.cell(row, key)
        if value is None or (isinstance(value, str) and not value.strip()):
            self.faults.add(row, f"empty {key}")
        elif not isinstance(value, str):
            self.faults.add(row, f"{key} is not text", value)
        else:
            return self._whole(row, key, value)
        return ""

    def name(self, row: int, key: str, needed: bool) -> str:
        """What rows are told apart by: a word or a number; "" where there is none."""
        value = self.cell(row, key)
        if isinstance(value, float) and value.is_integer():  # whole numbers with a gap among them
            value = int(value)
        named = isinstance(value, int | str)
        text = str(value).strip() if named else ""
        if needed and not text:
            none = named or value is None or value != value
            kind = f"empty {key}" if none else f"{key} is neither text nor a whole number"
            self.faults.add(row, kind, None if none else value)
        return self._whole(row, key, text)

    def _whole(self, row: int, key: str, text: str) -> str:
        if broken(text):
            self.faults.add(row, f"half a character (a surrogate) in the {key}", ascii(text))
        return text

    def id(self, row: int) -> str:
        if "id" not in self.columns:
            return f"{self.part}-{row + 1}"
        text = self.name(row, "id", needed=True)
        if text and text in self.ids:
            self.faults.add(row, "duplicate id", text)
        self.ids.add(text)
        return text


def broken(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no file and no tokenizer takes."""
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def _texts(rows: _Rows, labels: Sequence[str], grouped: bool) -> Iterator[TextExample]:
    numbers = {name: index for index, name in enumerate(labels)}
    # Where names are numbers of their own, 1 is the label named 1 and never the second one.
    counted = list(labels) == [*map(str, range(len(labels)))]
    counted = counted or not any(map(NUMBER.fullmatch, labels))
    listed = f"{', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
    for row in range(len(rows)):
        raw = rows.cell(row, "label")
        name = _label_text(raw)
        if broken(name):
            rows.faults.add(row, "half a character (a surrogate) in the label", ascii(name))
        number = numbers.get(name)
        if number is None and counted and NUMBER.fullmatch(name) and 0 <= int(name) < len(labels):
            number = int(name)
        if number is None and (raw is None or name == "" == str(raw).strip()):
            rows.faults.add(row, "empty label")
        elif number is None and counted and NUMBER.fullmatch(name):
            rows.faults.add(row, f"label out of range 0 to {len(labels) - 1}", raw)
        elif number is None:
            rows.faults.add(row, f"label not among {listed}", raw)
        yield TextExample(
            id=rows.id(row),
            text=rows.text(row, "text"),
            label=number or 0,
            group=rows.name(row, "group", needed=grouped),
        )


def _questions(
    rows: _Rows, group_by: str | None, no_answer: str | None
) -> Iterator[QuestionExample]:
    forbidden = None if no_answer is None else _bare(no_answer)
    for row in range(len(rows)):
        context = rows.text(row, "context")
        answers = tuple(_answers(rows, row, context))
        if any(_bare(answer.text) == forbidden for answer in answers):
            rows.faults.add(row, f"a right answer reads like prompt.no_answer ({no_answer})")
        yield QuestionExample(
            id=rows.id(row),
            context=context,
            question=rows.text(row, "question"),
            answers=answers,
            title=rows.name(row, "title", needed=group_by == "title"),
            group=rows.name(row, "group", needed=group_by == "group"),
        )


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _answers(rows: _Rows, row: int, context: str) -> Iterator[Answer]:
    """The right answers of a row, each checked against the context."""
    raw = rows.cell(row, "answers")
    # What looks like JSON may be what the passage says, as in "returns [] when empty".
    pairs = (
        [(raw, None)]
        if isinstance(raw, str) and raw.strip() and raw in context
        else _answer_pairs(raw)
    )
    if pairs is None:
        rows.faults.add(row, "answers in no known form", raw)
        return
    marks = rows.table.impossible
    impossible = rows.table.records[row].get("is_impossible") if marks is None else marks[row]
    if impossible is True and pairs:
        rows.faults.add(row, "is_impossible is true, but there are answers")
    if impossible is False and not pairs:
        rows.faults.add(row, "no answer, but is_impossible is not true")
    for text, start in pairs:
        if not text.strip():
            rows.faults.add(row, "an answer is empty")
        elif broken(text):
            rows.faults.add(row, "half a character (a surrogate) in an answer", ascii(text))
        elif start is None and text not in context:
            rows.faults.add(row, "an answer is not in its context", text)
        elif start is None:
            yield Answer(text, context.find(text))
        elif start < 0 or not context.startswith(text, start):
            rows.faults.add(row, "an answer is not at its offset", {"text": text, "start": start})
        else:
            yield Answer(text, start)


def _answer_pairs(raw: Any) -> list[tuple[str, int | None]] | None:
    """Texts and starts (None: to be found) in any usual form; None where it is none of them."""
    if isinstance(raw, str) and raw.lstrip().startswith(("{", "[")):
        raw = _json_or_text(raw)
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return []
    if isinstance(raw, str):
        return [(raw, None)]
    if isinstance(raw, dict):
        texts, starts = raw.get("text"), raw.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], None if starts is None else [starts]
        if not isinstance(texts, list) or not isinstance(starts, list | None):
            return None
        starts = [None] * len(texts) if starts is None else starts
        return (
            _checked_pairs(zip(texts, starts, strict=True)) if len(texts) == len(starts) else None
        )
    if not isinstance(raw, list):
        return None
    if all(isinstance(item, dict) for item in raw):
        return _checked_pairs((item.get("text"), item.get("answer_start")) for item in raw)
    return _checked_pairs((item, None) for item in raw)


def _checked_pairs(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[str, int | None]] | None:
    result = []
    for text, start in pairs:
        whole = start is None or (isinstance(start, int) and not isinstance(start, bool))
        if not isinstance(text, str) or not whole:
            return None
        result.append((text, start))
    return result


def _json_or_text(raw: str) -> Any:
    """A cell that looks like JSON may still be a plain answer, as "[sic]"."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw
