"""Short reviews whose label does not follow from single words: negation and contrast are common.

In a phrasing, `{S}` and `{T}` are adjectives of the review's own label, and `{O}` is an adjective
of the other label. The same phrasing is used for both labels ("not a {O} moment" is praise or
blame), so a phrasing alone does not tell the label. `{L}` is a verb of the own label and `{M}` one
of the other, `{a}` and `{b}` are parts of the topic `{t}`, `{p}` is a person and `{c}` is a place.
"""

import random
from collections.abc import Sequence
from typing import Literal

from llama_peft.tiny.names import Names, Part, words

Label = Literal["negative", "positive"]
LABELS: tuple[Label, Label] = ("negative", "positive")
GROUPS = ("plain", "negated", "contrast")

ADJECTIVES: dict[Label, list[str]] = {
    "positive": words(
        "wonderful lovely charming superb delightful brilliant fresh warm clever moving "
        "gripping graceful memorable splendid pleasant perfect"
    ),
    "negative": words(
        "dull dreary clumsy bland tedious stale cold noisy lazy weak boring dreadful messy "
        "forgettable terrible poor"
    ),
}
VERBS: dict[Label, list[str]] = {
    "positive": words("loved enjoyed admired liked praised"),
    "negative": words("hated disliked despised regretted loathed"),
}
PLAIN_VERBS: dict[Label, list[str]] = {
    "positive": words("love enjoy admire like praise"),
    "negative": words("hate dislike despise regret loathe"),
}
TOPICS: dict[str, list[str]] = {
    "film": words("plot cast ending music dialogue"),
    "book": words("story prose ending hero dialogue"),
    "hotel": words("room staff breakfast view service"),
    "dinner": words("soup service bread menu wine"),
    "concert": words("singer band sound crowd music"),
    "play": words("cast stage plot dialogue music"),
}
PHRASINGS: dict[str, tuple[str, ...]] = {
    "plain": (
        "The {a} was {S}.",
        "The {a} was {S} and the {b} was {T}.",
        "I found the {a} {S}.",
        "What a {S} {t}!",
        "I {L} the {a}.",
        "I {L} the {t}, from the {a} to the {b}.",
        "We had a {S} {a} and a {T} {b}.",
        "It is a {S} {t}.",
    ),
    "negated": (
        "I did not {M} the {a}.",
        "The {a} was not {O} at all.",
        "The {a} was never {O}.",
        "Not a {O} moment in this {t}.",
        "Nothing about the {a} was {O}.",
        "The {a} was anything but {O}.",
        "It was hardly a {O} {t}.",
    ),
    "contrast": (
        "Far from {O}, the {a} was {S}.",
        "The {t} starts {O} but soon turns {S}.",
        "The {a} was {O}, but the {b} was {S} and that is what counts.",
        "Although the {a} was {O}, the {t} was {S}.",
        "I expected a {O} {t} and got a {S} one.",
        "Some call it {O}, I call it {S}.",
        "The {a} seemed {O}, yet in the end the {t} was {S}.",
    ),
}
HELD_PHRASINGS: dict[str, tuple[str, ...]] = {
    "plain": (
        "All of us {L} this {t}.",
        "This {t} has a {S} {a}.",
        "I call the {a} {S} and the {b} {T}.",
        "We found a {S} {t} with a {T} {a}.",
    ),
    "negated": (
        "There was nothing {O} about this {t}.",
        "I would not call the {a} {O}.",
        "There was never a {O} moment in the {t}.",
        "The {t} was not a {O} one.",
    ),
    "contrast": (
        "The {a} seemed {O} at first, but soon it was {S}.",
        "Some found it {O}, but I found it {S}.",
        "Although I expected a {O} {a}, I got a {S} one.",
        "The {b} starts {O}, yet the {t} was {S}.",
    ),
}
ASIDES = (
    "We went with {p}.",
    "We were in {c} that day.",
    "{p} came along.",
    "It was a {t} in {c}.",
    "This {t} is by {p}.",
)
HELD_ASIDES = (
    "{p} was with us in {c}.",
    "We went to {c} that day.",
    "By {p}, in {c}.",
)


def _fill(rng: random.Random, phrasing: str, label: Label, topic: str, names: Names) -> str:
    other = LABELS[1 - LABELS.index(label)]
    first, second = rng.sample(TOPICS[topic], 2)
    same = rng.sample(ADJECTIVES[label], 2)
    slots = {"{t}": topic, "{a}": first, "{b}": second, "{S}": same[0], "{T}": same[1]}
    slots["{O}"] = rng.choice(ADJECTIVES[other])
    slots["{L}"] = rng.choice(VERBS[label])
    slots["{M}"] = rng.choice(PLAIN_VERBS[other])
    if "{p}" in phrasing:
        slots["{p}"] = " ".join(names.person()[:2])
    if "{c}" in phrasing:
        slots["{c}"] = names.place()
    for slot, word in slots.items():
        phrasing = phrasing.replace(slot, word)
    return phrasing


def write_review(
    rng: random.Random, part: Part, label: Label, num_verdicts: int, groups: Sequence[str] = GROUPS
) -> str:
    """Return `num_verdicts` sentences that express the label, and perhaps one neutral sentence."""
    held = part == "test"
    names = Names(rng, part)
    topic = rng.choice(list(TOPICS))
    choices = HELD_PHRASINGS if held else PHRASINGS
    phrasings = [rng.choice(choices[rng.choice(groups)]) for _ in range(num_verdicts)]
    if rng.random() < 0.5:
        aside = rng.choice(HELD_ASIDES if held else ASIDES)
        phrasings.insert(rng.randrange(num_verdicts + 1), aside)
    return " ".join(_fill(rng, phrasing, label, topic, names) for phrasing in phrasings)
