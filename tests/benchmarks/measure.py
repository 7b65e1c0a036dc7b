"""The clock and the memory gauge: contestants run in turns, every turn one repeat of each.

Turns (A B C A B C, not A A B B C C) let a busy machine's noise fall on all alike, and a ratio is
taken within a turn. On a CPU ratios are of CPU seconds, which other processes hardly touch; on CUDA
of wall seconds, where the CPU only waits.
"""

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from llama_peft.model.backbone import first_line
from llama_peft.system.memory import free_memory, is_out_of_memory, peak_memory
from tests.support.paths import ROOT

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")


class Prepared(NamedTuple):
    """A model, and what is to be timed on it."""

    model: torch.nn.Module | None
    """None if it computes in another process: then its tokens are not counted."""
    run: Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to do the same work; `prepare` builds a fresh model, outside the clock."""

    name: str
    prepare: Callable[[], Prepared]
    once: bool = False
    """Only in the first turn: it informs, no ratio needs its spread."""


class Sample(NamedTuple):
    """One repeat of one contestant."""

    wall_seconds: float
    cpu_seconds: float
    tokens: int
    """Computed by the model, padding included."""
    peak_bytes: int
    """Most held at once: by the GPU's tensors, or on a CPU by the whole process."""


@dataclass
class Measured:
    """All repeats of one contestant and what its last run returned."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    outcome: Any = None
    failure: str | None = None
    """Why it has no further samples."""

    @property
    def median(self) -> float:
        """Seconds of the middle repeat."""
        return float(statistics.median(clock(sample) for sample in self.samples))

    def row(self, examples: int, **facts: Any) -> dict[str, Any]:
        """Its row in the results."""
        seconds = [clock(sample) for sample in self.samples]
        return {
            "name": self.name,
            "examples": examples,
            "tokens": self.samples[-1].tokens,
            **facts,
            "wall_seconds": spread([sample.wall_seconds for sample in self.samples]),
            "cpu_seconds": spread([sample.cpu_seconds for sample in self.samples]),
            "examples_per_second": spread([examples / second for second in seconds]),
            "tokens_per_second": spread([sample.tokens / clock(sample) for sample in self.samples]),
            "peak_bytes": spread([sample.peak_bytes for sample in self.samples]),
        }


def clock(sample: Sample) -> float:
    """The seconds that rates and ratios are of."""
    return sample.wall_seconds if torch.cuda.is_available() else sample.cpu_seconds


def in_turns(contestants: Sequence[Contestant], repeats: int) -> dict[str, Measured]:
    """Run every contestant once a turn. Raises RuntimeError if one of them fails."""
    *_, measured = turns(contestants, repeats)
    if failed := [one for one in measured.values() if one.failure]:
        raise RuntimeError(f"{failed[0].name}: {failed[0].failure}")
    return measured


def turns(contestants: Sequence[Contestant], repeats: int) -> Iterator[dict[str, Measured]]:
    """Run every contestant once a turn, and yield all that is measured after each sample.

    A contestant that fails keeps the samples that it has, and is left out from then on.
    """
    measured: dict[str, Measured] = {}
    for turn in range(repeats):
        for contestant in contestants:
            one = measured.setdefault(contestant.name, Measured(contestant.name))
            if one.failure or (turn and contestant.once):
                continue
            try:
                one.outcome, sample = _timed(contestant.prepare())
                one.samples.append(sample)
            except Exception as error:
                one.failure = failure(error)
            if one.failure:
                free_memory()  # the exception, which held tensors, is gone
            yield measured


def failure(error: Exception) -> str:
    """What went wrong, in one line."""
    ran_out = "out of memory: " if is_out_of_memory(error) else ""
    return f"{ran_out}{type(error).__name__}: {first_line(error)}"[:300]


def rows(
    measured: Mapping[str, Measured], examples: int, steps: Callable[[Any], int] | None = None
) -> list[dict[str, Any]]:
    """The rows of all contestants in the results; one without a sample says why.

    steps: from what a run returns to its optimizer steps.
    """
    found = []
    for one in measured.values():
        row: dict[str, Any] = {"name": one.name}
        if one.samples:
            row = one.row(examples, **({"optimizer_steps": steps(one.outcome)} if steps else {}))
        found.append(row | ({"failure": one.failure} if one.failure else {}))
    return found


def _timed(prepared: Prepared) -> tuple[Any, Sample]:
    with _counted(prepared.model) as tokens:
        reset_peak()
        wait()
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = prepared.run()
        wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return outcome, Sample(wall, cpu, sum(tokens), peak())


@contextmanager
def _counted(model: torch.nn.Module | None) -> Iterator[list[int]]:
    """How many tokens each pass embeds: what the model computes, whoever calls it."""
    tokens: list[int] = []
    if model is None:
        yield tokens
        return
    base = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    embedding = base.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, args: tokens.append(args[0].numel()))
    try:
        yield tokens
    finally:
        hook.remove()


def wait() -> None:
    """Wait for the GPU to finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Forget the peak so far, and what the allocators hold but nobody uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):  # glibc keeps what was freed, unless told
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux only; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak() -> int:
    """The most bytes held since `reset_peak`: by the GPU's tensors, or on a CPU by the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_memory()
    lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Minimum, median, maximum, and the repeats that they are of."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "repeats": list(values),
    }


def ratios(
    measured: Mapping[str, Measured], ours: str, against: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Seconds of each of `against` (ratio's name -> contestant) over ours, turn by turn.

    Only what both have measured counts.
    """
    return {
        name: spread(
            [
                clock(other) / clock(own)
                for other, own in zip(measured[rival].samples, measured[ours].samples, strict=False)
            ]
        )
        for name, rival in against.items()
        if all(name in measured and measured[name].samples for name in (rival, ours))
    }


def result(
    name: str,
    rows: Sequence[dict[str, Any]],
    ratio_spreads: Mapping[str, dict[str, Any]],
    **facts: Any,
) -> dict[str, Any]:
    """What a results file holds."""
    return {
        "name": name,
        "ratios": {key: value["median"] for key, value in ratio_spreads.items()},
        "ratio_spreads": dict(ratio_spreads),
        "seconds_are": "wall" if torch.cuda.is_available() else "cpu",
        **facts,
        "rows": list(rows),
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            **{library: _version(library) for library in _LIBRARIES},
        },
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        # A copy without git is told its commit.
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
        or os.environ.get("COMMIT", "unknown"),
    }


@cache
def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


@cache
def _said(*command: str) -> str | None:
    """What a command prints; None if it is not on this machine or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Write a result under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['name']}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return partial.replace(path)


def hardware() -> dict[str, Any]:
    """The machine, and its GPU if it has one."""
    found: dict[str, Any] = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        found["cpu"] = names[0].split(":")[1].strip() if names else platform.processor()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_bytes"] = torch.cuda.get_device_properties().total_memory
        found["cuda"] = torch.version.cuda
        found["driver"] = _said(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
        )
    return found
