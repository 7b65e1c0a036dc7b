"""What batch prediction writes of an example: one row, as JSON or as the cells of a CSV file."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping

from llama_peft.inference.ask import Reply
from llama_peft.tasks import Task

Row = Mapping[str, object]

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _answer(reply: Reply) -> Row:
    return {"answer": reply.prediction, "no_answer_probability": reply.no_answer_probability}


def _span(reply: Reply) -> Row:
    """Return an answer with its place: `context[start:end]` is the answer."""
    end = None if reply.start is None else reply.start + len(str(reply.prediction))
    return {**_answer(reply), "start": reply.start, "end": end}


def _label(reply: Reply) -> Row:
    return {"label": reply.prediction, "probabilities": reply.probabilities}


def _labels(reply: Reply) -> Row:
    assert isinstance(reply.prediction, tuple), "this kind predicts sets of labels"
    return {"labels": list(reply.prediction), "probabilities": reply.probabilities}


def _number(reply: Reply) -> Row:
    return {"number": reply.prediction}


FIELDS: Mapping[Task, Callable[[Reply], Row]] = {
    "classification": _label,
    "multi_label_classification": _labels,
    "regression": _number,
    "extractive_qa": _span,
    "generative_qa": _answer,
}
"""What a reply is called in a row, for each kind of task."""


def as_json(row: Row) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_csv(row: Row) -> str:
    """Return the values of a row as one line of CSV. A value that is absent is an empty cell."""
    return _line([cell for _, cell in _cells(row)])


def header(row: Row) -> str:
    """Return the names of a row's columns as one line of CSV: `probabilities.positive`, ..."""
    return _line([name for name, _ in _cells(row)])


def _cells(row: Row) -> list[tuple[str, object]]:
    """Return the columns of a row. Named values in one value have a column each."""
    cells: list[tuple[str, object]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells += [(f"{name}.{inner}", each) for inner, each in value.items()]
        else:
            listed = isinstance(value, list | tuple)
            cells.append((name, json.dumps(value, ensure_ascii=False) if listed else value))
    return cells


def _line(cells: list[object]) -> str:
    text = io.StringIO()
    # With its own line end, the module also puts quotes around a carriage return in a cell.
    csv.writer(text, lineterminator="\r\n").writerow(
        harmless(cell) if isinstance(cell, str) else cell for cell in cells
    )
    return text.getvalue().removesuffix("\r\n") + "\n"


def harmless(cell: str) -> str:
    """Return a text that no spreadsheet runs as a formula.

    A spreadsheet takes a cell that begins with =, +, -, @, a tab or the end of a line for a
    formula, which may read other files and the network. Such a cell gets an apostrophe in front,
    unless it is a number. A cell that has both already gets one more, so `as_written` gives every
    text back. Source: OWASP, CSV injection.
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def as_written(cell: str) -> str:
    """Return the text that `harmless` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell, 1) else cell
