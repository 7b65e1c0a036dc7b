"""Everything that is printed passes here: control characters become visible, secrets are masked.

Text from data, files and error messages could otherwise move the cursor, rename the window, hide
what follows, turn the order of letters around, or begin a line that looks like one of ours. So
what is printed are lines: a line feed inside one came from data, and becomes visible too.
"""

import json
import logging
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TextIO

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


def printable(text: object) -> str:
    """A text as it may be printed: on one line, visible, and without secrets."""
    return one_line(masked(str(text)))


_PROGRAM = re.compile(r"(?<![\w/.-])llama-(?:peft|eval)(?= [a-z])")
_programs: dict[str, str] = {}
"""How our commands can be typed here, by their names, as the command line knows."""


def set_programs(programs: Mapping[str, str]) -> None:
    """Say how our commands can be typed here: messages then show them so."""
    _programs.clear()
    _programs.update(programs)


def typed(text: object) -> str:
    """A message whose commands can be typed here as they stand."""
    return _PROGRAM.sub(lambda name: _programs.get(name[0], name[0]), str(text))


_above: Callable[[str], None] | None = None
"""Prints a text above the progress bar; None while there is none."""
_name = ""
"""What begins each line on standard error, if several runs share a terminal."""


def show_above(printing: Callable[[str], None] | None) -> None:
    """Set what prints while a progress bar is shown; None if it is gone."""
    global _above
    _above = printing


def share(name: str) -> None:
    """Begin each line on standard error with a name, because other runs print there too."""
    global _name
    _name = f"{printable(name)} | "


def shared_name() -> str:
    """The name that begins each line; empty if no other runs print on this terminal."""
    return _name.removesuffix(" | ")


def is_shared() -> bool:
    """Whether other runs print on this terminal, so that nothing on it can be replaced."""
    return bool(_name)


def say(*lines: object) -> None:
    """Print lines on standard output."""
    _print("\n".join(map(printable, lines)), sys.stdout)


def complain(*lines: object) -> None:
    """Print messages on standard error."""
    _print("\n".join(_name + printable(typed(one)) for one in lines), sys.stderr)


def redraw(text: str) -> None:
    """Put a text in the place of the current line of standard error, in a notebook."""
    print(f"\r{printable(text)}\r", end="", file=sys.stderr, flush=True)


def interrupt(text: str) -> None:
    """Print a line at once, from the handler of a signal.

    Not by logging or print: the signal may have come in the middle of one of their lines.
    """
    before = "" if _above is None else "\n"  # the bar stays there, and goes on below
    with suppress(OSError):  # an error here would end the step
        os.write(2, f"{before}{_name}{printable(text)}\n".encode())


_is_stopping = False
"""Whether a signal has asked for an end: then no line is worth an error."""


def leave_closed() -> None:
    """From now on print nothing where a terminal was that has been closed, or a pipe to a program that
    has ended. Ctrl-C ends the `tee` of `... | tee log` too, perhaps a little later than this call.
    """
    global _is_stopping
    _is_stopping = True
    for stream in (1, 2):
        if _is_closed(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _is_closed(stream: int) -> bool:
    """Return whether nobody can read what is written to a stream any more."""
    try:
        os.write(stream, b"")
    except OSError:
        return True
    if sys.platform == "win32":
        return False
    asked = select.poll()  # Linux writes nothing into a broken pipe without an error
    asked.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _print(text: str, stream: TextIO) -> None:
    """Print a text, above the bar if one is shown where the stream goes."""
    try:
        if _above is not None and (stream is sys.stderr or stream.isatty()):
            _above(text)
        else:
            print(text, file=stream, flush=_is_stopping)
    except OSError:
        if not _is_stopping:
            raise
        leave_closed()


def listed(names: Iterable[str]) -> str:
    """Names from data in one line, with commas."""
    return ", ".join(map(one_line, names))


def say_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON on standard output. Except for secrets, it is read back as it was."""
    text = json.dumps(_without_secrets(value), ensure_ascii=False, indent=indent)
    unshown = "[^\x00-\x7e]" if "utf" not in (sys.stdout.encoding or "utf").lower() else _CONTROL
    _print(re.sub(unshown, _json_escape, text), sys.stdout)


def _without_secrets(value: object) -> object:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {_without_secrets(key): _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return re.sub("(....)", r"\\u\1", units)


def show_defect(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Print a traceback; this takes the place of `sys.excepthook`."""
    complain(*"".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"))


class LogRecord(logging.LogRecord):
    """A record whose text may be printed, whichever library logs it and whichever handler prints."""

    def getMessage(self) -> str:
        if self.exc_info and not self.exc_text:  # a formatter takes this text if it is there
            lines = "".join(traceback.format_exception(*self.exc_info)).rstrip("\n").split("\n")
            self.exc_text = "\n".join(map(printable, lines))
        return printable(typed(super().getMessage()))


class LogLines(logging.Handler):
    """Prints log lines as every other line: above a bar, and with the name of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record. What cannot be printed, on a full disk for example, ends nothing."""
        try:
            complain(*self.format(record).split("\n"))
        except Exception:
            self.handleError(record)
