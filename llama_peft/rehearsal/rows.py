"""The rows of a rehearsal: the recipe's own, or synthetic ones as long as the recipe allows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import NamedTuple, TypeVar

from llama_peft import data
from llama_peft.data import Example, QuestionExample
from llama_peft.errors import UserError
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import Encoded
from llama_peft.training.rows import AnswerRow, ClassificationRow, Row, SpanRow, Target

_SAMPLE = 1000
"""How many of the longest examples, and of the first ones, are encoded."""
_QUESTIONS, _PASSAGE, _QUESTION, _ANSWER = 7, 197, 21, 5
"""SQuAD in Llama's tokens: questions on a passage, and the tokens of each part of a prompt."""
_TOKEN = 11
_ROWS = 64
Item = TypeVar("Item")


class Material(NamedTuple):
    """What a rehearsal feeds the model."""

    dataset: data.Dataset
    synthetic: Mapping[str, Sequence[Row]] | None
    """Rows of each part, in place of those that the data set gives."""
    source: str
    """Where the rows come from, in words."""


class Batches(NamedTuple):
    """Rows for two optimizer steps."""

    typical: list[Row]
    fullest: list[Row]


def gather(recipe: Recipe) -> Material:
    """Return the recipe's data, or synthetic rows if they are on the Hub and not in its cache.

    Raises UserError if a file of the recipe cannot be used.
    """
    place = recipe.dataset.path or recipe.dataset.parts.train
    try:
        dataset = data.load(recipe)
    except UserError:
        if place == "tiny" or data.is_file_name(str(place)):
            raise
        rows = synthetic(recipe)
        source = f"synthetic rows of {recipe.train.max_length} tokens, because {place} is not here"
        return Material(_invented(recipe), {"train": rows, "validation": rows}, source)
    parts = {part: _sampled(examples) for part, examples in dataset.parts.items()}
    sampled = data.Dataset(labels=dataset.labels, parts=parts, dropped=dataset.dropped)
    return Material(sampled, None, f"the recipe's own rows ({place})")


def _sampled(examples: Sequence[Example]) -> Sequence[Example]:
    """Return the longest and the first examples, in their order."""
    longest = sorted(range(len(examples)), key=lambda i: -sum(map(len, _texts(examples[i]))))
    chosen = {*longest[:_SAMPLE], *range(min(_SAMPLE, len(examples)))}
    return [examples[i] for i in sorted(chosen)]


def _texts(example: Example) -> tuple[str, ...]:
    return example.asked


def _invented(recipe: Recipe) -> data.Dataset:
    """Return questions for decoding; texts are not needed beside their rows."""
    labels = tuple(recipe.dataset.labels or ("0", "1") if recipe.kind.names_labels else ())
    if recipe.kind.has_labels:
        return data.Dataset(labels=labels, parts={"train": [], "validation": []})
    passage = " ".join(["word"] * (_PASSAGE - 24))
    questions: list[Example] = [
        QuestionExample(
            id=str(number),
            question="What is the number?",
            context=f"{number // _QUESTIONS} {passage}",
            answers=(),
        )
        for number in range(40 * _QUESTIONS)
    ]
    return data.Dataset(labels=labels, parts={"train": questions, "validation": []})


def synthetic(recipe: Recipe) -> Sequence[Row]:
    """Return rows of `train.max_length` tokens in the form that the recipe's task needs."""
    length = recipe.train.max_length
    if recipe.packs_rows:
        return prefix_tree.pack(_questions(length), length)[:_ROWS]
    return [_row(recipe, number, length) for number in range(_ROWS)]


def _row(recipe: Recipe, number: int, length: int) -> Row:
    """Return a row that shares no beginning with another one."""
    ids, tokens = [str(number)], (_TOKEN + number,) * length
    if recipe.kind.has_labels:
        number_of_labels = len(recipe.dataset.labels or ("0", "1"))
        targets: dict[str, Target] = {"label_sets": [0.0] * number_of_labels, "numbers": 0.5}
        target = targets.get(recipe.kind.side, 0)
        return ClassificationRow(ids=ids, input_ids=tokens, labels=target)
    if recipe.kind.finds_spans:
        start = min(_QUESTION, length - 1)
        mask = [int(place >= start) for place in range(length)]
        return SpanRow(
            ids=ids, input_ids=tokens, span_mask=mask, start_positions=start, end_positions=start
        )
    answer = min(_ANSWER, length - 1)
    labels = (prefix_tree.IGNORE_INDEX,) * (length - answer) + (_TOKEN,) * answer
    return AnswerRow(ids=ids, input_ids=tokens, labels=labels)


def _questions(length: int) -> Iterator[Encoded]:
    """Yield questions on passages until their trees fill the rows that are needed."""
    needed = _ROWS * length // (_PASSAGE + _QUESTIONS * (_QUESTION + _ANSWER))
    context = min(_PASSAGE, length // 2)
    for passage in range(needed + 1):
        for question in range(_QUESTIONS):
            start = (_TOKEN, 100 + passage // 100, *(100 + passage % 100,) * (context - 2))
            own = (300 + question,) * min(_QUESTION, length // 4)
            yield Encoded(f"{passage}-{question}", start + own, (_TOKEN,) * _ANSWER)


def batches(rows: Sequence[Row], size: int) -> Batches:
    """Return the rows of middle length and the longest ones; rows repeat if there are too few."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    middle = max(0, len(ordered) // 2 - size // 2)
    return Batches(_taken(ordered[middle : middle + size], size), _taken(ordered[-size:], size))


def _taken(rows: Sequence[Item], size: int) -> list[Item]:
    return list(islice(cycle(rows), size))
