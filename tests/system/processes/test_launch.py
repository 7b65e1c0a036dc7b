"""Several processes start, end and fail as one, and none is left running."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from llama_peft.errors import Died, Stopped, UserError
from llama_peft.system import terminal
from llama_peft.system.processes import launch as launching
from llama_peft.system.processes.launch import launch, launch_apart
from tests.support import forked

PROGRAM = "tests.system.processes.program"


def pids(folder: Path) -> dict[int, int]:
    """The processes that have begun, by rank."""
    files = [path for path in folder.glob("*-of-*") if path.read_text()]
    return {int(path.name.split("-")[0]): int(path.read_text()) for path in files}


def lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    return False


def meanwhile(deed: Callable[[], object]) -> None:
    threading.Thread(target=deed).start()


def test_all_know_of_one_another_and_end_well(tmp_path: Path) -> None:
    launch([str(tmp_path)], 2, PROGRAM)
    assert sorted(path.name for path in tmp_path.glob("*-of-*")) == ["0-of-2", "1-of-2"]


def test_a_mistake_of_any_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        launch([str(tmp_path), "1:mistake", "0:wait"], 2, PROGRAM)
    assert caught.value.args == ("no such file", "look there")
    assert not any(map(lives, pids(tmp_path).values()))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_named_and_the_others_end_in_seconds(tmp_path: Path, rank: int) -> None:
    def kill() -> None:
        forked.until(lambda: len(pids(tmp_path)) == 2)
        nonlocal killed_at
        killed_at = time.monotonic()
        os.kill(pids(tmp_path)[rank], signal.SIGKILL)

    killed_at = 0.0
    meanwhile(kill)
    with pytest.raises(Died, match=rf"process {rank} of the 2 .* killed by signal 9 \(SIGKILL\)"):
        launch([str(tmp_path), "all:wait"], 2, PROGRAM)
    assert time.monotonic() - killed_at < 5
    assert not any(map(lives, pids(tmp_path).values()))


def test_a_fault_of_a_process_without_a_terminal_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Died, match=r"process 1 of the 2 .* ended with exit code 1"):
        launch([str(tmp_path), "0:wait", "1:fault"], 2, PROGRAM)
    assert "ValueError: a defect" in capfd.readouterr().err


def test_the_lines_of_a_shared_terminal_begin_with_the_name_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_name", "")
    terminal.share("mine")
    launch([str(tmp_path), "all:say"], 2, PROGRAM)
    assert capfd.readouterr().err == "mine | a line\n"


def test_a_signal_reaches_each_process_once(tmp_path: Path) -> None:
    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    def send() -> None:
        forked.until(lambda: len(pids(tmp_path)) == 2)
        time.sleep(0.1)  # the handlers of both are there
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    meanwhile(send)
    try:
        with pytest.raises(Stopped):
            launch([str(tmp_path), "all:wait"], 2, PROGRAM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [(tmp_path / f"signals-{rank}").read_text() for rank in range(2)] == ["1", "1"]


def test_a_process_that_was_stopped_stops_the_job(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught:
        launch([str(tmp_path), "0:stopped", "1:wait"], 2, PROGRAM)
    assert caught.value.signal_number == signal.SIGTERM


def test_the_processes_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    launcher = forked.fork(
        lambda: launch([str(tmp_path), "all:wait"], 2, PROGRAM), tmp_path / "log"
    )
    forked.until(lambda: len(pids(tmp_path)) == 2)
    os.kill(launcher, signal.SIGKILL)
    forked.ended(launcher)
    forked.until(lambda: not any(map(lives, pids(tmp_path).values())), 10)


def test_one_that_a_signal_does_not_end_is_given_a_limited_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for the process that the signal has ended."""
    monkeypatch.setattr(launching, "_GRACE", 0.2)
    words = "import signal, time; signal.signal(signal.SIGTERM, signal.{}); print(flush=True); time.sleep(60)"
    children = [
        subprocess.Popen([sys.executable, "-c", words.format(how)], stdout=subprocess.PIPE)
        for how in ("SIG_IGN", "SIG_DFL")
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline()
    started = time.monotonic()
    launching._stop(children, signal.SIGTERM, apart=False)
    assert time.monotonic() - started < 10 and children[0].poll() is None
    launching._kill(children)
    assert children[0].returncode == -signal.SIGKILL


APART = [{"RANK": "0"}, {"RANK": "1"}]


def test_processes_with_work_of_their_own_all_print(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch_apart([str(tmp_path), "all:say"], APART, PROGRAM)
    assert sorted(path.name for path in tmp_path.glob("*-of-*")) == ["0-of-1", "1-of-1"]
    assert capfd.readouterr().err.count("a line") == 2


def test_if_one_of_them_fails_the_others_save_their_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        launch_apart([str(tmp_path), "0:wait", "1:mistake late"], APART, PROGRAM)
    assert (tmp_path / "signals-0").read_text() == "1"


def test_with_work_of_its_own_each_has_the_time_that_its_step_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launching, "_GRACE", 0.1)
    words = "import signal, sys, time; signal.signal(signal.SIGTERM, {}); print(flush=True); time.sleep(60)"
    slow = "lambda *_: (time.sleep(0.5), sys.exit(3))"
    children = [
        subprocess.Popen([sys.executable, "-c", words.format(how)], stdout=subprocess.PIPE)
        for how in (slow, "signal.SIG_DFL")
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline()
    launching._stop(children, signal.SIGTERM, apart=True)
    assert [child.returncode for child in children] == [3, -signal.SIGTERM]
