"""Whether a run is measured on what it was trained on: told by ids, and by what the examples ask."""

import json
import logging
from pathlib import Path

from llama_peft import data
from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder import weights as checkpoint

from .scoring import Material

log = logging.getLogger(__name__)


def check(folder: Path, found: Material, recipe: Recipe, strict: bool) -> dict[str, int] | None:
    """How many measured examples of each part read the same as one that the run was trained on; None where nothing tells.

    strict: these are a recipe's data, of which what was trained on is refused (UserError). Rows that stand twice in them,
    and another file's rows, are only counted and said. The validation part chose the weights and is not looked at.
    """
    parts = {part: its for part, its in found.parts.items() if part != "validation"}
    measured = [example for its in parts.values() for example in its]
    facts = checkpoint.read_facts(folder)
    if data.SPLIT_SUM not in facts:
        _check_ids(folder, measured, strict)
    elif strict:
        _check_pushed(folder, facts[data.SPLIT_SUM], found)
    now = data.asked_sums(found.dataset) if strict else None
    then = _recorded(folder) if data.RECORD in facts["files"] else now
    if then is None:
        log.warning("%s: whether these examples were trained on cannot be seen", folder)
        return None
    again = [example.id for example in measured if data.asked_sum(example) in then]
    if again:
        message = (
            f"{folder}: {len(again)} of {len(measured)} examples read the same as one that it was trained on, "
            f"first {again[0]}"
        )
        own = load_recipe(folder / "recipe.yaml").dataset
        if strict and recipe.dataset == own and now != then:
            raise UserError(
                f"{message}, and the recipe's data have changed since; bring the old ones back, or name a file with "
                "--data"
            )
        log.warning(message)
    return {part: len({example.id for example in its} & {*again}) for part, its in parts.items()}


def _recorded(folder: Path) -> set[str]:
    return set((folder / data.RECORD).read_text("utf-8").split()[1:])


def _check_ids(folder: Path, measured: list[Example], strict: bool) -> None:
    """Refuse ids that were trained on; of another file, whose ids may coincide by chance, only say so."""
    try:
        split = json.loads((folder / "split.json").read_text("utf-8"))
        seen = {*split["train"], *split.get("validation", ())}
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder / 'split.json'}: missing or damaged, so a leak cannot be ruled out"
        ) from None
    leaked = [example.id for example in measured if example.id in seen]
    message = f"{folder}: {len(leaked)} of {len(measured)} examples have ids that it was trained on"
    if leaked and strict:
        raise UserError(f"{message}, first {leaked[0]}; measure on its own recipe's split")
    if leaked:
        log.warning("%s, first %s", message, leaked[0])


def _check_pushed(folder: Path, split_sum: str, found: Material) -> None:
    """A pushed run has the sum of its split only: the data must give the same split again, whose parts share no id."""
    if split_sum != data.split_sum(found.dataset):
        raise UserError(
            f"{folder}: the recipe's data no longer give the split that it was trained on, so a leak cannot be "
            "ruled out; measure it on a file with --data"
        )
