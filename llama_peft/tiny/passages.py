"""Short passages about invented people, towns and objects, and what each states or omits.

The offset of every value is counted while the passage is written, so no code searches for it.
"""

import random
from typing import NamedTuple

from llama_peft.tiny.facts import OBJECT, PERSON, THINGS, TOWN, WORDS, Attribute, ValueKind
from llama_peft.tiny.names import Names, Part


class Subject(NamedTuple):
    """The subject of a passage, and the words that can stand for it."""

    title: str
    question_name: str
    full_name: str
    short_names: tuple[str, ...]
    attributes: tuple[Attribute, ...]


class Fact(NamedTuple):
    """A value of an attribute, and where it starts in the passage."""

    attribute: Attribute
    value: str
    start: int


class Passage(NamedTuple):
    """A text, the facts that it states, and the attributes that it omits."""

    subject: Subject
    context: str
    facts: tuple[Fact, ...]
    missing: tuple[Attribute, ...]


def make_subject(rng: random.Random, names: Names) -> Subject:
    """Return a random person, town or object."""
    kind = rng.choice(("person", "person", "town", "object"))
    if kind == "person":
        first, last, pronoun = names.person()
        full = f"{first} {last}"
        return Subject(full, full, full, (pronoun, last, first), PERSON)
    place = names.place()
    if kind == "town":
        return Subject(place, place, place, ("the town", "it", place), TOWN)
    thing = rng.choice(THINGS)
    title = f"{place} {thing}"
    return Subject(title, f"the {title}", f"the {title}", (f"the {thing}", "it"), OBJECT)


def make_value(rng: random.Random, kind: ValueKind, names: Names) -> str:
    """Return a random value of a kind."""
    if kind == "place":
        return names.place()
    if kind == "person":
        return " ".join(names.person()[:2])
    if kind == "year":
        return str(rng.randrange(1600, 2000))
    return rng.choice(WORDS[kind])


def statements_of(attribute: Attribute, part: Part) -> tuple[str, ...]:
    """Return the sentences that a part can state an attribute with."""
    return attribute.held_statements if part == "test" else attribute.statements


def questions_of(attribute: Attribute, part: Part) -> tuple[str, ...]:
    """Return the questions that a part can ask for an attribute with."""
    return attribute.held_questions if part == "test" else attribute.questions


def state(template: str, subject: str, value: str) -> tuple[str, int]:
    """Return the sentence, starting in upper case, and the index where the value starts in it."""
    before, after = (half.replace("{s}", subject) for half in template.split("{v}"))
    sentence = before + value + after
    return sentence[0].upper() + sentence[1:], len(before)


def ask(
    rng: random.Random, attribute: Attribute, subject: Subject, part: Part, variety: int = 4
) -> str:
    """Return a question in one of the first `variety` phrasings."""
    question = rng.choice(questions_of(attribute, part)[:variety]).replace(
        "{n}", subject.question_name
    )
    return question[0].upper() + question[1:]


def _name_for(rng: random.Random, template: str, subject: Subject, is_first: bool) -> str:
    """Return a name: the full one first; a pronoun only at the start of a sentence."""
    if is_first or rng.random() < 0.3:
        return subject.full_name
    return rng.choice(
        subject.short_names if template.startswith("{s}") else subject.short_names[1:]
    )


def write_passage(rng: random.Random, part: Part, num_facts: int, variety: int = 4) -> Passage:
    """Return `num_facts` sentences; each uses one of the first `variety` phrasings that fit."""
    names = Names(rng, part)
    subject = make_subject(rng, names)
    attributes = rng.sample(subject.attributes, len(subject.attributes))
    facts: list[Fact] = []
    context = ""
    for attribute in attributes[:num_facts]:
        choices = [t for t in statements_of(attribute, part) if facts or "{s}" in t]
        template = rng.choice(choices[:variety])
        value = make_value(rng, attribute.value, names)
        name = _name_for(rng, template, subject, is_first=not facts)
        sentence, start = state(template, name, value)
        context += " " if context else ""
        facts.append(Fact(attribute, value, len(context) + start))
        context += sentence
    return Passage(subject, context, tuple(facts), tuple(attributes[num_facts:]))
