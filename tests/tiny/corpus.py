"""The text that the tiny model is pretrained on, with a weight for every stretch of it.

Only names and phrasings of the training part occur. Passages come with notes, quizzes, restatements
and highlighted values; reviews come with stars and verdicts. None has the form of a prompt of the
recipes, so that zero-shot means a prompt that the model has never seen. Text that only chance could
predict (an invented name) has a low weight, and text that follows from the document (an answer) has
a high weight; otherwise the model does not learn to copy within minutes.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from llama_peft.tiny.facts import WORDS
from llama_peft.tiny.names import Names
from llama_peft.tiny.passages import (
    Fact,
    Passage,
    ask,
    make_subject,
    make_value,
    state,
    statements_of,
    write_passage,
)
from llama_peft.tiny.reviews import (
    ADJECTIVES,
    GROUPS,
    LABELS,
    Label,
    write_review,
)

NOISE, PROSE, ABSENCE, ANSWER = 0.0, 0.2, 0.3, 1.0
BREAKS = ("\n", "\n\n")
CUES = ("\nA:", "\nA:", "\n-", " =")


DRILL_WORDS = sorted({word for words in (*WORDS.values(), *ADJECTIVES.values()) for word in words})


class Stretch(NamedTuple):
    """A piece of text and its weight as a target."""

    text: str
    weight: float


Document = list[Stretch]


class Stage(NamedTuple):
    """The kind of documents up to a point of the training (0 to 1)."""

    until: float
    num_facts: tuple[int, ...]
    num_missing: int
    variety: int  # phrasings of a statement or a question
    hint: float  # share of questions whose answer follows its key
    num_reviews: tuple[int, ...]
    groups: tuple[str, ...]  # of phrasings of a review
    drill: float  # share of documents that only copy
    reviews: float  # share of documents that hold reviews


STAGES = (
    Stage(0.1, (2,), 0, 1, 0.4, (1,), ("plain",), 0.15, 0.6),
    Stage(0.25, (2, 3), 0, 1, 0.3, (1, 2), ("plain", "negated"), 0.1, 0.3),
    Stage(0.5, (3, 4), 1, 2, 0.2, (1, 2, 3), GROUPS, 0.05, 0.25),
    Stage(1.0, (3, 4, 5), 2, 4, 0.1, (1, 2, 3), GROUPS, 0.03, 0.2),
)


def roll_call(rng: random.Random) -> Document:
    """Return words in a row, each once, and then the same again: the easiest thing to copy."""
    names = Names(rng, "train")
    words = [names.place(), names.place(), *names.person()[:2], *names.person()[:2]]
    words += rng.sample(DRILL_WORDS, rng.choice((4, 8, 12)))
    rng.shuffle(words)
    called = " ".join(words)
    return [Stretch(f"Roll call: {called}.", NOISE), Stretch(f" Again: {called}.", ANSWER)]


def ledger(rng: random.Random) -> Document:
    """Return pairs, then the keys in another order, each with the value that must be looked up."""
    names = Names(rng, "train")
    attributes = rng.sample(make_subject(rng, names).attributes, 6)
    entries = [(a.key, make_value(rng, a.value, names)) for a in attributes]
    document = [Stretch("Ledger", NOISE)]
    document += [Stretch(f"\n{key}: {value}", NOISE) for key, value in entries]
    document.append(Stretch("\nSorted", NOISE))
    for key, value in rng.sample(entries, len(entries)):
        document += [Stretch(f"\n{key}:", NOISE), Stretch(f" {value}", ANSWER)]
    return document


def _asked(rng: random.Random, passage: Passage, stage: Stage) -> list[tuple[str, str, str]]:
    """Return (key, question, value or "") for every fact and some missing ones, in random order."""
    missing = rng.sample(passage.missing, min(stage.num_missing, len(passage.missing)))
    pairs = [(f.attribute, f.value) for f in passage.facts] + [(a, "") for a in missing]
    rng.shuffle(pairs)
    return [
        (a.key, ask(rng, a, passage.subject, "train", stage.variety), value) for a, value in pairs
    ]


def _answer(value: str, otherwise: str) -> Stretch:
    """Return the answer; "not stated" is easy and with equal weight would hide other answers."""
    return Stretch(f" {value or otherwise}", ANSWER if value else ABSENCE)


def notes(rng: random.Random, passage: Passage, stage: Stage) -> Document:
    document = [Stretch(passage.context, PROSE), Stretch(rng.choice(BREAKS) + "Notes", PROSE)]
    for key, _, value in _asked(rng, passage, stage):
        document += [Stretch(f"\n{key}:", NOISE), _answer(value, "none")]
    return document


def quiz(rng: random.Random, passage: Passage, stage: Stage) -> Document:
    """Return the passage and questions after it; a hint gives the key, which must be inferred."""
    document = [Stretch(passage.context, PROSE)]
    for key, question, value in _asked(rng, passage, stage):
        document.append(Stretch(f"{rng.choice(BREAKS)}Q: {question}", NOISE))
        hinted = rng.random() < stage.hint
        document.append(
            Stretch(f"\n{key}:", ANSWER / 2) if hinted else Stretch(rng.choice(CUES), NOISE)
        )
        document.append(_answer(value, "?"))
    return document


def quiz_first(rng: random.Random, passage: Passage, stage: Stage) -> Document:
    """Return questions before the passage and answers after it, so that its states know them."""
    asked = _asked(rng, passage, stage)[: rng.choice((1, 2, 3))]
    document = [Stretch("Quiz:", PROSE)]
    document += [Stretch(f" {question}", NOISE) for _, question, _ in asked]
    document += [
        Stretch(rng.choice(BREAKS) + passage.context, PROSE),
        Stretch(rng.choice(BREAKS) + "Solution", PROSE),
    ]
    for key, _, value in asked:
        document += [Stretch(f"\n{key}:", PROSE), _answer(value, "none")]
    return document


def restatement(rng: random.Random, passage: Passage, stage: Stage) -> Document:
    document = [
        Stretch(passage.context, PROSE),
        Stretch(rng.choice(BREAKS) + "In other words:", PROSE),
    ]
    for fact in rng.sample(passage.facts, len(passage.facts)):
        template = rng.choice(statements_of(fact.attribute, "train")[: stage.variety])
        sentence, start = state(template, passage.subject.full_name, fact.value)
        end = start + len(fact.value)
        weight = ANSWER if start else PROSE
        document += [
            Stretch(" " + sentence[:start].rstrip(), PROSE),
            Stretch(" " * bool(start) + sentence[start:end], weight),
            Stretch(sentence[end:], PROSE),
        ]
    return document


def highlight(rng: random.Random, passage: Passage, stage: Stage) -> Document:
    """Return the question, the passage with its answer in stars, and whether there was one."""
    absent = stage.num_missing > 0 and rng.random() < 0.3
    fact = None if absent else rng.choice(passage.facts)
    attribute = fact.attribute if fact else rng.choice(passage.missing)
    wanted = (
        ask(rng, attribute, passage.subject, "train", stage.variety)
        if rng.random() < 0.8
        else attribute.key
    )
    return [
        Stretch(f"Find: {wanted}" + rng.choice(BREAKS), NOISE),
        *_marked(passage, fact, both=rng.random() < 0.5),
        Stretch(rng.choice(BREAKS) + "Found:", PROSE),
        Stretch(" one" if fact else " none", PROSE),
    ]


def _marked(passage: Passage, fact: Fact | None, both: bool) -> Document:
    """Return the passage with stars around the value or after it, which the model must predict."""
    if fact is None:
        return [Stretch(passage.context, PROSE)]
    before, after = passage.context[: fact.start], passage.context[fact.start + len(fact.value) :]
    opening = [Stretch(" *", 2 * ANSWER)] if both else []
    space = "" if both or not before else " "
    return [
        Stretch(before.rstrip(), PROSE),
        *opening,
        Stretch(space + fact.value, PROSE),
        Stretch("*", 2 * ANSWER),
        Stretch(after, PROSE),
    ]


def _verdict(rng: random.Random, label: Label) -> str:
    good = label == "positive"
    return rng.choice(
        (
            "\nStars: 5" if good else "\nStars: 1",
            "\nVerdict: good" if good else "\nVerdict: bad",
            "\nThumbs: up" if good else "\nThumbs: down",
            "\nAgain? yes" if good else "\nAgain? no",
        )
    )


def guest_book(rng: random.Random, stage: Stage) -> Document:
    """Return reviews in a row, each with its verdict."""
    document = [Stretch("Guest book", PROSE)]
    for _ in range(rng.choice(stage.num_reviews)):
        label = rng.choice(LABELS)
        review = write_review(rng, "train", label, rng.choice((1, 1, 2)), stage.groups)
        before, last = _verdict(rng, label).rsplit(" ", 1)
        document += [
            Stretch(f"\n- {review}", NOISE),
            Stretch(before, PROSE),
            Stretch(f" {last}", 3 * ANSWER),
        ]
    return document


_CHAT = (
    "{p} read the text and said it was {x}.",
    "The label on the jar said {x}.",
    "A short passage of text had no title.",
    "That is a question without an answer.",
    "If you ask, {p} does not say.",
    "{p} found the question unanswerable.",
    "The answer from {c} was negative.",
    "The answer from {c} was positive.",
    "Answer the letter from {c}, said {p}.",
    "In this context the question is, does it answer?",
    "Passage to {c} was closed by snow.",
    "Say it from the stage, said {p}.",
    "Some words are negative, some are positive.",
    "Text and title were {x}, said {p}.",
    "Label the jar, said {p}.",
    "Question and answer were {x}.",
)


def small_talk(rng: random.Random) -> Document:
    """Return sentences with words that no passage has, so that the words of prompts are known."""
    names = Names(rng, "train")
    sentences = [
        line.replace("{p}", " ".join(names.person()[:2]))
        .replace("{c}", names.place())
        .replace("{x}", rng.choice(("good", "bad", "yes", "no", "none", "short")))
        for line in rng.sample(_CHAT, 6)
    ]
    return [Stretch(rng.choice((" ", *BREAKS)).join(sentences), PROSE)]


WRITERS: tuple[tuple[Callable[[random.Random, Passage, Stage], Document], int], ...] = (
    (notes, 3),
    (quiz, 8),
    (quiz_first, 3),
    (restatement, 1),
    (highlight, 3),
)


def write_document(rng: random.Random, progress: float) -> Document:
    """Return a document for this point (0 to 1) of the training."""
    stage = next(stage for stage in STAGES if progress < stage.until)
    kind = rng.random()
    if kind < stage.drill:
        return rng.choice((roll_call, ledger))(rng)
    if kind < stage.drill + stage.reviews:
        return guest_book(rng, stage)
    if kind > 0.98:
        return small_talk(rng)
    passage = write_passage(rng, "train", rng.choice(stage.num_facts), stage.variety)
    writers, weights = zip(*WRITERS, strict=True)
    return rng.choices(writers, weights)[0](rng, passage, stage)
