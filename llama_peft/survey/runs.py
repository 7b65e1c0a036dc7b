"""The runs in a folder: what each is about, what it scored, and how far it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.layout import (
    LADDER,
    LADDER_RECIPE,
    RECIPE,
    TRAINING,
    TUNED_RESULTS,
)
from llama_peft.run_folder.results import read_results
from llama_peft.system import files
from llama_peft.system.formatting import disk_space, number_with_interval
from llama_peft.system.lock import is_held
from llama_peft.tasks import MAIN

State = Literal["training", "interrupted", "finished", "measured", "damaged"]
_DEPTH = 2
"""Folders below the one that is listed in which runs are looked for."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run."""

    folder: Path
    state: State
    task: str = ""
    base: str = ""
    score: str = ""
    """The main metric of the tuned model on its first part, with its interval."""
    date: datetime
    """When its last file was written."""
    bytes: int

    def as_dict(self) -> dict[str, str]:
        """Return what a table shows of it."""
        return {
            "run": str(self.folder),
            "state": self.state,
            "task": self.task,
            "base": self.base,
            "score": self.score,
            "date": f"{self.date:%Y-%m-%d %H:%M}",
            "size": disk_space(self.bytes),
        }


def find_runs(folder: Path) -> list[Listed]:
    """Return the runs in a folder, the newest first. Raises UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder, so there are no runs in it yet")
    return sorted(map(_listed, _runs(folder, _DEPTH)), key=lambda run: run.date, reverse=True)


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders of runs. Those inside a run, as the rungs of its ladder, are a part of it."""
    if files.is_file(folder, RECIPE) or files.is_file(folder / LADDER, LADDER_RECIPE):
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink():
                yield from _runs(inner, depth - 1)


def _listed(folder: Path) -> Listed:
    held = [one.lstat() for one in folder.rglob("*") if one.is_file()]
    date = datetime.fromtimestamp(max((one.st_mtime for one in held), default=0))
    size = sum(one.st_size for one in held)
    try:
        recipe = _recipe(folder)
        state, score = _state(folder), _score(folder, recipe)
    except (OSError, ValueError, UserError):
        return Listed(folder=folder, state="damaged", date=date, bytes=size)
    return Listed(
        folder=folder,
        state="measured" if score and state == "finished" else state,
        task=recipe.task,
        base=recipe.model.model_name_or_path,
        score=score,
        date=date,
        bytes=size,
    )


def _recipe(folder: Path) -> Recipe:
    own = files.is_file(folder, RECIPE)
    return load_recipe(folder / RECIPE if own else folder / LADDER / LADDER_RECIPE)


def _state(folder: Path) -> State:
    if is_held(folder) or is_held(folder / LADDER):
        return "training"
    return "finished" if files.is_file(folder, TRAINING) else "interrupted"


def _score(folder: Path, recipe: Recipe) -> str:
    if not files.is_file(folder, TUNED_RESULTS):
        return ""
    results = read_results(folder / TUNED_RESULTS)
    name, scores = MAIN[recipe.kind.side][0], next(iter(results.results.values()))
    value, bounds = scores.get(name), scores.get(f"{name}_ci95")
    if not isinstance(value, int | float):
        return ""
    found = (
        [float(one) for one in bounds if isinstance(one, int | float)]
        if isinstance(bounds, list)
        else []
    )
    return f"{name} {number_with_interval(value, found, recipe.kind.side == 'answers')}"
