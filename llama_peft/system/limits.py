"""Work on what a stranger wrote, under limits of time and memory: regular expressions and chat
templates can be made to run for ever.

Python cannot stop a function from outside, so the work is done in a process of its own, which can
be killed. On Windows, where no process can be forked, the work is done here, without the limits.
"""

import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llama_peft.errors import stop_signals

if TYPE_CHECKING:
    from pydantic import JsonValue

SECONDS = 5.0
BYTES = 512_000_000
"""What the work may take beyond the memory of this process."""


class LimitError(Exception):
    """Work that took too much time or memory, or that failed: why, in words."""


def limited(
    work: "Callable[[], JsonValue]", seconds: float = SECONDS, size: int = BYTES
) -> "JsonValue":
    """The result of `work`, which must be a value of JSON.

    Raises LimitError if the work takes longer or more memory, or raises an exception.
    """
    if sys.platform == "win32":
        try:
            return work()
        except Exception as error:
            raise LimitError(_said(error)) from None
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs Python code only
        child = os.fork()
    if child == 0:
        _work_and_exit(work, writer, size)
    os.close(writer)
    try:
        text = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if text is None:
        raise LimitError(f"it took longer than {seconds:g} seconds")
    if not text:  # the child was killed, by the system for its memory
        raise LimitError("it took too much memory")
    found = json.loads(text)
    if "error" in found:
        raise LimitError(str(found["error"]))
    result: JsonValue = found["result"]
    return result


def _work_and_exit(work: "Callable[[], JsonValue]", writer: int, size: int) -> None:
    """In the child: send the result, and end without running anything else of this program."""
    try:
        for number in stop_signals():
            signal.signal(number, signal.SIG_DFL)
        _limit_memory(size)
        try:
            answer = {"result": work()}
        except BaseException as error:
            answer = {"error": _said(error)}
        with os.fdopen(writer, "w", encoding="utf-8") as file:
            json.dump(answer, file)
    finally:
        os._exit(0)


def _limit_memory(size: int) -> None:
    """Let this process take no more than `size` bytes beyond what it has."""
    if sys.platform == "win32":  # nothing is forked there, so nothing comes here
        return
    import resource

    with suppress(OSError, ValueError):  # not Linux: the time still has a limit
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + size, hard))


def _read(reader: int, until: float) -> str | None:
    """Everything that a pipe holds until its end; None if the time is over first."""
    pieces: list[bytes] = []
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            break
        piece = os.read(reader, 1 << 16)
        if not piece:
            return b"".join(pieces).decode("utf-8")
        pieces.append(piece)
    return None


def _said(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it took too much memory"
    if isinstance(error, RecursionError):
        return "it never ends"
    return " ".join(str(error).split()) or type(error).__name__
