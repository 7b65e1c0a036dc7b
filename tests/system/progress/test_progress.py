"""One bar on a terminal, lines anywhere else, and one line at the end of the outermost phase."""

import io
import logging
import os
import pty
import re
import select
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llama_peft.system import progress, terminal
from llama_peft.system.progress import Phase, screens, words
from llama_peft.system.progress.downloads import download
from tests.support.hub.server import Hub, serve
from tests.support.paths import ROOT


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (progress, screens, words):
        monkeypatch.setattr(module, "time", found)
    return found


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "progress" in one.name]


def test_a_long_work_writes_a_line_now_and_then(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Phase("training", "step", 7200) as phase:
        for step in range(7200):
            clock.now += 1
            phase.tell("loss", 1 / (step + 1))
            phase.advance()
    *between, last = lines_of(caplog)
    assert "training: 10 of 7,200 steps (0 %), loss 0.1, 1.0 steps/s, 2 h 0 min" in between[0]
    assert 10 < len(between) < 40 and last.startswith("training: 7,200 steps in 2 h 0 min")


def test_only_the_outermost_of_nested_phases_leaves_a_line(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Phase("outer", "number", 1) as outer, Phase("inner", "example", 5) as inner:
        clock.now += 5
        inner.advance(5)
        outer.advance()
    with Phase("short", "example", 5) as short:
        clock.now += 0.5
        short.advance(5)
    with pytest.raises(ZeroDivisionError), Phase("failed", "example", 5) as failed:
        clock.now += 5
        failed.advance()
        raise ZeroDivisionError
    (said,) = lines_of(caplog)
    assert said.startswith("outer: 1 number in 5.0 s")


WORK = """
import logging, sys, time
from llama_peft import cli
from llama_peft.errors import UserError
from llama_peft.system import terminal
from llama_peft.system.progress import Phase
import typer
app = typer.Typer()

@app.command()
def work() -> None:
    log = logging.getLogger("llama_peft.work")
    with Phase("training", "step", 10) as phase:
        for step in range(10):
            time.sleep(0.11)
            phase.tell("loss", 0.5)
            with Phase("validation", "batch", 2) as inner:
                inner.advance(2)
            phase.advance()
            if step == 3:
                log.info("a line of the log " + "x" * 100)
                terminal.say("a line on standard output \\x1b[2J")
            if step == 6:
                terminal.interrupt("a signal")
    generator = left_open()
    next(generator)
    raise UserError("it failed")

def left_open():
    with Phase("predicting", "example", 10) as phase:
        phase.advance()
        yield

sys.argv = ["work", "--"]
cli.run(app)
"""


def in_a_terminal(columns: int = 80, **settings: str) -> str:
    """Run the work in a pseudo terminal and return all that it writes there."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "CI": ""} | settings
    child = subprocess.Popen(
        [sys.executable, "-c", WORK],
        cwd=ROOT, env=environment, stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    written = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            written += os.read(leader, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
    os.close(leader)
    assert child.wait() == 2, written
    return written.decode()


def screen_of(written: str) -> list[str]:
    """Return the lines that a terminal shows in the end: it knows what rich and we use."""
    rows, row, column = [""], 0, 0
    for sign in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\s\S]", written):
        if sign == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif sign == "\r":
            column = 0
        elif sign == "\x1b[2K":
            rows[row] = ""
        elif found := re.fullmatch(r"\x1b\[(\d*)A", sign):
            row -= int(found[1] or 1)
        elif not sign.startswith("\x1b"):
            rows[row] = rows[row].ljust(column)[:column] + sign + rows[row][column + 1 :]
            column += 1
    return [one.rstrip() for one in rows]


def test_a_terminal_shows_a_bar_and_everything_else_above_it() -> None:
    written = in_a_terminal()
    assert re.search(r"training.*━.*\d/10 steps, .* left", written)
    shown = screen_of(written)
    assert f"a line of the log {'x' * 100}" in shown  # not broken, so that it can be copied
    assert r"a line on standard output \x1b[2J" in shown and "a signal" in shown
    ended = [one for one in shown if one.startswith("training: 10 steps in 1.")]
    assert len(ended) == 1 and ended[0].count("loss 0.5") == 1
    assert [one for one in shown if one][-1] == "error: it failed"
    assert sum("━" in one for one in shown) == 1  # the one that the signal came into
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {"CI": "true"}])
def test_no_line_is_replaced_where_none_can_be(settings: dict[str, str]) -> None:
    written = in_a_terminal(**settings)
    assert "\x1b" not in written.replace("\\x1b", "") and "\r" not in written.replace("\r\n", "\n")
    assert "training: 10 steps in 1." in written and "error: it failed" in written


def test_colours_can_be_left_out() -> None:
    assert not re.search(r"\x1b\[[\d;]*m", in_a_terminal(60, NO_COLOR="1"))


def test_each_line_of_one_of_several_runs_begins_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_name", "")
    terminal.share("mine\x1b")
    terminal.complain("first", "second")
    terminal.say("a result")
    said = capsys.readouterr()
    assert said.err == "mine\\x1b | first\nmine\\x1b | second\n" and said.out == "a result\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(progress._chosen(), screens.Lines)


def test_a_notebook_replaces_the_current_line(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot move the cursor to another line."""
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.delenv("CI", raising=False)
    with Phase("predicting", "example", 4) as phase:
        for _ in range(4):
            clock.now += 1
            phase.advance()
        terminal.complain("a warning")
    said = capsys.readouterr().err
    assert "\x1b" not in said and "predicting ██████░░░░░░" in said
    first, second, rest = screen_of(said)
    assert (first, rest) == ("a warning", "")
    assert second.startswith("predicting: 4 examples in 4.0 s")


def test_a_download_is_a_phase(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own function downloads; nothing is drawn by tqdm, and loading is not counted."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it is on this machine
    caplog.set_level(logging.INFO)
    hub, received = Hub(), io.BytesIO()
    hub.add("open/model", {"file.bin": bytes(40_000_000)})
    written = received.write

    def write(part: bytes) -> int:
        clock.now += 8
        return written(part)

    received.write = write  # type: ignore[method-assign]
    with serve(hub), download() as bar:
        http_get(f"{hub.endpoint}/open/model/resolve/main/file.bin", received, tqdm_class=bar)
        clock.now += 100
    between, last = lines_of(caplog)
    assert re.match(r"download: \d+ of 40 MB \(\d+ %\), .* s left", between), between
    assert re.match("download: 40 MB in (24|32).0 s, ", last), last


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    terminal.LogLines().handle(logging.makeLogRecord({"msg": "a line"}))
