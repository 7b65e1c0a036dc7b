"""Writes data sets for the demo and the tests, without files, downloads or outside text.

The test part has its own names and phrasings. The validation part has its own names and shares its
phrasings with the training part. The pretraining corpus is made of these same phrasings.
"""

import random
from typing import Literal, get_args

from llama_peft.tiny.headlines import write_headline
from llama_peft.tiny.names import PARTS, Part
from llama_peft.tiny.passages import Passage, ask, write_passage
from llama_peft.tiny.reviews import LABELS, Label, write_review

DataKind = Literal["reviews", "mixed-reviews", "passages"]
Row = dict[str, object]
_HEADLINES = 0.75
"""The share of short reviews in what is learned."""


def generate(kind: DataKind, part: Part, count: int, seed: int) -> list[Row]:
    """Return `count` rows; the same arguments give the same rows on every machine.

    "reviews":  {"id", "text", "label"}. Half of them are negative (one more if `count` is odd).
    "mixed-reviews": the same, and short ones such as people type, except in the test part, which has the
                same texts.
    "passages": {"id", "title", "context", "question", "answers": {"text", "answer_start"}}. Each
                passage has 4 to 6 questions; about a third have no answer (empty lists).
    """
    if kind not in get_args(DataKind) or part not in PARTS:
        raise ValueError(f"there is no such data: kind {kind!r}, part {part!r}")
    name = kind.removeprefix("mixed-")
    rng = random.Random(f"{name} {part} {seed}")
    if name == "passages":
        rows = _questions(rng, part, count)
    else:
        rows = _reviews(rng, part, count, _HEADLINES if name != kind and part != "test" else 0.0)
    return [{"id": f"{kind}-{part}-{seed}-{i:05d}", **row} for i, row in enumerate(rows)]


def _reviews(rng: random.Random, part: Part, count: int, short: float) -> list[Row]:
    """Return reviews. short: the share of short ones."""
    labels = [LABELS[i % 2] for i in range(count)]
    rng.shuffle(labels)
    return [{"text": _review(rng, part, label, short), "label": label} for label in labels]


def _review(rng: random.Random, part: Part, label: Label, short: float) -> str:
    if short and rng.random() < short:
        return write_headline(rng, label)
    return write_review(rng, part, label, rng.choice((1, 2, 2)))


def _questions(rng: random.Random, part: Part, count: int) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < count:
        passage = write_passage(rng, part, rng.choice((4, 5)))
        rows.extend(_questions_on(rng, part, passage))
    return rows[:count]


def _questions_on(rng: random.Random, part: Part, passage: Passage) -> list[Row]:
    num_questions = rng.choice((4, 5, 6))
    num_missing = min(2 if num_questions > 4 else rng.choice((1, 2)), len(passage.missing))
    asked = [(fact.attribute, fact) for fact in passage.facts]
    asked = rng.sample(asked, min(num_questions - num_missing, len(asked)))
    absent = [(attribute, None) for attribute in rng.sample(passage.missing, num_missing)]
    mixed = [*asked, *absent]
    rng.shuffle(mixed)
    return [
        {
            "title": passage.subject.title,
            "context": passage.context,
            "question": ask(rng, attribute, passage.subject, part),
            "answers": {
                "text": [fact.value] if fact else [],
                "answer_start": [fact.start] if fact else [],
            },
        }
        for attribute, fact in mixed
    ]
