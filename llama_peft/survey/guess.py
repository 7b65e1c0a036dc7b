"""What the columns of a table are: text and label, or question, passage and answer.

A column is taken by its name if that is one of the usual names, and else by what it holds. What rests
on less than a usual name is a guess, and says why.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from llama_peft.data import Table, label_key
from llama_peft.data.labels import chosen, has_thousands, is_spaced, number_key, only, several
from llama_peft.errors import UserError
from llama_peft.recipe import Columns
from llama_peft.recipe.fields import is_number
from llama_peft.tasks import NamedTask

_CHATS = "write what the user says and what the answer is into two columns, or the label into one"
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
_NUMBERS = {"numbers": ".", "numbers with decimal commas": ","}
"""What stands before the fraction, by what a column of numbers is called here."""
_OR_LABELS = "if commas separate labels, set task: classification and single_label: false"
_OR_NUMBERS = "if these are numbers with decimal commas, set task: regression and decimal: ','"
"""The other reading of a column that can be read as both."""
_GROUP = 3
"""Digits between the separators of thousands."""
_ALSO = 3
"""Other columns with labels that are named."""
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
)
"""Names of columns that are read together."""
_LABEL_NAMES = (
    "category", "target", "topic", "intent", "sentiment", "tag", "tags", "team", "type", "y",
    "rating", "score", "stars", "overall", "bewertung", "kategorie", "klasse", "thema",
)  # fmt: skip
_SELDOM = re.compile(r"(?:[^A-Za-z]|^)(?:id|ID)$|[a-z]I[Dd]$|suggestion|predict")
"""Names of columns that tell rows, people or things apart, or hold what a model has said: they are
seldom the label.
"""
_OBJECTS = {
    ("data", "annotations"): "this looks like Label Studio's JSON: export JSON-MIN or CSV instead",
    (
        "fields",
        "responses",
    ): "this looks like Argilla's records: save records.to_datasets() instead",
    ("messages",): _CHATS,
    ("conversations",): _CHATS,
}
"""What to do about files whose cells hold objects, by the columns that they have."""
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
    decimal: str = "."
    """What stands before the fraction of a number."""
    doubts: dict[str, str] = field(default_factory=dict)
    """By the recipe's key: why the guess may be wrong."""


def guess(table: Table) -> Guess:
    """Return what a table is taken for. Raises UserError if no column can be what a task needs."""
    if not table.records:
        raise UserError(f"{table.source}: contains no rows")
    cells = {name: [row.get(name) for row in table.records] for name in table.columns}
    found = _questions(cells) or _texts(table, cells)
    _check_header(table.source, cells, found)
    if (own := _id(cells, found)) != "id":
        found.columns["id"] = own
    return found


def _check_header(source: str, cells: _Cells, found: Guess) -> None:
    """Raise UserError if the names of the columns are a row: a sentence, and one of the labels."""
    text, label = found.columns.get("text"), found.columns.get("label")
    if not isinstance(text, str) or not isinstance(label, str) or len(text.split()) < 4:
        return
    if label_key(label) in {*map(label_key, cells[label])}:
        raise UserError(
            f"{source}: the first line seems to be a row ({label}, {text}): write a line above it "
            "with the names of the columns, such as label,text"
        )


def _named(cells: _Cells, key: str) -> str | None:
    """Return the column with a usual name, in letters of any size."""
    own = {name.lower(): name for name in reversed([*cells])} | {name: name for name in cells}
    return next((own[name] for name in Columns().names(key) if name in own), None)


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
        doubts["context"] = "no text has the answers in it, so the questions have no passage"
    elif context.lower() not in Columns().names("context"):
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
    text = _text(table.source, cells, doubts)
    taken = {text} if isinstance(text, str) else {*text}
    others = {name: column for name, column in cells.items() if name not in taken}
    label, kind, also = _label(others, table.delimiter)
    if label is None:
        held = "; ".join(f"{name}: {_held(column)}" for name, column in others.items())
        raise UserError(
            f"{table.source}: no column holds what a text can be classified as"
            + (f" ({_advice(cells) or held})" if held else f", only {text}")
        )
    if str(label).lower() not in Columns().names("label"):
        doubts["label"] = "few values, each in many rows"
        if also:
            doubts["label"] += f"; also possible: {', '.join(also[:_ALSO])}"
    if kind in _NUMBERS:
        doubts["label"] = "numbers with many values, which the model learns as numbers"
        if kind != "numbers":
            doubts["label"] += f"; {_OR_LABELS}"
    if kind in _SEPARATORS:
        doubts["label"] = f"labels with {kind!r} between them, any number in a row"
        if kind == "," and _are_decimals(_keys(cells[str(label)])):
            doubts["label"] += f"; {_OR_NUMBERS}"
    return Guess(
        task="regression" if kind in _NUMBERS else "classification",
        columns={"text": text, "label": label},
        single_label=kind == "label" or kind in _NUMBERS,
        separator=kind if kind in _SEPARATORS else ",",
        decimal=_NUMBERS.get(kind, "."),
        doubts=doubts,
    )


def _advice(cells: _Cells) -> str:
    """Return what to do about cells that hold objects; "" if nothing is known of such a file."""
    return next((advice for names, advice in _OBJECTS.items() if {*names} <= {*cells}), "")


def _held(cells: Sequence[object]) -> str:
    """Return what a column holds that cannot be labels."""
    keys = _keys(cells)
    if not keys:
        objects = any(isinstance(cell, dict | list) or is_spaced(cell) for cell in cells)
        return "lists or objects" if objects else "no values"
    distinct = len({*keys})
    if distinct == 1:
        return f"always {keys[0]:.40}"
    held = f"{distinct:,} values in {len(keys):,} rows"
    is_grouped = any(map(has_thousands, keys)) and not any(re.search("[^-+0-9.,]", k) for k in keys)
    if is_grouped:
        held += "; if these are numbers, remove the thousands separators"
    return held


def _keys(cells: Sequence[object]) -> list[str]:
    """Return the name in each cell that has one; of a list of one, that in it."""
    own = (only(cell) for cell in cells if not is_spaced(cell))
    return [key for key in map(label_key, own) if key]


def _text(source: str, cells: _Cells, doubts: dict[str, str]) -> str | list[str]:
    """Return the column of texts, or the two that are read together."""
    for pair in _PAIRS:
        if {*pair} <= {*cells}:
            return [*pair]
    named = _named(cells, "text")
    if named is not None:
        return named
    longest = sorted(cells, key=lambda name: _length(cells[name]), reverse=True)
    if not longest or not _length(cells[longest[0]]):
        listed = _advice(cells) or ", ".join(cells)
        raise UserError(f"{source}: no column holds text ({listed})")
    doubts["text"] = "the longest texts"
    return longest[0]


def _label(cells: _Cells, delimiter: str) -> tuple[str | list[str] | None, str, list[str]]:
    """Return the column of labels, what it holds, and the other columns that could be it.

    It holds a label, lists, labels with a separator between them, or numbers.
    """
    usual = [*Columns().names("label"), *_LABEL_NAMES]
    may = [name for name in cells if not _asks(cells[name])]
    by_name = sorted((name for name in may if _subject(name) in usual), key=_is_seldom)
    marks = [name for name in may if {*map(label_key, cells[name])} == {"0", "1"}]
    last = [*reversed(may)]
    last.sort(key=_is_seldom)
    order = dict.fromkeys([*by_name, *(() if len(marks) > 1 else last)])
    kinds = {name: _kind(cells[name], name in by_name, delimiter) for name in order}
    found = [name for name, kind in kinds.items() if kind]
    if found:
        return found[0], kinds[found[0]], found[1:]
    if len(marks) > 1:
        return marks, "columns", []
    for name in (*by_name, *last):
        for kind, decimal in _NUMBERS.items():
            if _are_numbers(cells[name], decimal):
                return name, kind, []
    return None, "", []


def _is_seldom(name: str) -> bool:
    return _SELDOM.search(name) is not None


def _subject(name: str) -> str:
    """Return what a name is about: `label` for label_id, label.responses and Label."""
    return re.split(r"\.|_id$", name)[0].lower()


def _kind(cells: Sequence[object], is_named: bool, delimiter: str) -> str:
    """Return how a column holds labels: label, lists, or the character between them; "" if not.

    is_named: the name of the column says that it holds labels. delimiter: what separates cells; where
    it is a comma, a column with commas is more likely one of several labels than of decimal commas.
    """
    if any(_is_set(cell) for cell in cells):
        each = [label_key(one) for cell in cells for one in several(cell, ",") or ()]
        return "lists" if all(each) and _repeats(each, is_named) else ""
    keys = _keys(cells)
    is_decimal = _are_decimals(keys)
    if is_decimal and delimiter in (";", "\t"):
        return ""
    for separator in _SEPARATORS:
        if separator == "," and _are_grouped(keys):
            continue
        split = {key: [part.strip() for part in key.split(separator)] for key in keys}
        parts = [part for own in split.values() for part in own]
        combines = len(split) < len(parts) > len({*parts})
        if combines and _repeats([part for key in keys for part in split[key]], is_named):
            return separator
    return "label" if not is_decimal and _repeats(keys, is_named) else ""


def _is_set(cell: object) -> bool:
    """Return whether a cell writes a list of several labels."""
    found = chosen(cell)
    return isinstance(found, list | tuple) and len(found) > 1


def _repeats(keys: Sequence[str], is_named: bool) -> bool:
    """Return whether there are few short names, each in several rows, as labels are."""
    distinct = {*keys}
    most = len(keys) if is_named else _MOST_LABELS
    is_few = 2 <= len(distinct) <= min(most, max(2, len(keys) // _ROWS_A_LABEL))
    are_names = all(len(key) <= _LONGEST_NAME for key in distinct)
    return is_few and are_names and not any(is_number(key) and "." in key for key in distinct)


def _are_numbers(cells: Sequence[object], decimal: str) -> bool:
    filled = [cell for cell in cells if label_key(cell)]
    keys = [number_key(cell, decimal) for cell in filled]
    commas = [cell for cell in filled if isinstance(cell, str) and "," in cell]
    if decimal == "," and commas and all(map(has_thousands, commas)):
        return False  # 1,200 is more often 1200 than 1.2
    return len({*keys}) > 1 and all(keys) and not _counts(keys)


def _are_decimals(keys: Sequence[str]) -> bool:
    """Return whether a column can be numbers with decimal commas."""
    return any("," in key for key in keys) and _are_numbers(keys, ",")


def _are_grouped(keys: Sequence[str]) -> bool:
    """Return whether a column holds numbers whose commas separate thousands, and not codes of three
    digits: some number is shorter.
    """
    commas = [key for key in keys if "," in key]
    is_shorter = any(len(key.lstrip("-").partition(",")[0]) < _GROUP for key in keys)
    return bool(commas) and all(map(has_thousands, commas)) and is_shorter


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
    names = dict(enumerate(table.class_names.get(label, ())))
    cells = [cell for row in rows if not is_spaced(cell := row.get(label))]
    each = [[only(one)] if found.single_label else several(one, found.separator) for one in cells]
    labels = (one for own in each for one in own or ())
    named = (names.get(one, one) if isinstance(one, int) else one for one in labels)
    return Counter(key for one in named if (key := label_key(one)))
