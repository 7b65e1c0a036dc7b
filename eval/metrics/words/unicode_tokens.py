"""Splits text of any script into tokens, and says which texts the usual tokenisers cannot read.

Letters, digits and their marks form a word, as in Cyrillic, Greek, Arabic, Devanagari and Hangul.
In scripts that are written without spaces between words, each character with its marks is a token
of its own, as Chinese is split in the official evaluation of MLQA. Everything else is left out. On
ASCII text the tokens are exactly those of rouge-score.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

_FEW = 0.01
"""Up to this share of questions, one word of another script in a text changes no table."""
_WITHOUT_SPACES = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x312F),  # Han radicals and numerals, Hiragana, Katakana, Bopomofo
    (0x3190, 0x9FFF),  # Bopomofo, Katakana and Han
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0x1AFF0, 0x1B16F),  # Katakana, Hiragana
    (0x20000, 0x3FFFF),  # Han
)
_SPACELESS = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _WITHOUT_SPACES) + "]")  # fmt: skip


def tokens(text: str) -> list[str]:
    """The tokens of a text in lower case and in Unicode's form NFKC."""
    found: list[str] = []
    is_open = False
    """Whether the next letter belongs to the last token."""
    for character in unicodedata.normalize("NFKC", text.lower()):
        kind = unicodedata.category(character)[0]
        if kind == "M" and found:
            found[-1] += character
        elif kind not in "LN":
            is_open = False
        elif _SPACELESS.match(character):
            found.append(character)
            is_open = False
        elif is_open:
            found[-1] += character
        else:
            found.append(character)
            is_open = True
    return found


class Tokeniser:
    """The tokens as rouge-score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


def need_unicode(golds: Mapping[str, Sequence[str]]) -> bool:
    """Whether rouge-score's tokeniser finds nothing in the references of some questions."""

    def is_unreadable(gold: str) -> bool:
        return not re.search("[a-z0-9]", gold.lower()) and bool(tokens(gold))

    return _is_common(golds, is_unreadable)


def need_characters(golds: Mapping[str, Sequence[str]]) -> bool:
    """Whether the references of some questions are written without spaces between words."""
    return _is_common(golds, lambda gold: bool(_SPACELESS.search(gold)))


def _is_common(golds: Mapping[str, Sequence[str]], holds: Callable[[str], bool]) -> bool:
    asked = [answers for answers in golds.values() if any(answers)]
    return sum(any(map(holds, answers)) for answers in asked) > _FEW * len(asked)
