"""Everything that would end a run later, found before any download or training, all at once."""

import os
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.export.access import check_before_training
from llama_peft.model import preflight, room
from llama_peft.model.estimate import Estimate
from llama_peft.model.hub import Weights
from llama_peft.recipe import Recipe
from llama_peft.system.disk import free_disk
from llama_peft.system.formatting import disk_space

LEAST_DISK = 100_000_000
"""Bytes that a run folder needs for predictions and records, whatever the model is."""


def check(recipe: Recipe, pushes: bool) -> None:
    """Raise UserError with every problem of a run. pushes: whether a push follows it."""
    if found := find(recipe, preflight.weights_of(recipe), pushes):
        raise UserError(f"{recipe.name} cannot run here:", *found)


def find(recipe: Recipe, weights: Weights, pushes: bool) -> list[str]:
    """Return every problem of a run in a line: what is wrong, and what to do.

    weights: those of the recipe's base.
    """
    base = recipe.model.model_name_or_path
    found = [f"{base}: {one}" for one in preflight.problems(recipe, weights, long=True)]
    found += _folder_problems(recipe, None if found else full_rows(recipe))
    if pushes:
        try:
            check_before_training(recipe)
        except UserError as error:
            found += map(str, error.args)
    return found


def full_rows(recipe: Recipe) -> Estimate | None:
    """Return what a training takes at most, whatever the data are; None if there is no formula.

    `auto` is taken as what needs least.
    """
    return room.for_machine(recipe.with_train(room.smallest(recipe)))


def _folder_problems(recipe: Recipe, takes: Estimate | None) -> list[str]:
    """Return whether the run folder cannot be written, or has too little room."""
    folder = Path(recipe.run_folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return [f"{folder}: you may not write into {existing}: set train.output_dir"]
    needed = max(LEAST_DISK, 0 if takes is None else takes.disk_total)
    free = free_disk(folder)
    if needed <= free:
        return []
    return [
        f"{folder}: the run takes {disk_space(needed)} of disk, but {disk_space(free)} are free: make "
        "room, lower train.save_total_limit, or set train.output_dir"
    ]
