"""Checkpoints of a run: which one to continue from, what each one took, which to remove."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from llama_peft.run_folder.layout import CHECKPOINT, SPENT
from llama_peft.run_folder.ownership import checkpoint_files
from llama_peft.system.files import prune, read_text, remove_file, remove_files, write_text
from llama_peft.system.seal import is_sealed

log = logging.getLogger(__name__)


class Spent(NamedTuple):
    """What a run has taken up to a checkpoint, over all its starts."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


class Origin(NamedTuple):
    """What a checkpoint was trained from; None if the checkpoint does not say."""

    base: str | None
    """The fingerprint of the base."""
    recipe: str | None
    """The sum of the recipe."""
    data: str | None
    """The sum of all examples."""


def newest_sealed(checkpoints: Path) -> Path | None:
    """Return the latest `checkpoint-<step>` with an intact seal, and log which ones are skipped."""
    for folder in newest_first(checkpoints):
        if is_sealed(folder) and _has_its_best(folder):
            return folder
        log.warning("%s is incomplete or damaged, so it is skipped", folder)
    return None


def newest_first(checkpoints: Path) -> list[Path]:
    """Return the checkpoints, whole or not. A folder with nothing but a user's notes is not one."""
    numbered = [
        path for path in checkpoints.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)
    ]
    held = [path for path in numbered if path.is_symlink() or _holds_training(path)]
    return sorted(held, key=lambda path: -int(path.name[11:]))


def _holds_training(folder: Path) -> bool:
    """Return whether a folder is a checkpoint. A kill may have left it empty."""
    return folder.is_dir() and (bool(checkpoint_files(folder)) or not any(folder.iterdir()))


def _has_its_best(folder: Path) -> bool:
    """Return whether the checkpoint that this one names as the best is intact too.

    The training ends with that one.
    """
    try:
        state = json.loads(read_text(folder, "trainer_state.json"))
    except FileNotFoundError:
        return True
    best = state.get("best_model_checkpoint")
    if best is None or Path(best).name == folder.name:
        return True
    return is_sealed(folder.parent / Path(best).name)


def remove_newer(checkpoints: Path, than: Path | None) -> None:
    """Remove the checkpoints that `newest_sealed` skipped; they would count as the newest ones."""
    for folder in newest_first(checkpoints):
        if folder == than:
            return
        _remove(folder)


def rotate(checkpoints: Path, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one.

    Call it after the newest one is sealed.
    """
    for folder in newest_first(checkpoints)[keep:]:
        if best is None or folder.name != Path(best).name:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, or the link to a checkpoint that somebody moved. Notes in it stay."""
    if folder.is_symlink():
        remove_file(folder.parent, folder.name)
        return
    remove_files(folder, checkpoint_files(folder))
    prune(folder.parent, folder.name)


def write_spent(folder: Path, spent: Spent, origin: Origin) -> None:
    """Write into a checkpoint what the run has taken so far, and what it is trained from."""
    write_text(folder, SPENT, json.dumps({**spent._asdict(), **origin._asdict()}))


def read_spent(folder: Path | None) -> Spent:
    """Return what a run had taken at a checkpoint; zeros if there is none."""
    if folder is None:
        return Spent()
    found = json.loads(read_text(folder, SPENT))
    return Spent(**{name: found[name] for name in Spent._fields})


def read_origin(folder: Path) -> Origin:
    """Return what a checkpoint was trained from."""
    found = json.loads(read_text(folder, SPENT))
    return Origin(*map(found.get, Origin._fields))
