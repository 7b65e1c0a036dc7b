"""Finished runs, as tests open, read and damage them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from llama_peft.run_folder.layout import CARD, HEAD, RECIPE, TRAINING
from llama_peft.run_folder.record import TrainingRecord
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import TunedModel, load_tuned
from llama_peft.system.files import sha256, write_summed

LEAST: dict[str, object] = {
    "files": {RECIPE: "0" * 64, HEAD: "0" * 64},
    "base_fingerprint": "sha256:0",
    "parameters": {"total": 8, "trainable": 4, "base": 4},
    "head": {"layer": -1, "pooling": "last"},
}
"""The least that a record says."""


def record_of(folder: Path) -> TrainingRecord:
    """The record of a finished run, its exports verified."""
    return open_run(folder).record


def load(folder: Path, full_precision: bool = False) -> TunedModel:
    """The model of a finished run."""
    return load_tuned(open_run(folder), full_precision)


def write_record(folder: Path, values: Mapping[str, object]) -> None:
    """Write a record of the values, with the sum that belongs to them; what they leave out is the
    least.
    """
    write_summed(folder, TRAINING, {**LEAST, **values})


def sums(folder: Path) -> dict[str, str]:
    """The sum of every file of a run, except its card, which names the repository."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CARD]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def cut_off(run: Path) -> None:
    """Leave of a finished run what one has that was killed after its last checkpoint."""
    shutil.rmtree(run / "adapter", ignore_errors=True)
    for name in ("training.json", "head.safetensors"):
        (run / name).unlink(missing_ok=True)
