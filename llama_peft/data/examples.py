"""Turns the rows of a table into examples, or raises one message with everything that is wrong."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llama_peft.data.answers import Answer, read_answers
from llama_peft.data.cells import Cells, short
from llama_peft.data.formats import Table
from llama_peft.data.labels import LabelReader
from llama_peft.recipe import Recipe
from llama_peft.recipe.templates import ONE_TEXT, filled, lines


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

    @property
    def values(self) -> dict[str, str]:
        """What stands in place of each name in a template."""
        return {ONE_TEXT: self.text}


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldsExample(TextExample):
    """A text of several fields, such as premise and hypothesis. `text` has a line for each."""

    fields: tuple[tuple[str, str], ...]
    """The name and the text of each field."""

    @property
    def values(self) -> dict[str, str]:
        """What stands in place of each name in a template."""
        return dict(self.fields)

    @classmethod
    def of(
        cls, values: Mapping[str, str], *, id: str, label: int, group: str = ""
    ) -> "FieldsExample":
        """Return the example with these texts by the names of their fields."""
        text = filled(lines(list(values)), values)
        return cls(id=id, text=text, label=label, group=group, fields=tuple(values.items()))


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
log = logging.getLogger(__name__)


def to_examples(table: Table, recipe: Recipe, part: str, labels: Sequence[str]) -> list[Example]:
    """Return every row as an example. Raises UserError with everything that is wrong."""
    cells = Cells(table, recipe, part)
    examples = list(_read(cells, recipe, labels))
    cells.faults.check()
    if cells.repeated and recipe.kind.finds_spans:
        _tell_repeated(cells)
    return examples


def without_bad_rows(table: Table, recipe: Recipe, part: str, labels: Sequence[str]) -> Table:
    """Return the table without the rows that cannot be used, if the recipe drops them."""
    if recipe.dataset.on_bad_rows == "refuse":
        return table
    cells = Cells(table, recipe, part)
    for _ in _read(cells, recipe, labels):
        pass  # reading a row records its faults
    return cells.faults.drop()


def _read(cells: Cells, recipe: Recipe, labels: Sequence[str]) -> Iterator[Example]:
    if recipe.kind.has_labels:
        return _texts(cells, labels, recipe)
    no_answer = recipe.prompt.no_answer if recipe.kind.head is None else None
    return _questions(cells, recipe.dataset.group_by, no_answer)


def _texts(cells: Cells, labels: Sequence[str], recipe: Recipe) -> Iterator[TextExample]:
    reader = LabelReader(cells, labels, recipe)
    for row in range(len(cells)):
        label, id_ = reader.read(row), cells.id(row)
        values = {name: cells.field(row, name) for name in cells.fields}
        text = "" if values else cells.text(row, "text")
        group = cells.name(row, "group", needed=recipe.dataset.group_by == "group")
        if values:
            yield FieldsExample.of(values, id=id_, label=label, group=group)
        else:
            yield TextExample(id=id_, text=text, label=label, group=group)


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


def _tell_repeated(cells: Cells) -> None:
    row, text = next(iter(cells.repeated.items()))
    log.info(
        "%s: %d of %d questions have an answer that occurs several times in its passage, and no "
        "start: the first place is taken (first: %s: %s); a column with the starts "
        "(dataset.columns.answer_start) would say which place is meant",
        *(cells.table.source, len(cells.repeated), len(cells), cells.table.place(row), short(text)),
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
