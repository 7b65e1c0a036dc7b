"""Turns the rows of a table into examples, or raises one message with everything that is wrong."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llama_peft.data.answers import Answer, read_answers
from llama_peft.data.cells import Cells, short
from llama_peft.data.formats import Table
from llama_peft.data.labels import Label, label_reader
from llama_peft.recipe import Recipe
from llama_peft.recipe.templates import ONE_TEXT, filled, lines
from llama_peft.system.sequences.spool import Spool
from llama_peft.system.sequences.views import Mapped


@dataclass(frozen=True, kw_only=True, slots=True)
class TextExample:
    """A text and its truth. Rows of one group stay in one part."""

    id: str
    text: str
    label: Label
    group: str = ""

    def __reduce__(self) -> "tuple[object, ...]":  # five times as fast as the usual way
        return _text_example, (self.id, self.text, self.label, self.group)

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

    def __reduce__(self) -> "tuple[object, ...]":
        return _fields_example, (self.id, self.text, self.label, self.group, self.fields)

    @property
    def values(self) -> dict[str, str]:
        """What stands in place of each name in a template."""
        return dict(self.fields)

    @classmethod
    def of(
        cls, values: Mapping[str, str], *, id: str, label: Label, group: str = ""
    ) -> "FieldsExample":
        """Return the example with these texts by the names of their fields."""
        text = filled(lines(list(values)), values)
        return cls(id=id, text=text, label=label, group=group, fields=tuple(values.items()))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionExample:
    """A question on a passage. No answers means that the passage does not answer it.

    `context` is "" if the questions have no passage.
    """

    id: str
    context: str
    question: str
    answers: tuple[Answer, ...]
    title: str = ""
    group: str = ""

    def __reduce__(self) -> "tuple[object, ...]":
        own = self.id, self.context, self.question, self.title, self.group
        return _question_example, (*own, *map(tuple, self.answers))

    @property
    def asked(self) -> tuple[str, ...]:
        """What a model is asked, without the truth."""
        return (self.question, self.context)


def _text_example(id: str, text: str, label: Label, group: str) -> TextExample:
    return TextExample(id=id, text=text, label=label, group=group)


def _fields_example(
    id: str, text: str, label: Label, group: str, fields: tuple[tuple[str, str], ...]
) -> FieldsExample:
    return FieldsExample(id=id, text=text, label=label, group=group, fields=fields)


def _question_example(
    id: str, context: str, question: str, title: str, group: str, *answers: tuple[str, int]
) -> QuestionExample:
    found = tuple(Answer(*answer) for answer in answers)
    return QuestionExample(
        id=id, context=context, question=question, title=title, group=group, answers=found
    )


Example = TextExample | QuestionExample
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Rows to predict, in the order of their source: what is right is not known."""

    examples: Sequence[Example]
    id_column: str | None
    """What the source calls its ids; None if it has none."""
    own_ids: Sequence[object]
    """The cells of that column."""


def to_inputs(table: Table, recipe: Recipe, part: str) -> Inputs:
    """Return every row as what a model reads. Raises UserError with everything that is wrong.

    A column with labels or answers is not read. All labels are 0, and no question has an answer.
    """
    cells = Cells(table, recipe, part, with_truth=False)
    if recipe.kind.has_labels:
        examples: Spool[Example] = Spool(_texts(cells, None, recipe))
    else:
        examples = Spool(_questions(cells, None, with_truth=False))
    cells.check_ids()
    cells.faults.check()
    own_ids = Mapped(lambda row: cells.cell(row, "id"), range(len(cells)))
    return Inputs(examples=examples, id_column=cells.columns.get("id"), own_ids=own_ids)


def to_examples(
    table: Table, recipe: Recipe, part: str, labels: Sequence[str]
) -> Sequence[Example]:
    """Return every row as an example. Raises UserError with everything that is wrong."""
    cells = Cells(table, recipe, part)
    examples = Spool(_read(cells, recipe, labels))
    cells.check_ids()
    cells.faults.check()
    if cells.repeated and recipe.kind.finds_spans:
        _tell(cells, cells.repeated, _REPEATED)
    if cells.unquoted:
        _tell(cells, cells.unquoted, _UNQUOTED)
    return examples


def without_bad_rows(table: Table, recipe: Recipe, part: str, labels: Sequence[str]) -> Table:
    """Return the table without the rows that cannot be used, if the recipe drops them."""
    if recipe.dataset.on_bad_rows == "refuse":
        return table
    cells = Cells(table, recipe, part)
    for _ in _read(cells, recipe, labels):
        pass  # reading a row records its faults
    cells.check_ids()
    return cells.faults.drop()


def _read(cells: Cells, recipe: Recipe, labels: Sequence[str]) -> Iterator[Example]:
    if recipe.kind.has_labels:
        return _texts(cells, label_reader(cells, labels, recipe), recipe)
    if recipe.kind.finds_spans:
        return _questions(cells, recipe.dataset.group_by)
    no_answer = recipe.prompt.no_answer
    return _questions(cells, recipe.dataset.group_by, no_answer, must_quote=False)


def _texts(
    cells: Cells, read: Callable[[int], Label] | None, recipe: Recipe
) -> Iterator[TextExample]:
    for row in range(len(cells)):
        label, id_ = 0 if read is None else read(row), cells.id(row)
        values = {name: cells.field(row, name) for name in cells.fields}
        text = "" if values else cells.text(row, "text")
        group = cells.name(row, "group", needed=recipe.dataset.group_by == "group")
        if values:
            yield FieldsExample.of(values, id=id_, label=label, group=group)
        else:
            yield TextExample(id=id_, text=text, label=label, group=group)


def _questions(
    cells: Cells,
    group_by: str | None,
    no_answer: str | None = None,
    *,
    must_quote: bool = True,
    with_truth: bool = True,
) -> Iterator[QuestionExample]:
    forbidden = None if no_answer is None else _words(no_answer)
    for row in range(len(cells)):
        context = cells.text(row, "context") if "context" in cells.columns else ""
        answers = tuple(read_answers(cells, row, context, must_quote)) if with_truth else ()
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


_REPEATED = (
    "have an answer that occurs several times in its passage, and no start: the first place is "
    "taken; a column with the starts (dataset.columns.answer_start) would say which place is meant"
)
_UNQUOTED = "have an answer that is not in its passage: it is learned and scored as it is written"


def _tell(cells: Cells, rows: Mapping[int, str], what: str) -> None:
    row, text = next(iter(rows.items()))
    place = f"{cells.table.place(row)}: {short(text)}"
    log.info(
        "%s: %d of %d questions %s (first: %s)",
        *(cells.table.source, len(rows), len(cells), what, place),
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
