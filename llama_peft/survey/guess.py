"""What the columns of a table are: text and label, or question, passage and answer.

A column is taken by its name if that is one of the usual names, and else by what it holds. What rests
on less than a usual name is a guess, and says why.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from llama_peft.data import Table, label_key, literal
from llama_peft.errors import UserError
from llama_peft.recipe import Columns
from llama_peft.recipe.fields import is_number
from llama_peft.tasks import NamedTask

_MOST_LABELS = 200
_ROWS_A_LABEL = 3
"""The least rows of a label, in the mean, of a column that may hold labels."""
_ASKS = 0.6
"""The share of cells with a question mark at their end that makes a column one of questions."""
_QUOTES = 0.5
"""The share of answers that stand in a column of passages."""
_LONGEST_NAME = 40
"""Letters of the name of a label, or of a row."""
_SEPARATORS = ",;|"
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
)
"""Names of columns that are read together."""
_LABEL_NAMES = (
    "category", "target", "topic", "intent", "sentiment", "tag", "tags", "team", "type", "y",
    "rating", "score", "stars", "kategorie", "klasse", "thema",
)  # fmt: skip
_Cells = Mapping[str, Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What a table is taken for."""

    task: NamedTask
    columns: dict[str, str | list[str] | None]
    """By the recipe's key: the column, or None if there is none."""
    single_label: bool = True
    separator: str = ","
    """What separates the labels in a cell, if a row has any number of them."""
    doubts: dict[str, str] = field(default_factory=dict)
    """By the recipe's key: why the guess may be wrong."""


def guess(table: Table) -> Guess:
    """Return what a table is taken for. Raises UserError if no column can be what a task needs."""
    cells = {name: [row.get(name) for row in table.records] for name in table.columns}
    found = _questions(cells) or _texts(table, cells)
    if (own := _id(cells, found)) != "id":
        found.columns["id"] = own
    return found


def _named(cells: _Cells, key: str) -> str | None:
    return next((name for name in Columns().names(key) if name in cells), None)


def _words(cells: Sequence[object]) -> list[str]:
    """Return the cells that hold text."""
    return [cell for cell in cells if isinstance(cell, str) and cell.strip()]


def _length(cells: Sequence[object]) -> float:
    """Return the mean number of letters of a column of text; 0 for other columns."""
    words = _words(cells)
    is_text = words and not all(map(is_number, words))
    return fmean(map(len, words)) if is_text else 0.0


def _questions(cells: _Cells) -> Guess | None:
    """Return the guess for a table of questions; None if it is none."""
    doubts: dict[str, str] = {}
    question, answers = _named(cells, "question"), _named(cells, "answers")
    if question is None:
        question = next((name for name in cells if _asks(cells[name])), None)
        if question is None:
            return None
        doubts["question"] = "most of its cells end in a question mark"
    context, quoted = _passage(cells, question, answers)
    if answers is None and quoted is not None:
        answers = quoted
        doubts["answers"] = f"most of its cells stand in {context}"
    if answers is None:
        return None
    if context is None:
        doubts["context"] = "no column holds the answers, so the questions have no passage"
    elif context not in Columns().names("context"):
        doubts["context"] = f"most cells of {answers} stand in it"
    columns: dict[str, str | list[str] | None] = {"question": question, "context": context}
    columns["answers"] = answers
    if (start := _named(cells, "answer_start")) is not None:
        columns["answer_start"] = start
    return Guess(task="generative_qa", columns=columns, doubts=doubts)


def _asks(cells: Sequence[object]) -> bool:
    words = _words(cells)
    return bool(words) and sum(one.rstrip()[-1] in "?？" for one in words) > _ASKS * len(words)


def _passage(cells: _Cells, question: str, answers: str | None) -> tuple[str | None, str | None]:
    """Return the column of passages and the column whose cells stand in them, if there are such."""
    named = _named(cells, "context")
    if named is not None and answers is not None:
        return named, answers
    others = [name for name in cells if name != question]
    longest = sorted(others, key=lambda name: _length(cells[name]), reverse=True)
    for context in [named] if named else longest:
        for other in [answers] if answers else others:
            if other != context and _stands_in(cells[other], cells[context]):
                return context, other
    return named, None


def _stands_in(short: Sequence[object], long: Sequence[object]) -> bool:
    """Return whether most texts of one column are pieces of the text beside them."""
    pairs = [(str(one), text) for one, text in zip(short, long, strict=True) if one]
    pieces = [isinstance(text, str) and one in text and one != text for one, text in pairs]
    return sum(pieces) > _QUOTES * len(pieces)


def _texts(table: Table, cells: _Cells) -> Guess:
    """Return the guess for a table of texts with labels or numbers."""
    doubts: dict[str, str] = {}
    text = _text(cells, doubts)
    taken = {text} if isinstance(text, str) else {*text}
    others = {name: column for name, column in cells.items() if name not in taken}
    label, kind = _label(others)
    if label is None:
        raise UserError(
            f"{table.source}: no column holds what a text can be classified as: {', '.join(cells)}"
        )
    if label not in Columns().names("label"):
        doubts["label"] = "few values, each in many rows"
    if kind == "numbers":
        doubts["label"] = "numbers with many values, which the model learns as numbers"
    columns: dict[str, str | list[str] | None] = {"text": text, "label": label}
    return Guess(
        task="regression" if kind == "numbers" else "classification",
        columns=columns,
        single_label=kind in ("label", "numbers"),
        separator=kind if kind in _SEPARATORS else ",",
        doubts=doubts,
    )


def _text(cells: _Cells, doubts: dict[str, str]) -> str | list[str]:
    """Return the column of texts, or the two that are read together."""
    for pair in _PAIRS:
        if {*pair} <= {*cells}:
            return [*pair]
    named = _named(cells, "text")
    if named is not None:
        return named
    longest = sorted(cells, key=lambda name: _length(cells[name]), reverse=True)
    if not longest or not _length(cells[longest[0]]):
        raise UserError(f"no column holds text: {', '.join(cells)}")
    doubts["text"] = "the longest texts"
    return longest[0]


def _label(cells: _Cells) -> tuple[str | list[str] | None, str]:
    """Return the column of labels, and what it holds: label, numbers, lists, or a separator."""
    usual = [*Columns().names("label"), *_LABEL_NAMES]
    by_name = [name for name in cells if name.lower() in usual]
    marks = [name for name in cells if {*map(label_key, cells[name])} == {"0", "1"}]
    for name in dict.fromkeys([*by_name, *(() if len(marks) > 1 else reversed([*cells]))]):
        if kind := _kind(cells[name]):
            return name, kind
    if len(marks) > 1:
        return marks, "columns"
    numbers = [name for name in (*by_name, *reversed([*cells])) if _are_numbers(cells[name])]
    return (numbers[0], "numbers") if numbers else (None, "")


def _kind(cells: Sequence[object]) -> str:
    """Return how a column holds labels: label, lists, or the character between them; "" if not."""
    read = [literal(cell) if isinstance(cell, str) else cell for cell in cells]
    if any(isinstance(cell, list) for cell in read):
        each = [str(one) for cell in read if isinstance(cell, list) for one in cell]
        return "lists" if _repeats(each) else ""
    keys = [key for key in map(label_key, cells) if key]
    for separator in _SEPARATORS:
        split = {key: [part.strip() for part in key.split(separator)] for key in keys}
        parts = [part for own in split.values() for part in own]
        combines = len(split) < len(parts) > len({*parts})
        if combines and _repeats([part for key in keys for part in split[key]]):
            return separator
    return "label" if _repeats(keys) else ""


def _repeats(keys: Sequence[str]) -> bool:
    """Return whether there are few short names, each in several rows, as labels are."""
    distinct = {*keys}
    is_few = 2 <= len(distinct) <= min(_MOST_LABELS, max(2, len(keys) // _ROWS_A_LABEL))
    are_names = all(len(key) <= _LONGEST_NAME for key in distinct)
    return is_few and are_names and not any(is_number(key) and "." in key for key in distinct)


def _are_numbers(cells: Sequence[object]) -> bool:
    keys = [key for key in map(label_key, cells) if key]
    return len({*keys}) > 1 and all(map(is_number, keys)) and not _counts(keys)


def _counts(keys: Sequence[str]) -> bool:
    """Return whether numbers are those of rows: each stands once, without a fraction."""
    return len({*keys}) == len(keys) and not any("." in key for key in keys)


def _id(cells: _Cells, found: Guess) -> str | None:
    """Return the column that names rows: `id` if it has no fault, or the first one; None if `id` has
    faults.
    """
    first = next(iter(cells))
    if "id" in cells or first in map(str, found.columns.values()):
        return "id" if "id" not in cells or _names_rows(cells["id"]) else None
    return first if _names_rows(cells[first]) else "id"


def _names_rows(cells: Sequence[object]) -> bool:
    """Return whether each cell is another short name without a space."""
    names = [str(cell).strip() for cell in cells if isinstance(cell, str | int)]
    is_short = all(name and len(name) <= _LONGEST_NAME and " " not in name for name in names)
    return is_short and len({*names}) == len(cells) > 1


def label_counts(table: Table, found: Guess) -> Counter[str]:
    """Return how many rows have each label, the most frequent first."""
    label, rows = found.columns["label"], table.records
    if isinstance(label, list):
        marked = (name for row in rows for name in label if label_key(row.get(name)) == "1")
        return Counter(marked)
    assert label is not None, "a text has a label"
    cells = [row.get(label) for row in rows]
    each = [[cell] if found.single_label else _listed(cell, found.separator) for cell in cells]
    return Counter(key for own in each for one in own if (key := label_key(one)))


def _listed(cell: object, separator: str) -> Sequence[object]:
    value = literal(cell) if isinstance(cell, str) else cell
    return value if isinstance(value, list) else str(value or "").split(separator)
