"""A guarded program ends with whoever started it, however that one ends, and with it what it has started."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from llama_peft.system.processes import guard
from tests.support import forked
from tests.support.paths import ROOT

from .test_launch import lives

SERVER = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
place = pathlib.Path(sys.argv[1])
place.with_suffix(".new").write_text(f"{os.getpid()} {child.pid}")
place.with_suffix(".new").rename(place)
time.sleep(600)
"""
"""Stands for a server that has started a process of its own."""
PARENT = """
import sys, tempfile, time
from llama_peft.system.processes import guard
guard.start([sys.executable, "-c", *sys.argv[1:]], tempfile.TemporaryFile(), {})
time.sleep(600)
"""


def started(place: Path) -> list[int]:
    forked.until(place.is_file)
    return [int(pid) for pid in place.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_it_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-c", PARENT, SERVER, str(tmp_path / "pids")]
    with subprocess.Popen(words, cwd=ROOT) as parent:
        pids = started(tmp_path / "pids")
        assert len(pids) == 2 and all(map(lives, pids))
        parent.send_signal(number)
    forked.until(lambda: not any(map(lives, pids)), 20)


def test_it_is_ended_when_it_is_no_longer_needed(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as log:
        words = [sys.executable, "-c", SERVER, str(tmp_path / "pids")]
        process = guard.start(words, log, {})
        pids = started(tmp_path / "pids")
        guard.end(process)
        assert not any(map(lives, pids))


def test_its_words_and_its_exit_code_are_the_program_s(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as log:
        said = "import os; print(os.environ['KEY'], flush=True); os.kill(os.getpid(), 9)"
        process = guard.start([sys.executable, "-c", said], log, {"KEY": "a value"})
        assert process.wait() == 128 + 9
        missing = guard.start([str(tmp_path / "nothing")], log, {})
        assert missing.wait() == 127
        guard.end(missing)
        log.seek(0)
        lines = log.read().decode().splitlines()
    assert lines == ["a value", f"{tmp_path / 'nothing'}: No such file or directory"]
