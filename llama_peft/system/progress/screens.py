"""The three ways to show work: a bar on a terminal, a bar in a notebook, lines anywhere else."""

import logging
import time
from typing import TYPE_CHECKING, Protocol

from llama_peft.system import terminal
from llama_peft.system.progress.words import Work, beside_bar, line

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

FIRST, LONGEST = 10.0, 600.0
"""Seconds until the first line, and between two lines at most. The longer a work takes, the fewer
lines it writes: the next one comes after a fifth of the time so far.
"""
_NARROW, _WIDE = 10, 24
_NOTEBOOK = 110
"""Columns of a bar in a notebook, whose width is not known."""


class Screen(Protocol):
    """Where work is shown. Only the innermost of nested works is."""

    def show(self, work: Work) -> None:
        """Show how far a work is."""

    def close(self) -> None:
        """Take away what is shown, before the summary or the end of the process."""

    def tell(self, text: str) -> None:
        """Print the summary of a work."""


class Lines:
    """A line of the log now and then: in files, in CI, and where several runs share a terminal."""

    def __init__(self) -> None:
        self._due: dict[int, float] = {}

    def show(self, work: Work) -> None:
        now = time.monotonic()
        due = self._due.setdefault(id(work), work.began + FIRST)
        if now >= due and work.done < work.total:  # at the end there is a summary
            self._due[id(work)] = now + min(max(FIRST, work.seconds / 5), LONGEST)
            log.info("%s", line(work))

    def close(self) -> None:
        self._due.clear()

    def tell(self, text: str) -> None:
        log.info("%s", text)


class Terminal:
    """A bar on the last line of a terminal. Everything else that is printed stands above it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def show(self, work: Work) -> None:
        if self._progress is None:
            self._progress = _progress()
            self._progress.start()
            terminal.show_above(self._above)
        shown = next(iter(self._progress.tasks), None)
        if shown is None or shown.fields["work"] is not work:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(terminal.printable(work.name), work=work)
        (task,) = self._progress.task_ids
        self._progress.update(task, total=work.total, completed=work.done)

    def _above(self, text: str) -> None:
        from rich.text import Text

        assert self._progress is not None
        self._progress.console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        terminal.show_above(None)
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def tell(self, text: str) -> None:
        terminal.complain(text)


def _progress() -> "Progress":
    """Return rich's bar, which draws itself four times a second."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    width = min(max(console.width // 5, _NARROW), _WIDE)

    class Words(ProgressColumn):
        max_refresh = 0.25

        def render(self, task: Task) -> Text:
            room = console.width - len(task.description) - width - 2
            return Text(beside_bar(task.fields["work"], room))

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(width),
        Words(Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )


class Notebook:
    """A bar in the output of a notebook's cell, where only the current line can be replaced.

    rich would need ipywidgets there.
    """

    _PAUSE = 0.5

    def __init__(self) -> None:
        self._drawn = 0.0

    def show(self, work: Work) -> None:
        terminal.show_above(self._above)
        if time.monotonic() - self._drawn < self._PAUSE:
            return
        self._drawn = time.monotonic()
        filled = _WIDE * work.done // max(work.total, 1)
        text = f"{work.name} {'█' * filled}{'░' * (_WIDE - filled)} "
        self._write((text + beside_bar(work, _NOTEBOOK - len(text)))[:_NOTEBOOK])

    def _above(self, text: str) -> None:
        self.close()
        terminal.complain(text)

    def close(self) -> None:
        terminal.show_above(None)
        if self._drawn:
            self._write("")
            self._drawn = 0.0

    def tell(self, text: str) -> None:
        terminal.complain(text)

    def _write(self, text: str) -> None:
        terminal.redraw(text.ljust(_NOTEBOOK))
