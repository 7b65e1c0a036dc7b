"""Fonts for names in any script: installed ones beside matplotlib's own, and where none has a letter, its
number in place of a box, written as Python would: \\u4e2d.
"""

from collections.abc import Iterable
from functools import cache

_OWN = "DejaVu Sans"
"""What matplotlib brings with it."""
_BOXES = ("Last Resort", "Adobe Blank")
"""The beginnings of the names of fonts that have a box, or nothing, for every letter."""


def drawable(text: str) -> list[str]:
    """Return the letters of a text, with numbers for those that no font here has."""
    return [one if family_of(one) else _number(one) for one in text]


def families(texts: Iterable[str]) -> list[str]:
    """Return the families that have the letters of texts, matplotlib's own first."""
    wanted = {family_of(letter) for text in texts for letter in set(text)}
    return [_OWN, *sorted(wanted - {None, _OWN}, key=str)]  # type: ignore[list-item]


@cache
def family_of(letter: str) -> str | None:
    """Return the family of a font that has a letter, matplotlib's own before others; None if none has."""
    from matplotlib.font_manager import findfont, fontManager

    if ord(letter) in _letters(findfont(_OWN)):
        return _OWN
    others = [
        font
        for font in fontManager.ttflist
        if font.style == "normal" and not font.name.startswith(_BOXES)
    ]
    others.sort(
        key=lambda font: ("Sans" not in font.name, abs(_weight(font.weight) - 400), font.name)
    )
    return next((font.name for font in others if ord(letter) in _letters(font.fname)), None)


def _weight(weight: int | str) -> int:
    from matplotlib.font_manager import weight_dict

    return weight if isinstance(weight, int) else weight_dict.get(weight, 400)


@cache
def _letters(file: str) -> frozenset[int]:
    """Return the code points that a font has an outline for; none if it cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


def _number(letter: str) -> str:
    code = ord(letter)
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
