"""One honest bar for each phase of the work, and one line at its end.

    with Phase("features", "text", total=1200) as phase:
        for batch in batches:
            ...
            phase.advance(len(batch))

On a terminal and in a notebook it is a bar, anywhere else a line of the log now and then. Phases may
be nested: the innermost one is shown, and only the outermost one leaves a line.
"""

import os
import sys
import time
from types import TracebackType
from typing import Self

from llama_peft.system import terminal
from llama_peft.system.processes import job
from llama_peft.system.progress.screens import Lines, Notebook, Screen, Terminal
from llama_peft.system.progress.words import Work, summary

_SHORTEST = 1.0
"""Seconds below which a phase leaves no line."""
_open: list["Phase"] = []
"""The phases that have begun, the innermost last."""
_screen: Screen = Lines()


class Phase:
    """A piece of work that is shown while it goes on."""

    def __init__(self, name: str, unit: str, total: int = 0) -> None:
        self.work = Work(name=name, unit=unit, total=total)

    def __enter__(self) -> Self:
        global _screen
        if not _open:
            _screen = _chosen()
        _open.append(self)
        self.work.began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(failed=kind is not None)

    def end(self, failed: bool = False) -> None:
        """End the phase, and say how it went unless it failed. At the end of the block nothing is left to do."""
        if self not in _open:
            return
        del _open[_open.index(self) :]  # those inside, too, if an error has ended them
        if not _open:
            _screen.close()
            if not failed and self.work.own and self.work.seconds >= _SHORTEST:
                _screen.tell(summary(self.work))

    def begin(self, total: int, done: int = 0) -> None:
        """Set how much there is to do, and how much of it was done before. The clock starts here."""
        self.work.total, self.work.start, self.work.done = total, done, done
        self.work.began = time.monotonic()
        self._show()

    def skip(self, count: int) -> None:
        """Count what was done before this process."""
        self.work.start += count
        self.advance(count)

    def advance(self, count: int = 1) -> None:
        """Count what has just been done."""
        self.reach(self.work.done + count)

    def reach(self, done: int) -> None:
        """Set how much is done."""
        self.work.done = done
        self._show()

    def tell(self, name: str, value: float) -> None:
        """Set a number that is shown, such as the loss."""
        self.work.facts[name] = value

    def forget(self, name: str) -> None:
        """Show a number no longer."""
        self.work.facts.pop(name, None)

    def _show(self) -> None:
        if _open and _open[-1] is self and self.work.total:
            _screen.show(self.work)


def close() -> None:
    """Take away what is shown: an error has ended the work."""
    _open.clear()
    _screen.close()


def _chosen() -> Screen:
    """Return where work is shown: by one process of several, and not in CI, whose logs are read later."""
    if not job.is_main() or os.environ.get("CI") or terminal.is_shared():
        return Lines()
    if _in_notebook():
        return Notebook()
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return Terminal() if sys.stderr is not None and sys.stderr.isatty() and not is_dumb else Lines()


def _in_notebook() -> bool:
    """Return whether a kernel of Jupyter, Colab or Kaggle runs this: a shell of IPython has none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
