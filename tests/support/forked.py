"""Commands in forked children, which share what this process has imported: they start in a moment, and can be killed."""

import functools
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

from tqdm import tqdm

from llama_peft import cli

_LIBRARIES = (
    "trl.trainer.sft_trainer",
    "bitsandbytes",
    "datasets",
    "sklearn.model_selection",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "llama_peft.__main__",
    "llama_peft.training.features.head",
    "llama_peft.training.trainer",
    "llama_peft.training.fit",
    "llama_peft.training.tree_trainer",
    "eval.__main__",
    "eval.harness",
    "eval.report",
    "eval.report.page.page",
    "eval.ladder.steps",
    "eval.ladder.verdict",
    "eval.predictors.tf_idf",
    "llama_peft.inference.validation",
    "llama_peft.ladder.walk",
    "llama_peft.prefix_tree.decode",
    "llama_peft.survey.own_folder",
    "llama_peft.system.compiling.blocks",
    "llama_peft.training.processes.start",
    "llama_peft.tiny.generator",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "nltk.translate.meteor_score",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
    "rouge_score.rouge_scorer",
    "sacrebleu.tokenizers.tokenizer_13a",
    "torch.utils.serialization",
)
"""Imported before the first child is forked, so that a command takes a fraction of a second."""


@functools.cache
def import_libraries() -> None:
    """Import what commands import, so that no child has to."""
    for name in _LIBRARIES:
        importlib.import_module(name)


def start(
    words: Sequence[str],
    log: Path,
    program: str = "llama_peft",
    hook: Callable[[], object] | None = None,
) -> int:
    """Begin a command of llama_peft or eval in a child; returns its process id. `hook` runs in it first."""
    import_libraries()

    def command() -> None:
        sys.argv = [program, *words]
        if hook is not None:
            hook()
        if program == "eval":
            from eval.__main__ import app
        else:
            from llama_peft.__main__ import app
        cli.run(app)

    return fork(command, log)


def run(
    words: Sequence[str],
    log: Path,
    program: str = "llama_peft",
    hook: Callable[[], object] | None = None,
) -> tuple[int, str]:
    """A command from start to end: its exit code (if negative, the signal that killed it), and all
    that it printed.
    """
    return ended(start(words, log, program, hook)), log.read_text("utf-8", "replace")


def ended(child: int) -> int:
    """Wait for a child; returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_after(further: int) -> None:
    """In a child: kill -9 while it predicts, after `further` more predictions have reached the file."""
    from llama_peft.inference import unfinished

    plain, done = unfinished._stored, count()

    def deadly(*of: object) -> object:
        if next(done) == further:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*of)

    unfinished._stored = deadly


def fork(work: Callable[[], object], log: Path) -> int:
    """Begin work in a child, all that it prints in `log`; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    _own_locks(tqdm)
    if state := sys.modules.get("accelerate.state"):  # the parent was one process of a job of one
        state.AcceleratorState._reset_state(reset_partial_state=True)
    gc.freeze()  # what was there before is no garbage of the child's: looking through it takes half of its time
    try:
        with log.open("w") as file:
            sys.stdout = sys.stderr = file
            for descriptor in (1, 2):  # what is written past Python too
                os.dup2(file.fileno(), descriptor)
            logging.getLogger().handlers.clear()  # those of pytest
            work()
            code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        with log.open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def ranks(
    count: int, start: Callable[[Callable[[], object], Path], int], folder: Path
) -> list[int]:
    """Begin as many processes as torchrun would, with what it would set; returns their exit codes.

    start: begins one, which calls its first argument before anything else, and logs to its second.
    """
    port = str(free_port())
    children = []
    for rank in range(count):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        settings = {name: str(value) for name, value in names.items()} | {
            "MASTER_ADDR": "127.0.0.1"
        }
        children.append(
            start(functools.partial(os.environ.update, settings), folder / f"rank-{rank}.log")
        )
    return [ended(child) for child in children]


class Rank:
    """A forked process of `--processes`, as `launch` would start a program: it shares what is imported."""

    def __init__(
        self,
        command: Sequence[str],
        rank: int,
        environment: Mapping[str, str],
        folder: Path,
        prints: bool,
    ) -> None:
        def hook() -> None:
            os.setsid()
            os.environ.update(environment)

        self.returncode: int | None = None
        self.pid = start(command[3:], folder / f"{rank}.log", command[2], hook)

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self) -> int:
        until(lambda: self.poll() is not None)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for what another process does; a machine may be slow, so this is no measure of it."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"waited {seconds} s for nothing"
        time.sleep(0.002)


def free_port() -> int:
    """For processes that start in a moment: of those that no system gives to whoever asks for any, and no other test takes."""
    for port in range(10_000 + os.getpid() % 20_000, 32_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no port is free")


def num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def is_running(child: int) -> bool:
    """Whether a child goes on; one that has ended is waited for."""
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def _own_locks(bar: type[tqdm]) -> None:
    """tqdm's lock is one of all processes: a child that is killed holding it would stop every later one."""
    bar.set_lock(threading.RLock())
    for kind in bar.__subclasses__():
        _own_locks(kind)
