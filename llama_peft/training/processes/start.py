"""Trains a recipe in as many processes of this machine as are asked for."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.model import room
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.layout import RECIPE, TRAINING
from llama_peft.system import files
from llama_peft.system.processes.launch import launch
from llama_peft.training import fit


def train_in(
    processes: int,
    recipe: Recipe,
    fresh: bool = False,
    given: Mapping[str, data.Rows] | None = None,
) -> Path:
    """Train a recipe in one process, this one, or in several others; return its run folder.

    Raises what `fit.train` raises, and Died if one of several processes has died.
    """
    folder = Path(recipe.run_folder)
    if processes == 1 or (not fresh and _is_finished(recipe, folder)):
        return fit.train(recipe, fresh, given)
    _check(recipe, processes, given)
    with TemporaryDirectory(prefix="llama-peft-") as place:
        files.write_text(Path(place), RECIPE, dump_recipe(recipe))
        launch(["train", str(Path(place, RECIPE)), *(["--fresh"] if fresh else [])], processes)
    return folder


def _is_finished(recipe: Recipe, folder: Path) -> bool:
    """Return whether there is nothing to train. The libraries of several processes take seconds."""
    return files.is_file(folder, TRAINING) and fit.is_finished(recipe)


def _check(recipe: Recipe, processes: int, given: Mapping[str, data.Rows] | None) -> None:
    """Raise UserError for what cannot be trained in several processes here."""
    if given:
        raise UserError(
            "rows from Python stay in the process that has them: write them to a file to train in "
            "several processes"
        )
    room.check_processes(recipe, processes)
