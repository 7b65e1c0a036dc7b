"""The names in one drawing. In an SVG they are text, which a browser has letters for; in a PNG they are drawn in
the letters that a font here has. In neither do two different names look alike.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, count

from llama_peft.system.terminal import visible

from . import fonts


class Names:
    """Gives the names of a drawing to matplotlib, and knows afterwards what they were."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        """The name that a text stands for."""
        self._texts: dict[str, str] = {}
        """The text that a drawn one stands for."""

    def shown(self, name: str, longest: int = 28) -> str:
        """Return a name as a drawing can hold it: without control characters, in letters that a font
        has, and not too long.

        longest: the most letters of the name. Numbers in place of letters have twice the room.
        """
        text = " ".join(visible(name).split())
        if text.startswith("_"):  # matplotlib leaves out such names
            text = f" {text}"
        text = _first_free(self._names, name, text, longest)
        return _first_free(self._texts, text, fonts.drawable(text), 2 * longest)

    def text(self, drawn: str) -> str:
        """Return what an SVG shows for a line that is drawn: every letter of a name, whatever its font."""
        return self._texts.get(drawn, drawn)


def _first_free(owners: dict[str, str], owner: str, letters: Sequence[str], longest: int) -> str:
    """Return the first cut of letters that stands for no other owner, and note its owner."""
    return next(text for text in _cuts(letters, longest) if owners.setdefault(text, owner) == owner)


def _cuts(letters: Sequence[str], longest: int) -> Iterator[str]:
    """Yield the letters as one text if it is not too long, then beginnings of it with a number each."""
    if len(whole := "".join(letters)) <= longest:
        yield whole
    beginnings = [*accumulate(letters[:longest], initial="")]
    for number in count(1):
        ending = "…" if number == 1 else f"…{number}"
        yield [one for one in beginnings if len(one + ending) <= longest][-1] + ending
