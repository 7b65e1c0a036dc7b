"""Everything that is printed passes here: control characters become visible, secrets are masked.

Text from data, files and error messages could otherwise move the cursor, rename the window, hide
what follows, or turn the order of letters around.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable

from llama_peft.system.secrets import masked

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Control characters, those that set the direction of text, and those that nobody can see. The
joiners that some scripts need to be spelled (U+200C, U+200D) stay as they are.
"""
_BREAKS = re.compile("[\t\n]")


def visible(text: str) -> str:
    r"""The text with control characters as escapes such as \x1b. Tabs and line feeds stay."""
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    r"""The text on one line: tabs and line feeds become escapes such as \n too."""
    return _BREAKS.sub(_escape, visible(text))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    """The text as it may be printed: visible, and without secrets."""
    return visible(masked(text))


def say(text: object) -> None:
    """Print a text on standard output."""
    print(printable(str(text)))


def complain(text: object) -> None:
    """Print a text on standard error."""
    print(printable(str(text)), file=sys.stderr)


def listed(names: Iterable[str]) -> str:
    """Names from data in one line, with commas."""
    return ", ".join(map(one_line, names))


def as_json(value: object, indent: int | None = None) -> str:
    r"""A value as JSON in which control characters are escapes such as \u202e, so the value is the
    same.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)


class LogFormatter(logging.Formatter):
    """Log lines as they may be printed."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
