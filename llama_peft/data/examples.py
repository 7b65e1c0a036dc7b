"""Turns the rows of a table into examples, or raises one message with everything that is wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llama_peft.data.answers import Answer, read_answers
from llama_peft.data.cells import Cells, broken, find_columns
from llama_peft.data.formats import Table
from llama_peft.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class TextExample:
    """A text and the number of its label. Rows of one group stay in one part."""

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
    """A question on a passage. No answers means that the passage does not answer it."""

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


def label_names(table: Table, recipe: Recipe) -> tuple[str, ...]:
    """Return the names of labels 0, 1, ...: the recipe's, the Hub's, or those in the data.

    Numbers that start at 0 may leave one out. Other numbers (ratings from 1 to 5) are names, so
    that the scores contain no class without a row.
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
        # With more classes than rows, the column is not one of labels, and names would fill memory.
        return tuple(map(str, range(min(max(map(int, values)) + 1, len(table.records)))))
    return tuple(sorted(values))


def _label_text(value: object) -> str:
    """Return a label as a word: 1, 1.0 and "1" are "1", True is "true", and "" means no label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, int | str) else ""


def to_examples(table: Table, recipe: Recipe, part: str, labels: Sequence[str]) -> list[Example]:
    """Return every row as an example. Raises UserError with everything that is wrong."""
    cells = Cells(table, recipe, part)
    if recipe.kind.has_labels:
        examples: list[Example] = [*_texts(cells, labels, recipe.dataset.group_by == "group")]
    else:
        no_answer = recipe.prompt.no_answer if recipe.kind.head is None else None
        examples = [*_questions(cells, recipe.dataset.group_by, no_answer)]
    cells.faults.check()
    return examples


def _texts(cells: Cells, labels: Sequence[str], grouped: bool) -> Iterator[TextExample]:
    numbers = {name: number for number, name in enumerate(labels)}
    # If some names are numbers, 1 is the label with the name 1 and never the second label.
    counted = list(labels) == [*map(str, range(len(labels)))]
    counted = counted or not any(map(NUMBER.fullmatch, labels))
    for row in range(len(cells)):
        yield TextExample(
            label=_label(cells, row, numbers, counted),
            id=cells.id(row),
            text=cells.text(row, "text"),
            group=cells.name(row, "group", needed=grouped),
        )


def _label(cells: Cells, row: int, numbers: Mapping[str, int], counted: bool) -> int:
    """Return the number of a row's label. It is 0 if the cell is wrong.

    counted: whether a cell may also hold the number of a label instead of its name.
    """
    raw = cells.cell(row, "label")
    name = _label_text(raw)
    is_number = counted and NUMBER.fullmatch(name) is not None
    if broken(name):
        cells.faults.add(row, "unpaired Unicode surrogate in the label", ascii(name))
    elif name in numbers:
        return numbers[name]
    elif is_number and 0 <= int(name) < len(numbers):
        return int(name)
    elif raw is None or name == "" == str(raw).strip():
        cells.faults.add(row, "empty label")
    elif is_number:
        cells.faults.add(row, f"label out of range 0 to {len(numbers) - 1}", raw)
    else:
        names = [*numbers]
        listed = f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        cells.faults.add(row, f"label is not one of {listed}", raw)
    return 0


def _questions(
    cells: Cells, group_by: str | None, no_answer: str | None
) -> Iterator[QuestionExample]:
    forbidden = None if no_answer is None else _words(no_answer)
    for row in range(len(cells)):
        context = cells.text(row, "context")
        answers = tuple(read_answers(cells, row, context))
        if any(_words(answer.text) == forbidden for answer in answers):
            cells.faults.add(
                row, f"a right answer reads the same as prompt.no_answer ({no_answer})"
            )
        yield QuestionExample(
            id=cells.id(row),
            context=context,
            question=cells.text(row, "question"),
            answers=answers,
            title=cells.name(row, "title", needed=group_by == "title"),
            group=cells.name(row, "group", needed=group_by == "group"),
        )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
