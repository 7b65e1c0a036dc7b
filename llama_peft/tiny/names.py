"""Invented names; each belongs to one part of the data, so that no name occurs in two parts.

A name is an onset and an ending ("Tol" + "vik"). Its part follows from the two indices, like the
diagonals of a square. So training contains every syllable but no name of the test part, and a model
that learned names by heart instead of copying them does badly on the test part.
"""

import random
from functools import cache
from typing import Literal

Part = Literal["train", "validation", "test"]
Kind = Literal["she", "he", "surname", "place"]


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


PARTS: tuple[Part, ...] = ("train", "validation", "test")

_FIRST = words("Mar Tol Bren Kel Dor Vel Hal Jun Ser Lor Fen Gar Nim Pel Ros Sel Tam Wil Yor Zan")
_LAST = words(
    "Bal Cor Dun Esk Fal Grim Hol Ing Jar Kov Lund Mor Nor Oak Pem Quin Rav Stro Thel Ulm"
)
_PLACE = words("Ash Bel Cre Dray El Fro Gol Hav Ist Kar Lim Mel Nar Ost Pol Rin Sot Tur Ver Wes")

SYLLABLES: dict[Kind, tuple[list[str], list[str]]] = {
    "she": (_FIRST, words("a ina etta elle ika ora isa une ily oth")),
    "he": (_FIRST, words("o en ard us imir olf win ek an is")),
    "surname": (
        _LAST,
        words("vik sen ley mond dan berg ston rick well by gard lin now strom kin"),
    ),
    "place": (
        _PLACE,
        words("ford mouth bridge haven gate field minster dale port holm wick stead"),
    ),
}


def part_of(onset: int, ending: int) -> Part:
    """Return the part of a name: two diagonals in ten are test, one is validation."""
    diagonal = (onset + 3 * ending) % 10
    return "test" if diagonal < 2 else "validation" if diagonal == 2 else "train"


@cache
def all_names(kind: Kind, part: Part) -> tuple[str, ...]:
    """Return all names of one kind and part."""
    onsets, endings = SYLLABLES[kind]
    return tuple(
        onset + ending
        for i, onset in enumerate(onsets)
        for j, ending in enumerate(endings)
        if part_of(i, j) == part
    )


class Names:
    """Draws names of one part; one `Names` never draws the same name twice."""

    def __init__(self, rng: random.Random, part: Part) -> None:
        self._rng = rng
        self._part = part
        self._used: set[str] = set()

    def _draw(self, kind: Kind) -> str:
        names = [name for name in all_names(kind, self._part) if name not in self._used]
        name = self._rng.choice(names)
        self._used.add(name)
        return name

    def person(self) -> tuple[str, str, str]:
        """Return a first name, a surname and a pronoun."""
        pronoun: Kind = self._rng.choice(("she", "he"))
        return self._draw(pronoun), self._draw("surname"), pronoun.capitalize()

    def place(self) -> str:
        """Return the name of a town."""
        return self._draw("place")
