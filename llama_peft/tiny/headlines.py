"""Reviews of a few everyday words, such as people type first.

They are in the parts that are learned only: neither the base nor the test part has them. Slots are those
of `reviews.py`, and more: `{n}` and `{k}` are things that are judged, `{Q}` is like `{O}`, and `{w}` is what
something is or is not worth.
"""

import random

from llama_peft.tiny.names import words
from llama_peft.tiny.reviews import ADJECTIVES, LABELS, TOPICS, VERBS, Label

EVERYDAY: dict[Label, list[str]] = {
    "positive": words(
        "good great funny nice happy sweet beautiful fine fun excellent amazing interesting"
    ),
    "negative": words(
        "bad sad silly slow stupid long awful horrible ugly annoying disappointing cheap"
    ),
}
"""Adjectives of headlines alone."""
THINGS = words("film movie story acting ending plot cast music dialogue book show play idea scene")
WORTH = (
    "the money", "the ticket", "the price", "your evening", "a visit", "a second look", "the wait", "it",
)  # fmt: skip
BOTH = (
    "A {S} {n}.",
    "A {S} {n}!",
    "A {S} and {T} {n}.",
    "A {S}, {T} {n}.",
    "{S} and {T}.",
    "{S}.",
    "{S}!",
    "{S} {n}!",
    "Very {S}.",
    "So {S}.",
    "Really {S} {n}.",
    "It was {S}.",
    "It is a {S} {n}.",
    "The {n} was {S}.",
    "The {n} is {S}.",
    "The {n} is {S}!",
    "The {n} is really {S}.",
    "The {n} was very {S} and the {k} too.",
    "{S} {n} and a {T} {k}.",
    "What a {S} {n}.",
    "I {L} it.",
    "I {L} this {n}.",
    "I really {L} the {n}.",
    "We {L} every minute.",
    "Not {O}.",
    "Not {O} and not {Q}.",
    "Not {O} at all.",
    "It is not {O}.",
    "The {n} is not {O}.",
    "Never {O}.",
    "Nothing {O} here.",
)
"""Whose adjectives and verbs tell the label."""
OWN: dict[Label, tuple[str, ...]] = {
    "positive": (
        "Worth {w}.",
        "It is worth {w}.",
        "Well worth {w}.",
        "I recommend this {n}.",
        "I can recommend it to all.",
        "I would see it again.",
        "You will want to watch this {n} again.",
        "One of the best {n}s in years.",
        "The best {n} of all.",
        "A joy to watch.",
        "I laughed a lot.",
        "It made me laugh.",
        "Do not miss it.",
        "I had a {S} evening.",
        "We stayed to the end and wanted more.",
        "Full of life.",
    ),
    "negative": (
        "Not worth {w}.",
        "It is not worth {w}.",
        "Hardly worth {w}.",
        "I do not recommend this {n}.",
        "I cannot recommend it to anyone.",
        "I would not see it again.",
        "You will never want to watch this {n} again.",
        "One of the worst {n}s in years.",
        "The worst {n} of all.",
        "A pain to watch.",
        "I nearly fell asleep in the middle.",
        "It made me tired.",
        "Do not go.",
        "A waste of money.",
        "What a waste of an evening.",
        "We left before the end.",
        "Half of us fell asleep.",
        "Too {S}.",
        "Too {S} and much too {T}.",
        "Full of holes.",
    ),
}
"""Of one label, in pairs where a negation or a word makes the difference."""
_OWN, _EVERYDAY = 0.35, 0.8
"""The shares of these, and of everyday adjectives."""


def write_headline(rng: random.Random, label: Label) -> str:
    """Return one short sentence that expresses the label."""
    other, topic = LABELS[1 - LABELS.index(label)], rng.choice(list(TOPICS))
    adjectives = EVERYDAY if rng.random() < _EVERYDAY else ADJECTIVES
    slots = dict(zip(("{S}", "{T}"), rng.sample(adjectives[label], 2), strict=True))
    slots |= dict(zip(("{O}", "{Q}"), rng.sample(adjectives[other], 2), strict=True))
    slots |= dict(zip(("{n}", "{k}"), rng.sample([*THINGS, topic], 2), strict=True))
    slots |= {"{L}": rng.choice(VERBS[label]), "{w}": rng.choice(WORTH)}
    phrasing = rng.choice(OWN[label] if rng.random() < _OWN else BOTH)
    for slot, word in slots.items():
        phrasing = phrasing.replace(slot, word)
    return phrasing[0].upper() + phrasing[1:]
