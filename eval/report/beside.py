"""Which results stand side by side in a table: the reference first, equal ones once."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, differences, load_recipe
from llama_peft.run_folder.layout import RECIPE
from llama_peft.system.files import is_file
from llama_peft.tasks import Side

from ..results import SystemResults, read_systems, result_folders

_KEYS = 6
"""Keys in which two recipes differ that are named."""
_LETTERS = 60
_OF_PLACE = ("name", "train.output_dir", "ladder.", "hub.")
"""The beginnings of the keys that change no score."""


class Beside(NamedTuple):
    """What one table compares."""

    systems: list[SystemResults]
    notes: list[str]
    """What is left out, because it is there already."""


def systems_in(folders: Sequence[Path], against: str | None = None) -> Iterator[Beside]:
    """Yield the systems of each table: those of one kind of task and part of its data.

    A run folder stands for the results in it. What has the same predictions as an earlier system, as
    the zero-shot of two runs, is left out. against: the folder of the reference, or its name, as
    tuned. None: the first. Raises UserError if no folder, or more than one, is the reference.
    """
    groups: dict[tuple[Side, tuple[str, ...], str], list[SystemResults]] = {}
    for folder in folders:
        for inner in result_folders(Path(folder)):
            for system in read_systems(inner):
                key = (system.side, system.labels, system.part)
                groups.setdefault(key, []).append(system)
    chosen = None if against is None else _chosen(chain.from_iterable(groups.values()), against)
    for systems in groups.values():
        first = [one for one in systems if one.folder == chosen] or systems[:1]
        yield _once([*first, *(one for one in systems if one is not first[0])])


def _once(systems: Sequence[SystemResults]) -> Beside:
    """Return the systems without those whose predictions are the same file as an earlier one's."""
    kept: dict[tuple[str, str], SystemResults] = {}
    notes = []
    for one in systems:
        key = (one.config.model_kind, one.results.predictions_sha256 or str(one.folder))
        if (same := kept.setdefault(key, one)) is not one and same.folder != one.folder:
            notes.append(f"{one.folder} has the same predictions as {same.folder}.")
    return Beside([*kept.values()], notes)


def _chosen(systems: Iterable[SystemResults], against: str) -> Path:
    """Return the one folder that a word names: its path, the end of it, or its kind of model."""
    known = {one.folder: one.config.model_kind for one in systems}
    wanted = Path(against).parts
    ends = [folder for folder in known if folder.parts[-len(wanted) :] == wanted]
    found = ends or [folder for folder, kind in known.items() if kind == against]
    if len(found) != 1:
        listed = ", ".join(map(str, found or known))
        problem = "names several of the results" if found else "names none of the results"
        raise UserError(f"--against {against}: this {problem}: write one of {listed}")
    return found[0]


def what_differs(systems: Sequence[SystemResults]) -> Iterator[str]:
    """Yield a line for each other run than that of the first system: how its recipe differs."""
    runs = {folder: recipe for one in systems for folder, recipe in _recipe(one)}
    first = next(iter(runs), None)
    for folder, recipe in runs.items():
        if first is None or folder == first:
            continue
        found = differences(runs[first], recipe)
        changed = [
            f"{key} {_shown(new)} (there {_shown(old)})"
            for key, (old, new) in found.items()
            if not key.startswith(_OF_PLACE)
        ]
        more = f"; and {len(changed) - _KEYS} more" if len(changed) > _KEYS else ""
        listed = "; ".join(changed[:_KEYS]) or "nothing"
        yield f"{folder} differs from {first} in its recipe: {listed}{more}."


def _recipe(system: SystemResults) -> Iterator[tuple[Path, Recipe]]:
    """Yield the run folder that holds results, and its recipe, if it can be read."""
    run = system.folder.parent
    try:
        if is_file(run, RECIPE):
            yield run, load_recipe(run / RECIPE)
    except UserError:
        return


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."
