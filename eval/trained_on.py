"""Whether a run is evaluated on what it was trained on: by ids, and by what the examples ask."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from llama_peft import data
from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import DATA_SUMS, SPLIT
from llama_peft.run_folder.run import Run
from llama_peft.system.files import read_json, read_text
from llama_peft.system.sequences.views import Joined
from llama_peft.system.terminal import one_line

from .scoring import Material

log = logging.getLogger(__name__)

_SPLIT = TypeAdapter(dict[str, list[str]])


def check(run: Run, found: Material, recipe: Recipe, strict: bool) -> dict[str, int] | None:
    """Return for each part the number of examples that the run was trained on.

    An example counts if it reads the same as one of training. None: the run does not say what it
    was trained on. The validation part is not checked, because it chose the weights.

    strict: these are the data of a recipe, so ids from training are refused with a UserError, and
    so are texts from training if the data have changed. Texts that the recipe's data repeat, and
    the rows of another file, are only counted and logged.
    """
    parts = {part: its for part, its in found.parts.items() if part != "validation"}
    evaluated = Joined([*parts.values()])
    if run.record.split_sha256 is None:
        _check_ids(run.folder, evaluated, strict)
    elif strict:
        _check_pushed(run.folder, run.record.split_sha256, found)
    now = data.asked_sums(found.dataset) if strict else None
    then = _recorded(run.folder) if DATA_SUMS in run.record.files else now
    if then is None:
        log.warning("%s: this run does not record which examples it was trained on", run.folder)
        return None
    again = [example.id for example in evaluated if data.asked_sum(example) in then]
    if again:
        message = (
            f"{run.folder}: {len(again)} of {len(evaluated)} examples read the same as an example "
            f"that this run was trained on (first: {one_line(again[0])})"
        )
        if strict and recipe.dataset == run.written.dataset and now != then:
            raise UserError(
                f"{message}, and the recipe's data have changed since the training; restore the "
                "old data, or name another file with --data"
            )
        log.warning(message)
    ids = {*again}
    return {part: sum(example.id in ids for example in its) for part, its in parts.items()}


def _recorded(folder: Path) -> set[str]:
    return set(read_text(folder, DATA_SUMS, errors="replace").split()[1:])


def _check_ids(folder: Path, evaluated: Sequence[Example], strict: bool) -> None:
    """Refuse ids from training. In another file, equal ids can be a coincidence, so log them only."""
    try:
        split = _SPLIT.validate_python(read_json(folder, SPLIT))
        seen = {*split["train"], *split.get("validation", ())}
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder / SPLIT}: this file is missing or damaged, so nothing tells which examples "
            "the run was trained on; train it again"
        ) from None
    known = [example.id for example in evaluated if example.id in seen]
    message = (
        f"{folder}: {len(known)} of {len(evaluated)} examples have ids that it was trained on "
        f"(first: {one_line(known[0]) if known else ''})"
    )
    if known and strict:
        raise UserError(f"{message}; evaluate it on the split of its own recipe")
    if known:
        log.warning(message)


def _check_pushed(folder: Path, split_sum: str, found: Material) -> None:
    """Refuse data whose split differs from that of training.

    A pushed run holds only the sum of its split. The parts of one split share no id.
    """
    if split_sum != data.split_sum(found.dataset):
        raise UserError(
            f"{folder}: the recipe's data no longer give the split that this run was trained on, "
            "so examples from training cannot be excluded; name a file with --data"
        )
