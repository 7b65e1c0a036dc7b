"""Fixtures that several test files share. No test needs a network, a token or a GPU."""

import gc
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.paths import SHARED

gc.set_threshold(50_000, 20, 50)  # as the command lines do
# One thread a test: with busy cores two threads can be ten times slower. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TQDM_DISABLE"] = "1"  # bars of Trainer move the cursor, in logs too
# What pytest makes of asserts, and bytecode, is kept for the next run and for child processes: to make
# it takes each worker ten seconds. Some images switch this off.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest


def _reach_the_disk(file: Any) -> None:
    """No test cuts the power, so none waits for the disk, which takes milliseconds, thousands of times.
    What is not an open file is still an error; processes that are not forked wait.
    """
    os.fstat(file if isinstance(file, int) else file.fileno())


os.fsync = _reach_the_disk

# Under nohup the tests go on when a terminal is closed, as they should, but a handler, other than to
# ignore the signal, is not handed down to the programs that they start and close.
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Here and in every child process: a test that asks the network for anything fails (law 13).
NO_NETWORK = str(Path(__file__).parent / "support" / "no_network")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [NO_NETWORK, *filter(None, [os.environ.get("PYTHONPATH")])]
)
for name in (
    "HF_TOKEN",
    "COLUMNS",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
):  # tables are as wide as usual, and plain
    os.environ.pop(name, None)
runpy.run_path(str(Path(NO_NETWORK) / "sitecustomize.py"))

from llama_peft.recipe import Recipe
from tests.support import small

LONGEST = (
    "test_faults.py",
    "inference/test_real_text.py",
    "model/test_estimate.py",
    "export/test_push.py",
    "rehearsal/test_rehearsal.py",
    "system/compiling/test_blocks.py",
    "training/test_callbacks.py",
    "training/test_resume.py",
    "tokens/test_encoder.py",
    "test_benchmarks.py",
    "eval/test_several_labels_and_numbers.py",
    "training/processes/test_alike.py",
    "recipe/test_notebooks.py",
    "training/test_fit.py",
    "training/test_rows.py",
    "training/test_trainer.py",
    "recipe/test_packaged.py",
    "benchmarks/gpu/test_gpu.py",
)
"""Files that take long begin first, so that no worker waits for the last one to end."""

_frozen_at = 0


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist would begin with the files of the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    pytest_runtest_logfinish()


def pytest_runtest_logfinish() -> None:
    """Keep imported libraries out of the garbage collector: each training of a test looks through it
    several times, which takes half of the whole suite's time."""
    global _frozen_at
    if len(sys.modules) > _frozen_at + 100:
        gc.collect()
        gc.freeze()
        _frozen_at = len(sys.modules)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and the real tokenizer, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("real data (../shared) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a small random base of a family, with the embedded model's tokenizer, and returns its folder."""

    def make(family: str = "llama", **changes: Any) -> Path:
        return small.save_base(tmp_path_factory.mktemp(family), family, **changes)

    return make


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Path]) -> Path:
    """A small random base, which no test changes."""
    return make_base()


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """A recipe of a task on a base, small and on the CPU; keyword arguments are sections of their own."""
    return small.make_recipe
