"""The ladder of the README, as one command and each of its rungs alone: what the one command saves.

One command loads the data once, computes states once for all heads, and measures as many rungs at a
time as there are cores. Alone, each rung is a command of its own in a fresh folder, with every core,
one after the other. They are timed for one seed, since another one changes no shape. What tuning costs
elsewhere is measured by the one command only.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..material import SHARED

SEEDS, SIZES, ALL = [1, 2, 3], [64, 256, 1024], 2048
MOST_REPEATS = 5.0
"""How often a ladder reads a small part of the training examples at most; else the root of the ratio."""
PARTS = {
    part: str(SHARED / f"data/sst2/{name}.tsv")
    for part, name in [("train", "train"), ("test", "dev")]
}


def measured(base: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return scores and seconds of the whole ladder, and seconds of each rung alone.

    settings: further ones for both, as on a command line.
    """
    given = [f"model.model_name_or_path={base}", "train.use_cpu=true", "dataset.path=null"]
    given += [f"dataset.parts={json.dumps(PARTS)}", "eval.splits=[test]"]
    given += ['dataset.columns={"text": ["sentence", "content"], "label": "label"}', *settings]
    jobs = os.cpu_count() or 1
    with TemporaryDirectory() as place:
        whole, sizes = Path(place, "whole/run"), json.dumps([*SIZES, "all"])
        keys = [
            f"dataset.max_train_samples={ALL}",
            f"ladder.seeds={SEEDS}",
            f"ladder.sizes={sizes}",
        ]
        said, seconds = _run([*given, *keys, "--jobs", str(jobs)], whole)
        alone = {
            _name(rung, size): _run([*given, *words], Path(place, _name(rung, size), "run"))[1]
            for rung, size, words in _rungs()
        }
        measurements = _scores(whole)
    every = sum(
        its * len(SEEDS if name.startswith(("head", "tuned")) else "1")
        for name, its in alone.items()
    )
    return {
        "settings": list(settings),
        "jobs": jobs,
        "seconds": seconds,
        "seconds_alone": alone,
        "seconds_every_rung_alone": round(every),
        "times_less": round(every / seconds, 2),
        "measurements": measurements,
        "verdict": said,
    }


def _rungs() -> Iterator[tuple[str, int, list[str]]]:
    """Yield each rung and size, and the words that measure it alone."""
    for rung in ("majority", "tf-idf", "zero-shot", "few-shot", "head", "tuned"):
        for size in [*SIZES, ALL] if rung in ("tf-idf", "head", "tuned") else [ALL]:
            words = [f"dataset.max_train_samples={size}", "dataset.sampling=nested"]
            words += ["--only", rung, f"ladder.seeds={SEEDS[:1]}", "ladder.forgetting=false"]
            if rung == "tuned":
                epochs = min(MOST_REPEATS, round(math.sqrt(ALL / size), 2))
                words += [f"train.num_train_epochs={epochs}"]
            yield rung, size, words


def _name(rung: str, size: int) -> str:
    return f"{rung}-{size}"


def _run(words: Sequence[str], folder: Path) -> tuple[list[str], int]:
    """Return what a command prints, and its seconds from start to end."""
    command = [sys.executable, "-m", "llama_peft", "run", "smollm2-sst2"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, f"train.output_dir={folder}", *words],
        stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "120"}, check=True, text=True,
    )  # fmt: skip
    seconds = round(time.perf_counter() - started)
    print(folder.parent.name, seconds, flush=True)
    return done.stdout.splitlines(), seconds


def _scores(run: Path) -> list[dict[str, Any]]:
    found = []
    for place in sorted(run.rglob("results.json")):
        results = json.loads(place.read_text())
        parts = [
            one for one in place.parent.relative_to(run).parts if one not in ("ladder", "tuned")
        ]
        accuracy = next(iter(results["results"].values()))["accuracy"]
        name = "-".join(parts) or "tuned"
        found.append(
            {"measurement": name, "accuracy": round(accuracy, 4), "costs": results["costs"]}
        )
    return found
