"""Decides whose run a folder holds and what of it is finished, before a training changes it.

A folder is refused if it holds the run of another recipe, or if its data have changed. `--fresh`
moves the earlier run aside until the new one has something to keep, so that a mistake, a stop or a
kill brings it back.
"""

import logging
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.layout import (
    CHECKPOINTS,
    DATA_SUMS,
    RECIPE,
    SPLIT,
    TRAINED_FILES,
    TRAINING,
    TUNED,
)
from llama_peft.run_folder.record import read_record, verify_exports
from llama_peft.system.files import sha256_of, write_text
from llama_peft.system.lock import only_process
from llama_peft.training.checkpoints import Origin, newest_sealed, read_origin

log = logging.getLogger(__name__)

_ASIDE, _MOVING = ".previous", ".previous.partial"


def is_main_process() -> bool:
    """Return whether this is the first process of a job, the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def recipe_sum(recipe: Recipe) -> str:
    """Return a sum that distinguishes trainings on the same base."""
    return sha256_of(_without_folder(dump_recipe(recipe)))


def _without_folder(text: str) -> str:
    """Return a recipe without its run folder, which can be named in several ways."""
    return re.sub(r"^  output_dir: .*\n", "", text, flags=re.MULTILINE)


def is_finished(folder: Path, recipe: Recipe, dataset: data.Dataset) -> bool:
    """Return whether all exports of a run are there and intact.

    Damaged texts are written again at once. Damaged weights need the last checkpoint, so then the
    run counts as unfinished. Raises UserError if there is no checkpoint, or if several processes
    would have to agree on it.
    """
    if not (folder / TRAINING).is_file():
        return False
    try:
        verify_exports(folder, read_record(folder))
        return True
    except UserError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"{error}, in one process") from None
        if _write_texts_again(folder, recipe, dataset):
            log.warning("%s: it was written again", error)
            return True
        if newest_sealed(folder / CHECKPOINTS) is None:
            raise UserError(f"{error}, with --fresh, because it has no checkpoint") from None
        log.warning("%s: the weights are now exported again from the last checkpoint", error)
        return False


def _write_texts_again(folder: Path, recipe: Recipe, dataset: data.Dataset) -> bool:
    """Write lost or damaged texts of a finished run again; return whether all is intact then."""
    texts = {
        RECIPE: dump_recipe(recipe),
        SPLIT: data.split_text(dataset),
        DATA_SUMS: data.record_text(dataset),
    }
    try:
        record = read_record(folder)
        for name, text in texts.items():
            if record.files.get(name) == sha256_of(text):
                write_text(folder, name, text)
        verify_exports(folder, record)
        return True
    except UserError:
        return False


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Record the resolved recipe.

    A folder that holds a run of another recipe is refused. The recipe is written again if nothing
    was trained yet, or if it is lost or damaged and the checkpoints are this recipe's.
    """
    path = folder / RECIPE
    text = dump_recipe(recipe)
    kept = path.read_text("utf-8", "replace") if path.is_file() else None
    begun = (folder / TRAINING).is_file() or any((folder / CHECKPOINTS).glob("checkpoint-*"))
    if begun and kept is not None and _without_folder(kept) == _without_folder(text):
        return
    if begun and not _belongs_to(recipe, folder):
        if kept is not None:
            old = set(kept.splitlines())
            changed = [line.strip() for line in text.splitlines() if line not in old]
            raise UserError(
                f"{folder}: this folder holds a run of another recipe "
                f"(it differs in: {'; '.join(changed[:3]) or 'a removed line'}); "
                "choose another train.output_dir, or add --fresh to train again"
            )
        if newest_sealed(folder / CHECKPOINTS) is not None:
            raise UserError(
                f"{path}: this file is missing, and nothing else tells which recipe the checkpoints "
                "belong to; bring it back, or add --fresh to train again"
            )
    write_text(path.parent, path.name, text)


def _belongs_to(recipe: Recipe, folder: Path) -> bool:
    """Return whether the newest checkpoint or the training record says that this recipe made it."""
    newest = newest_sealed(folder / CHECKPOINTS)
    if newest is not None and read_origin(newest).recipe == recipe_sum(recipe):
        return True
    try:
        return read_record(folder).files.get(RECIPE) == sha256_of(dump_recipe(recipe))
    except UserError:
        return False


def write_split(folder: Path, dataset: data.Dataset) -> None:
    """Record the ids of each part.

    Raises UserError if the data have changed since the checkpoints were trained.
    """
    path, text = folder / DATA_SUMS, data.record_text(dataset)
    newest = newest_sealed(folder / CHECKPOINTS)
    if newest is not None:
        trained_on = read_origin(newest).data
        if trained_on is None and path.is_file():
            trained_on = path.read_text("utf-8", "replace").partition("\n")[0]
        if trained_on not in (None, data.content_sum(dataset)):
            raise UserError(
                f"{folder}: the data are not those that its checkpoints were trained on; "
                "bring the old data back, or add --fresh to train again"
            )
    write_text(path.parent, path.name, text)
    write_text(folder, SPLIT, data.split_text(dataset))


def check_origin(folder: Path, resumed: Path | None, origin: Origin, base: str) -> None:
    """Raise UserError if a checkpoint has another base or recipe than the training."""
    if resumed is None:
        return
    found = read_origin(resumed)
    if found.base not in (None, origin.base):
        raise UserError(
            f"{folder}: its checkpoints were trained on another {base} ({found.base}) than the one "
            f"that is here now ({origin.base}); bring the old one back (from the Hub: set "
            "model.revision), or add --fresh to train again"
        )
    if found.recipe not in (None, origin.recipe):
        raise UserError(
            f"{resumed}: this checkpoint belongs to another run; "
            "remove it, or add --fresh to train again"
        )


def put_aside(folder: Path) -> None:
    """Move the files of an earlier run out of the way; a folder without a run stays as it is."""
    begun = newest_sealed(folder / CHECKPOINTS) is not None
    known = any((folder / name).is_file() for name in (RECIPE, TRAINING))
    if not (begun or known):
        return
    tuned = folder / TUNED
    with only_process(tuned, "evaluating") if tuned.is_dir() else nullcontext():
        shutil.rmtree(folder / _ASIDE, ignore_errors=True)
        moving = folder / _MOVING
        moving.mkdir()
        for name in _files_of(folder):
            (folder / name).rename(moving / name)
        moving.rename(folder / _ASIDE)


def forget_aside(folder: Path) -> None:
    """Remove the earlier run that was put aside, once the new one is finished."""
    shutil.rmtree(folder / _ASIDE, ignore_errors=True)


def bring_back(folder: Path) -> None:
    """Bring the earlier run back if the new one ended before it had anything to keep."""
    _finish_move(folder)
    if (folder / TRAINING).is_file() or not (folder / _ASIDE).is_dir():
        return
    if newest_sealed(folder / CHECKPOINTS):
        return
    for name in _files_of(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / _ASIDE).rename(folder / _MOVING)
    _finish_move(folder)


def _finish_move(folder: Path) -> None:
    """Move the files of a move that a kill interrupted back into the run folder."""
    moving = folder / _MOVING
    if moving.is_dir():
        for name in _files_of(moving):
            (moving / name).rename(folder / name)
        shutil.rmtree(moving)


def _files_of(folder: Path) -> list[str]:
    """Return the names of a run's own files, with evaluations of its weights under other names."""
    evaluated = sorted(path.name for path in folder.glob(f"{TUNED}-*") if path.is_dir())
    return [name for name in (*TRAINED_FILES, *evaluated) if (folder / name).exists()]
