"""Checkpoints of a run: which one to continue from, what each one took, which to remove."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import TypeAdapter

from llama_peft.errors import UserError
from llama_peft.run_folder.layout import CHECKPOINT, SPENT
from llama_peft.run_folder.ownership import checkpoint_files
from llama_peft.system.files import prune, read_json, remove_file, remove_files, write_text
from llama_peft.system.numbers import Count, NotNegative, Positive, Step
from llama_peft.system.seal import is_sealed
from llama_peft.training.checkpoint_state import Fit, best_of, reason, trouble

log = logging.getLogger(__name__)

Told = TypeVar("Told")


class Spent(NamedTuple):
    """What a run has taken up to a checkpoint, over all its starts."""

    seconds: NotNegative = 0.0
    peak_memory_bytes: Count = 0
    resumed_at: Sequence[Step] = ()
    """The steps of the checkpoints from which it was continued."""


class Origin(NamedTuple):
    """What a checkpoint was trained from; None if the checkpoint does not say."""

    base: str | None = None
    """The fingerprint of the base."""
    recipe: str | None = None
    """The sum of the recipe."""
    data: str | None = None
    """The sum of all examples."""


class Sharing(NamedTuple):
    """How the processes of a training share its steps; None if a checkpoint does not say."""

    processes: Positive | None = None
    rows_per_step: Positive | None = None
    """Of all processes together."""


_SPENT, _ORIGIN, _SHARING = TypeAdapter(Spent), TypeAdapter(Origin), TypeAdapter(Sharing)


def newest_sealed(checkpoints: Path, fit: Fit | None = None) -> Path | None:
    """Return the latest `checkpoint-<step>` that a training can continue from, and log why others
    are skipped.

    fit: the training that would continue from it, as in `trouble`.
    """
    for folder in newest_first(checkpoints):
        fault = _why_not(folder, fit)
        if fault is None:
            return folder
        log.warning("%s is incomplete or damaged, so it is skipped: %s", folder, fault)
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


def _why_not(folder: Path, fit: Fit | None) -> str | None:
    """Return why no training can continue from a checkpoint; None if one can.

    The checkpoint that it names as the best must be usable too, because the training ends with it.
    """
    fault = _fault(folder, fit)
    best = None if fault else best_of(folder)
    if best is None or best == folder.name:
        return fault
    fault = _fault(folder.parent / best, fit)
    return fault and f"{best}, the best one: {fault}"


def _fault(folder: Path, fit: Fit | None) -> str | None:
    if not is_sealed(folder):
        return "its seal is missing, or a file was changed"
    try:
        read_spent(folder), read_origin(folder), read_sharing(folder)
    except (OSError, ValueError, UserError) as error:
        return f"{SPENT}: {reason(error)}"
    return trouble(folder, fit)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


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


def write_spent(folder: Path, spent: Spent, origin: Origin, sharing: Sharing) -> None:
    """Write into a checkpoint what the run has taken so far, what it is trained from, and how."""
    parts = spent._asdict() | origin._asdict() | sharing._asdict()
    write_text(folder, SPENT, json.dumps(parts))


def read_spent(folder: Path | None) -> Spent:
    """Return what a run had taken at a checkpoint; zeros if there is none."""
    return Spent() if folder is None else _read(_SPENT, folder, Spent._fields)


def read_origin(folder: Path) -> Origin:
    """Return what a checkpoint was trained from. Raises OSError or ValueError."""
    return _read(_ORIGIN, folder, Origin._fields)


def read_sharing(folder: Path) -> Sharing:
    """Return how a checkpoint's steps were shared. Raises OSError or ValueError."""
    return _read(_SHARING, folder, Sharing._fields)


def _read(form: TypeAdapter[Told], folder: Path, names: Sequence[str]) -> Told:
    """Return what spent.json says under some names."""
    found = read_json(folder, SPENT)
    if not isinstance(found, dict):
        raise ValueError("it does not hold a JSON object")
    held = {name: found[name] for name in names if name in found}
    return form.validate_python(held, strict=True)
