"""Starts a command of ours in several processes of this machine, and ends them as one.

The variables are those of torchrun. It is not used itself, because it has one limit of time both for
a stop, which waits for the end of a step and a checkpoint, and for a process that has died, after
which the others wait for nothing.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.errors import Died, Stopped, UserError
from llama_peft.system import files
from llama_peft.system.processes.job import LAUNCHER, MISTAKE, NAME
from llama_peft.system.terminal import complain, shared_name

_GRACE = 60.0
"""Seconds that the others have, after a signal, when the first process has ended."""
_LOOK = 0.05
"""Seconds between two looks at the processes."""


def launch(words: Sequence[str], count: int, module: str = "llama_peft") -> None:
    """Run a module with these words in `count` processes, which share one piece of work, and return
    when all have ended.

    The first one prints here. Raises the UserError of a process, Died if one of them has ended in
    another way, and Stopped after a signal, which all of them get. None is left running.
    """
    port = str(_free_port())
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    _run([sys.executable, "-m", module, *words], ranks, apart=False)


def launch_apart(
    words: Sequence[str], environments: Sequence[Mapping[str, str]], module: str = "llama_peft"
) -> None:
    """Run a module with these words in as many processes as there are environments. Each has work of its
    own, so all of them print here, and if one fails the others save their step.

    Raises what `launch` raises.
    """
    _run([sys.executable, "-m", module, *words], environments, apart=True)


def _run(command: Sequence[str], environments: Sequence[Mapping[str, str]], apart: bool) -> None:
    children: list[subprocess.Popen[bytes]] = []
    count = len(environments)
    with TemporaryDirectory(prefix="llama-peft-") as place:
        folder = Path(place)
        try:
            for rank, environment in enumerate(environments):
                given = {**_environment(count, folder / _mistake(rank)), **environment}
                children.append(_start(command, rank, given, folder, apart or not rank))
            failed = _first_failed(children)
            if failed is not None and apart:
                complain("a job has failed, so the others end, each with its step saved")
                _stop(children, signal.SIGTERM, apart)
        except (Stopped, KeyboardInterrupt) as stop:
            number = stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT
            _stop(children, number, apart)
            raise
        finally:
            _kill(children)
        if failed is not None:
            raise _reason(failed, children[failed].returncode, count, folder)


def _start(
    command: Sequence[str], rank: int, environment: Mapping[str, str], folder: Path, prints: bool
) -> subprocess.Popen[bytes]:
    """Begin one process. A signal of the terminal does not reach it: only its launcher's do.

    prints: whether it prints here, and not into the folder.
    """
    with ExitStack() as open_files:
        log = None if prints else open_files.enter_context(open(folder / _log(rank), "wb"))
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip


def _environment(count: int, mistake: Path) -> dict[str, str]:
    """Return what every process reads of its job; the processor's cores are shared out."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        LAUNCHER: str(os.getpid()), MISTAKE: str(mistake), NAME: shared_name(),
    }  # fmt: skip


def _mistake(rank: int) -> str:
    return f"{rank}.json"


def _log(rank: int) -> str:
    return f"{rank}.log"


def _first_failed(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a process has failed and return its rank, or None if all have ended well.

    If several have failed since the last look, one that was killed is the cause.
    """
    while True:
        codes = [child.poll() for child in children]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return min(failed, key=lambda rank: (children[rank].returncode > 0, rank))
        if None not in codes:
            return None
        time.sleep(_LOOK)


def _stop(children: Sequence[subprocess.Popen[bytes]], number: int, apart: bool) -> None:
    """Pass a signal on, and wait until each process has saved its step. A second one ends the wait.

    Those that share their work end together. One that waits for another, which the signal met before
    its training, never would: so after the first end the others get a limited time.
    """
    for child in children:
        child.send_signal(number)
    limit = math.inf
    while None in (codes := [child.poll() for child in children]) and time.monotonic() < limit:
        if not apart and limit == math.inf and any(code is not None for code in codes):
            limit = time.monotonic() + _GRACE
        time.sleep(_LOOK)


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: after a death the others only wait for it, and what is finished is kept."""
    for child in children:
        child.kill()
    for child in children:
        child.wait()


def _reason(rank: int, code: int, count: int, folder: Path) -> BaseException:
    """Return what is raised for the process that failed first."""
    name = _mistake(rank)
    if code > 128:  # somebody sent it a signal, after which all of them stopped
        return Stopped(code - 128)
    if files.is_file(folder, name):
        return UserError(*json.loads(files.read_text(folder, name)))
    if code > 0 and files.is_file(folder, _log(rank)):  # else it is on the terminal already
        complain(*files.read_text(folder, _log(rank), "replace").splitlines())
    how = f"ended with exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"was killed by signal {-code} ({name})"
        if name == "SIGKILL":
            how += ", as the system does when memory runs out"
    return Died(
        f"process {rank} of the {count} of this command (numbered from 0) {how}, and the others were "
        "ended; checkpoints and finished predictions are kept, and the same command continues"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
