"""Decides whose run a folder holds and what of it is finished, before a training changes it.

A folder is refused if it holds the run of another recipe, or if its data have changed. `--fresh`
moves the earlier run aside until the new one has something to keep, so that a mistake, a stop or a
kill brings it back.
"""

import logging
import re
from contextlib import ExitStack
from pathlib import Path

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, dump_recipe, load_recipe, schedule
from llama_peft.run_folder.layout import (
    CHECKPOINTS,
    DATA_SUMS,
    MOVING,
    PREVIOUS,
    RECIPE,
    SPLIT,
    TRAINING,
)
from llama_peft.run_folder.ownership import is_ours, run_files, tuned_folders
from llama_peft.run_folder.record import read_record, verify_exports
from llama_peft.system import files
from llama_peft.system.files import sha256_of, write_text
from llama_peft.system.lock import only_process
from llama_peft.training.checkpoints import Origin, newest_first, newest_sealed, read_origin

log = logging.getLogger(__name__)


def recipe_sum(recipe: Recipe) -> str:
    """Return a sum that distinguishes trainings on the same base."""
    return sha256_of(_what_decides(dump_recipe(recipe)))


def _what_decides(text: str) -> str:
    """Return a recipe without what the weights do not depend on, or runs of version 0.1.0 do not say.

    That is its run folder, which can be named in several ways, what the numbers of its labels mean,
    and what a training continues with or without: compiled blocks, frozen ones whose states are on
    disk, and under a head the packing of its batches.
    """
    if not re.search(r"^task: generative_qa$", text, re.MULTILINE):
        text = re.sub(r"^  packing: .*$", "  packing: none", text, flags=re.MULTILINE)
    keys = "output_dir|label_positions|torch_compile|reuse_frozen_blocks"
    return re.sub(rf"^  ({keys}): .*\n", "", text, flags=re.MULTILINE)


def is_finished(folder: Path, recipe: Recipe, dataset: data.Dataset) -> bool:
    """Return whether all exports of a run are there and intact.

    Damaged texts are written again at once. Damaged weights need the last checkpoint, so then the
    run counts as unfinished. Raises UserError if there is no checkpoint.
    """
    if not files.is_file(folder, TRAINING):
        return False
    try:
        verify_exports(folder, read_record(folder))
        return True
    except UserError as error:
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


def chosen_before(recipe: Recipe, folder: Path) -> dict[str, float | bool]:
    """Return the values in place of auto with which a run began; none if nothing was trained yet.

    They depended on the memory that was free then, and the checkpoints depend on them.
    """
    auto = [key for key, value in recipe.train if value == "auto"]
    begun = files.is_file(folder, TRAINING) or bool(newest_first(folder / CHECKPOINTS))
    if not auto or not begun or not files.is_file(folder, RECIPE):
        return {}
    try:
        train = load_recipe(str(folder / RECIPE)).train
    except UserError:  # it is damaged, which `write_recipe` finds
        return {}
    if "per_device_train_batch_size" in auto:
        auto.append("gradient_accumulation_steps")
    if "num_train_epochs" in auto:
        left_open = schedule.OPEN_WITH_EPOCHS.items()
        auto += [key for key, value in left_open if getattr(recipe.train, key) == value]
    chosen = {key: getattr(train, key) for key in auto}
    return {key: value for key, value in chosen.items() if value != getattr(recipe.train, key)}


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Record the resolved recipe.

    A folder that holds a run of another recipe is refused. The recipe is written again if nothing
    was trained yet, or if it is lost or damaged and the checkpoints are this recipe's.
    """
    text, kept = dump_recipe(recipe), None
    if files.is_file(folder, RECIPE):
        kept = files.read_text(folder, RECIPE, "replace")
    begun = files.is_file(folder, TRAINING) or bool(newest_first(folder / CHECKPOINTS))
    if begun and kept is not None and _what_decides(kept) == _what_decides(text):
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
                f"{folder / RECIPE}: this file is missing, and nothing else tells which recipe the checkpoints "
                "belong to; bring it back, or add --fresh to train again"
            )
    write_text(folder, RECIPE, text)


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
    newest = newest_sealed(folder / CHECKPOINTS)
    if newest is not None:
        trained_on = read_origin(newest).data
        if trained_on is None and files.is_file(folder, DATA_SUMS):
            trained_on = files.read_text(folder, DATA_SUMS, "replace").partition("\n")[0]
        if trained_on not in (None, data.content_sum(dataset)):
            raise UserError(
                f"{folder}: the data are not those that its checkpoints were trained on; "
                "bring the old data back, or add --fresh to train again"
            )
    write_text(folder, DATA_SUMS, data.record_pieces(dataset))
    write_text(folder, SPLIT, data.split_pieces(dataset))


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
    """Move the files of an earlier run out of the way; a folder without a run stays as it is.

    What the user keeps in the folder stays in its place. Raises UserError if another process
    evaluates the run.
    """
    if not is_ours(folder):
        return
    with ExitStack() as evaluations:
        for path in tuned_folders(folder):
            evaluations.enter_context(only_process(path, "evaluating"))
        forget_aside(folder)
        files.make_folder(folder, MOVING)
        files.move(folder, run_files(folder), ".", MOVING)
        files.rename(folder, MOVING, PREVIOUS)


def forget_aside(folder: Path) -> None:
    """Remove the earlier run that was put aside, once the new one is finished."""
    _remove_run(folder, PREVIOUS)


def bring_back(folder: Path) -> None:
    """Bring the earlier run back if the new one ended before it had anything to keep."""
    _finish_move(folder)
    if files.is_file(folder, TRAINING) or not (folder / PREVIOUS).is_dir():
        return
    if newest_sealed(folder / CHECKPOINTS):
        return
    files.remove_files(folder, run_files(folder))
    files.rename(folder, PREVIOUS, MOVING)
    _finish_move(folder)


def _finish_move(folder: Path) -> None:
    """Move the files of a move that a kill interrupted back into the run folder."""
    files.move(folder, run_files(folder, MOVING), MOVING, ".")
    _remove_run(folder, MOVING)


def _remove_run(folder: Path, place: str) -> None:
    """Remove a run that was put aside, with each folder in which nothing else is."""
    files.remove_files(folder, [f"{place}/{name}" for name in run_files(folder, place)])
    files.prune(folder, place)
