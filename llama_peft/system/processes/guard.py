"""Runs a program that must not outlive the process that needs it, however that one ends.

Run as a module, this is a process between the two. It ends the program, with whatever that has started,
when its standard input ends. The system closes that also for a process that is killed with `kill -9`.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil

_END = 20.0
"""Seconds that the program has to end before it is killed."""
_LOOK = 0.1
"""Seconds between two looks at the program."""


def start(
    words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a program and return the process that guards it, whose exit code is the program's.

    log: gets what the program prints. environment: added to that of this process.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, *words],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # no signal of the terminal reaches it
        env={**os.environ, **environment},
    )


def end(guard: "subprocess.Popen[bytes]") -> None:
    """End a program, and return when it has ended."""
    assert guard.stdin is not None
    with suppress(OSError):  # it has ended already
        guard.stdin.write(b".")  # a process that was forked meanwhile may hold the other end too
        guard.stdin.close()
    guard.wait()


def main(words: Sequence[str]) -> int:
    """Run a program until it ends, or until standard input has ended or holds something."""
    try:
        program = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", flush=True)
        return 127
    left = threading.Event()
    threading.Thread(target=_wait_for_end, args=(left,), daemon=True).start()
    while program.poll() is None and not left.wait(_LOOK):
        pass
    if program.poll() is None:
        _end(program.pid)
    code = program.wait()
    return 128 - code if code < 0 else code


def _wait_for_end(left: threading.Event) -> None:
    os.read(0, 1)
    left.set()


def _end(pid: int) -> None:
    """End a program with the processes that it has started."""
    with suppress(psutil.NoSuchProcess):
        program = psutil.Process(pid)
        family = [*program.children(recursive=True), program]
        for finish in (psutil.Process.terminate, psutil.Process.kill):
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    finish(one)
            _, family = psutil.wait_procs(family, _END)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
