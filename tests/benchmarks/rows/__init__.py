"""What rows cost: memory and time of commands on synthetic files of growing size.

Every command runs as a user runs it, in a process of its own, and its highest resident memory and its
CPU seconds are those that the system counted. `base_peak_bytes` and `base_cpu_seconds`
are those of the same command on FEWEST rows: what the libraries take whatever they read. What comes before
the first step of a training (`prepare`) has the process of `data.py`, and its base is that process before.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import measure
from tests.support.paths import ROOT

from . import data, synthetic

FEWEST = 50
SIZES = {"classification": (20_000, 1_000_000), "generative_qa": (20_000, 200_000)}
"""Rows of each kind of file; the first is what the others are divided by. They take 35 minutes."""
_PREPARED = {"classification": "texts", "generative_qa": "questions"}

_LAUNCH = """
import json, os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
if status:
    sys.exit(1)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""A process that starts from a large one begins with the peak of that one, so a small one is between."""


class Cost(NamedTuple):
    """What a command took."""

    cpu_seconds: float
    peak_bytes: int


def run(sizes: dict[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """Measure every command on every size, and return what `rows.json` holds."""
    rows = [row for kind, own in (sizes or SIZES).items() for row in _of_kind(kind, own)]
    return measure.result("rows", rows, {}, fewest=FEWEST)


def _of_kind(kind: str, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        fixed = {name: cost for name, cost, _ in _commands(kind, FEWEST, Path(folder))}
    for size in sizes:
        found = data.in_a_process(_PREPARED[kind], size, "train")
        yield {
            "name": f"prepare/{kind}/{size}",
            "rows": size,
            "cpu_seconds": round(size * found["microseconds_a_row"] / 1e6, 2),
            "peak_bytes": found["peak_bytes"],
            "base_peak_bytes": found["bytes_before"],
            "base_cpu_seconds": 0.0,
            "written_bytes": 0,
        }
        with tempfile.TemporaryDirectory() as folder:
            for name, cost, written in _commands(kind, size, Path(folder)):
                yield {
                    "name": f"{name}/{kind}/{size}",
                    "rows": size,
                    "cpu_seconds": round(cost.cpu_seconds, 2),
                    "peak_bytes": cost.peak_bytes,
                    "base_peak_bytes": fixed[name].peak_bytes,
                    "base_cpu_seconds": round(fixed[name].cpu_seconds, 2),
                    "written_bytes": written.stat().st_size if written.is_file() else 0,
                }


def _commands(kind: str, size: int, folder: Path) -> Iterator[tuple[str, Cost, Path]]:
    """Yield the name and the cost of each command on files of a size, and what it wrote."""
    material = synthetic.write(kind, size, folder)
    asked = ["--task", str(material.recipe), "--data", str(material.truth)]
    systems = [folder / "first", folder / "second"]
    for predictions, output in zip(material.predictions, systems, strict=True):
        cost = measured("score", "--predictions", predictions, *asked, "--output", output)
    yield "score", cost, systems[-1] / "predictions.jsonl"
    yield "compare", measured("compare", *systems), folder / "nothing"
    page = folder / "report.html"
    yield "html", measured("html", *systems, "--output", page), page


def measured(*words: str | Path) -> Cost:
    """Run `llama-eval` and return its cost. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-c", _LAUNCH, sys.executable, "-m", "eval", *map(str, words)]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, check=True, text=True
    )
    seconds, kilobytes = json.loads(done.stdout.splitlines()[-1])
    return Cost(seconds, kilobytes * 1024)
