"""Results folders as the harness leaves them, for the tests of reports."""

import hashlib
import json
from pathlib import Path

from eval import report
from eval.metrics.measure import answer_results, classification_results
from tests.support import runs

LABELS = ["negative", "positive"]


# 20 sentences: zero-shot is right on 0-9, tuned on 2-17.
GOLDS = {f"s{i:02}": LABELS[i % 2] for i in range(20)}


EVIL = "<script>alert(1)</script> & \u2028 | 100 % \\x"


ANSWERS = {"q1": ["Paris"], "q2": ["red house", "house"], "q3": [], "q4": []}


def wrong(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def says(right: range) -> dict[str, str]:
    return {k: g if i in right else wrong(g) for i, (k, g) in enumerate(GOLDS.items())}


def write(folder: Path, predictions, golds, *, labels=(), kind="zero-shot", part="test", **facts):
    """A results folder as the harness leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = facts.pop("recipe", "sst2" if labels else "squad")
    texts = facts.pop("texts", {})
    scores = (
        classification_results(predictions, golds, labels)
        if labels
        else answer_results(predictions, golds, dict.fromkeys(golds, 0.5))
    )
    task = recipe if part == "test" else f"{recipe}_{part}"
    lines = [
        {"id": k, "prediction": p, "gold": golds[k], "split": part, "raw": p}
        | ({"text": texts[k]} if texts else {})
        for k, p in predictions.items()
    ]
    results = {
        "results": {task: scores},
        "configs": {task: {"labels": list(labels)}},
        "config": {"recipe": recipe, "model_kind": kind, "model": "tiny", **facts},
        "versions": {"torch": "2.13"},
        "git_hash": "abcdef",
        "adapter_sha256": None if kind.startswith("zero-shot") else hashlib.sha256().hexdigest(),
        "base_revision": "sha256:0",
        "wall_seconds": 75.0,
        "peak_memory_bytes": 5_400_000_000,
    }
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text, "utf-8")
    return folder


def trained(run: Path) -> Path:
    """A finished run, of empty weights."""
    run.mkdir(parents=True)
    (run / "head.safetensors").touch()
    (run / "recipe.yaml").touch()
    files = dict.fromkeys(("recipe.yaml", "head.safetensors"), hashlib.sha256().hexdigest())
    runs.write_record(run, {"files": files, "base_fingerprint": "sha256:0"})
    return run


def cells(table: report.Table, row: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if r.name == row]
    return {c: cell.text for c, cell in zip(table.columns, found.cells, strict=True) if cell.text}


def spoil(path: Path, change) -> None:
    path.write_text(change(path.read_text("utf-8")), "utf-8")
