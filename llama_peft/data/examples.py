"""Turns the rows of a table into examples, or raises one message with everything that is wrong."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama_peft.data.answers import Answer, read_answers
from llama_peft.data.cells import Cells, short
from llama_peft.data.formats import Table
from llama_peft.data.labels import Label, label_reader
from llama_peft.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class TextExample:
    """A text and its truth. Rows of one group stay in one part."""

    id: str
    text: str
    label: Label
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
log = logging.getLogger(__name__)


def to_examples(table: Table, recipe: Recipe, part: str, labels: Sequence[str]) -> list[Example]:
    """Return every row as an example. Raises UserError with everything that is wrong."""
    cells = Cells(table, recipe, part)
    if recipe.kind.has_labels:
        examples: list[Example] = [*_texts(cells, labels, recipe)]
    else:
        no_answer = recipe.prompt.no_answer if recipe.kind.head is None else None
        examples = [*_questions(cells, recipe.dataset.group_by, no_answer)]
    cells.faults.check()
    if cells.repeated and recipe.kind.finds_spans:
        _tell_repeated(cells)
    return examples


def _texts(cells: Cells, labels: Sequence[str], recipe: Recipe) -> Iterator[TextExample]:
    read = label_reader(cells, labels, recipe)
    for row in range(len(cells)):
        yield TextExample(
            label=read(row),
            id=cells.id(row),
            text=cells.text(row, "text"),
            group=cells.name(row, "group", needed=recipe.dataset.group_by == "group"),
        )


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
