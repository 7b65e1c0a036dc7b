"""Memory and time of data by their number of rows: reading, splitting, sums, and the token ids of a training.

Each number of rows has a process of its own, because a peak is that of a process. Its libraries are loaded, and a few rows have
passed, before anything counts. `python -m tests.benchmarks --only data_rows` measures; so does
`python -m tests.benchmarks.rows.data KIND ROWS STEP`, which prints one row as JSON.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_peft import data, tiny
from llama_peft.recipe import Recipe
from llama_peft.training import setup
from llama_peft.training.rows import Row
from tests.benchmarks import material, measure
from tests.support.paths import ROOT

_USUAL = (
    "the of a and in to was is for on as with by he that at from his it an are were which this be has had also its their not "
    "first one but or two new who after other all been they more time year most some into only years during where when many "
    "used such three city made later would known world people over between part state"
)
_WORDS = _USUAL.split()
_ON_A_PASSAGE = 7
_FEW = 300
SIZES = {"texts": (20_000, 200_000, 1_000_000), "questions": (20_000, 100_000, 200_000)}
ENCODED = 100_000
"""No more rows are turned into token ids: that alone takes a millisecond a question."""


def run(sizes: dict[str, Sequence[int]], encoded: int = ENCODED) -> dict[str, Any]:
    """Measure and return the result."""
    rows = []
    for kind, counts in sizes.items():
        for count in counts:
            for step in ("validate", "train") if count <= encoded else ("validate",):
                rows.append(in_a_process(kind, count, step))
    largest = {
        f"{kind}_peak_vs_fewest": _peaks(rows, kind)[-1] / _peaks(rows, kind)[0] for kind in sizes
    }
    spreads = {name: measure.spread([value]) for name, value in largest.items()}
    return measure.result("data_rows", rows, spreads)


def _peaks(rows: Sequence[dict[str, Any]], kind: str) -> list[int]:
    """The peaks of reading and splitting, by the number of rows."""
    return [row["peak_bytes"] for row in rows if (row["kind"], row["step"]) == (kind, "validate")]


def in_a_process(kind: str, count: int, step: str) -> dict[str, Any]:
    """Measure one number of rows in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.rows.data", kind, str(count), step]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(kind: str, count: int, step: str) -> dict[str, Any]:
    """Measure one number of rows in this process."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (_written(Path(folder), kind, number) for number in (_FEW, count))
        _pass(few, step)
        measure.reset_peak()
        before = measure.peak()
        wall, cpu = time.perf_counter(), time.process_time()
        _pass(many, step)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = measure.peak()
    return {
        "name": f"{kind}, {step}",
        "kind": kind,
        "step": step,
        "rows": count,
        "peak_bytes": peak,
        "bytes_before": before,
        "bytes_a_row": round((peak - before) / count),
        "wall_seconds": round(wall, 2),
        "microseconds_a_row": round(cpu / count * 1e6, 1),
    }


def _pass(recipe: Recipe, step: str) -> Mapping[str, Sequence[Row]]:
    """Do what comes before the first step of a training, and return the rows of token ids."""
    dataset = data.load(recipe)
    data.split_sum(dataset)
    deque(data.record_pieces(dataset), maxlen=0)
    if step == "train":
        recipe = data.settled(recipe, dataset)
        encoded = setup.encode(recipe, dataset)
        encoded.widest(recipe)
        return encoded.rows
    return {}


def _written(folder: Path, kind: str, count: int) -> Recipe:
    file = folder / f"{count}.jsonl"
    rows = _texts if kind == "texts" else _questions
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows(random.Random(1), count))
    packing = {"packing": "none" if kind == "texts" else "prefix_tree"}
    return material.recipe(
        tiny.MODEL_DIR,
        task="classification" if kind == "texts" else "generative_qa",
        dataset={"path": str(file)},
        train={"use_cpu": True, **packing},
    )


def _texts(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        text = " ".join(rng.choices(_WORDS, k=rng.randint(8, 30)))
        yield {"id": f"t{number}", "text": text, "label": rng.choice("ab")}


def _questions(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    words: list[str] = []
    for number in range(count):
        if number % _ON_A_PASSAGE == 0:
            words = rng.choices(_WORDS, k=120)
        start = rng.randrange(110)
        yield {
            "id": f"q{number}",
            "context": " ".join(words),
            "question": " ".join(rng.choices(_WORDS, k=10)) + "?",
            "answers": [] if rng.random() < 0.3 else [" ".join(words[start : start + 2])],
        }


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
