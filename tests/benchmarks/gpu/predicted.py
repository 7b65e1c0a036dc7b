"""What was predicted without a GPU against the measured peak: `llama-peft estimate`, and a rehearsal.

The estimate counts the driver's context as libraries; here, as in a rehearsal, only tensors count.
"""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from llama_peft.__main__ import app
from llama_peft.model import backbone
from tests.benchmarks import measure

from . import memory
from .setting import RECIPES, Part, Setting


def turns(setting: Setting) -> Part:
    """Yield a row for each recipe."""
    rehearsed = _rehearsed(setting.rehearsal)
    known = {
        row["name"]: row
        for row in setting.done.get("memory", {}).get("rows", [])
        if row["cap"] is None
    }
    rows = []
    for name in RECIPES:
        row = known.get(name) or next(memory.under_caps(memory.product(setting, name)))
        dtype = backbone.dtype_name(setting.recipe(name))
        rows.append(
            {
                "name": name,
                "dtype": dtype,
                "peak_bytes": row.get("peak_bytes"),
                "estimated_bytes": estimated(setting, name),
                "rehearsed_bytes": rehearsed.get((name, dtype)),
                **({"failure": row["failure"]} if "failure" in row else {}),
            }
        )
        yield measure.result("predicted", rows, {}, **setting.base.facts())


def estimated(setting: Setting, name: str) -> int | None:
    """The memory that `llama-peft estimate` says, without the libraries; None if it says nothing."""
    words = ["estimate", name, *setting.overrides(name), "--json"]
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        return None
    found = json.loads(done.stdout)
    return int(found["memory_total"] - found["memory"].get("libraries", 0))


def _rehearsed(path: Path | None) -> dict[tuple[str, str], int]:
    """The peaks of training that rehearsals found, by recipe and type: of a file, or of those of a folder."""
    if path is None:
        return {}
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found: list[Any] = []
    for file in files:
        written = json.loads(file.read_text("utf-8")) if file.is_file() else []
        found += written if isinstance(written, list) else [written]
    return {
        (one["recipe"], one["dtype"]): max(
            step["peak"]
            for step in one["steps"]
            if step["name"] not in ("validation", "prediction")
        )
        for one in found
        if all(text.startswith(("dataset.", "eval.")) for text in one["settings"])
    }
