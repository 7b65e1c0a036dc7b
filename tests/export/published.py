"""A run of the published baseline, made without training: for tests of its card."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import zeros

from eval import report
from eval.metrics.measure import classification_results
from llama_peft.recipe import dump_recipe, load_recipe
from llama_peft.system.files import sha256
from tests.support import runs

LABELS = ["negative", "positive"]
COMMIT = ("c0ffee" * 7)[:40]
GOLDS = {f"validation-{i:03}": LABELS[i % 2] for i in range(872)}


def write_evaluation(
    folder: Path, part: str, wrong: int, kind: str, weights: str | None, **facts: Any
) -> None:
    """Results and predictions as the harness leaves them, the first `wrong` of them wrong."""
    folder.mkdir(parents=True)
    said = {
        name: LABELS[1 - LABELS.index(gold)] if i < wrong else gold
        for i, (name, gold) in enumerate(GOLDS.items())
    }
    results = {
        "results": {f"sst2-head_{part}": classification_results(said, GOLDS, LABELS)},
        "configs": {
            f"sst2-head_{part}": {"labels": LABELS, "dtype": "bfloat16", "max_length": 512}
        },
        "config": {"recipe": "sst2-head", "model_kind": kind, **facts},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git_hash": "0123abc",
        "date": "2026-01-31T12:00:00+00:00",
        "adapter_sha256": weights,
        "base_revision": COMMIT,
        "wall_seconds": 75.0,
    }
    lines = [
        {
            "id": name, "prediction": label, "gold": GOLDS[name], "split": part, "raw": label,
            "text": "a long sentence of a review " * 10, "probabilities": [0.1, 0.9],
        }
        for name, label in said.items()
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(folder: Path) -> Path:
    """A run of the published baseline as a GPU leaves it: 4,096 weights, a long curve, evaluated on
    the official dev set.
    """
    overrides = ["dataset.labels=[negative, positive]", "hub.language=en"]
    recipe = load_recipe("sst2-head", [*overrides, f"train.output_dir={folder}"])
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    curve = [{"step": 10 * i, "loss": 0.7 / (1 + i / 900)} for i in range(250)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    (folder / "split.json").write_text(json.dumps({"train": [f"train-{i}" for i in range(52800)]}))
    save_file({"score.weight": zeros(2, 2048)}, folder / "head.safetensors")
    names = ("head.safetensors", "recipe.yaml", "split.json")
    sums = {name: sha256(folder / name) for name in names}
    weights = sums["head.safetensors"]
    base = {"model": "meta-llama/Llama-3.2-1B"}
    write_evaluation(folder / "zero-shot", "official", 300, "zero-shot verbalizer", None, **base)
    write_evaluation(
        folder / "tuned", "official", 100, "classification head", weights, run=str(folder)
    )
    facts = {
        "parameters": {"total": 1235818496, "trainable": 4096, "base": 1235814400},
        "examples": {"train": 52801, "validation": 1078},
        "head": {"layer": -1, "pooling": "last"},
        "steps": 2478,
        "epochs": 3.0,
        "wall_seconds": 1203.4,
        "peak_memory_bytes": 2_410_000_000,
        "base_fingerprint": COMMIT,
        "files": sums,
    }
    runs.write_record(folder, facts)
    report.write_html(folder)
    return folder
