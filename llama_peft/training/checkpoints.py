"""Checkpoints of a run: which one to continue from, what each one took, which to remove."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from llama_peft.run_folder.layout import SPENT
from llama_peft.system.files import write_text
from llama_peft.system.seal import is_sealed

log = logging.getLogger(__name__)

_STEP = re.compile(r"checkpoint-[0-9]+")


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
    for folder in _newest_first(checkpoints):
        if is_sealed(folder) and _has_its_best(folder):
            return folder
        log.warning("%s is incomplete or damaged, so it is skipped", folder)
    return None


def _newest_first(checkpoints: Path) -> list[Path]:
    numbered = [path for path in checkpoints.glob("checkpoint-*") if _STEP.fullmatch(path.name)]
    return sorted(numbered, key=lambda path: -int(path.name[11:]))


def _has_its_best(folder: Path) -> bool:
    """Return whether the checkpoint that this one names as the best is intact too.

    The training ends with that one.
    """
    try:
        state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    except FileNotFoundError:
        return True
    best = state.get("best_model_checkpoint")
    if best is None or Path(best).name == folder.name:
        return True
    return is_sealed(folder.parent / Path(best).name)


def remove_newer(checkpoints: Path, than: Path | None) -> None:
    """Remove the checkpoints that `newest_sealed` skipped; they would count as the newest ones."""
    for folder in _newest_first(checkpoints):
        if folder == than:
            return
        _remove(folder)


def rotate(checkpoints: Path, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one.

    Call it after the newest one is sealed.
    """
    for folder in _newest_first(checkpoints)[keep:]:
        if best is None or folder.name != Path(best).name:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, or the link to a checkpoint that somebody moved."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def write_spent(folder: Path, spent: Spent, origin: Origin) -> None:
    """Write into a checkpoint what the run has taken so far, and what it is trained from."""
    write_text(folder, SPENT, json.dumps({**spent._asdict(), **origin._asdict()}))


def read_spent(folder: Path | None) -> Spent:
    """Return what a run had taken at a checkpoint; zeros if there is none."""
    if folder is None:
        return Spent()
    found = json.loads((folder / SPENT).read_text("utf-8"))
    return Spent(**{name: found[name] for name in Spent._fields})


def read_origin(folder: Path) -> Origin:
    """Return what a checkpoint was trained from."""
    found = json.loads((folder / SPENT).read_text("utf-8"))
    return Origin(*map(found.get, Origin._fields))
