"""A run of a recipe with other settings gets a folder of its own, named by what differs.

`mine` with train.learning_rate=1e-3 is trained into runs/mine+learning_rate=0.001.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, Source, differences, flat_values, load_recipe, schedule
from llama_peft.recipe.schema import fields
from llama_peft.run_folder.layout import RECIPE
from llama_peft.run_folder.record import read_record

_LONGEST = 100
"""Letters of what a name adds."""
_SETTLED = ("train.output_dir", "dataset.labels", "dataset.label_positions", "ladder.", "hub.")
"""The beginnings of the keys that a run writes down and its recipe may leave open."""
_NAMES = Counter(path[-1] for path in fields())


def load_in_own_folder(
    source: Source, overrides: Sequence[str], given: Iterable[str] = ()
) -> Recipe:
    """Return a recipe with overrides, whose run folder is its own. given: as in `load_recipe`.

    A folder of another name that holds this run already, as earlier versions named them, stays in
    use.
    """
    recipe = load_recipe(source, overrides, given)
    if recipe.train.output_dir is not None or not overrides:
        return recipe
    try:
        keys = [*differences(load_recipe(source, (), given), recipe)]
    except UserError:  # it is valid only with its overrides
        keys = [text.partition("=")[0].strip() for text in overrides]
    values = flat_values(recipe)
    folder = Path("runs", folder_name(recipe.name, {key: values.get(key) for key in keys}))
    if not folder.exists():
        folder = next(_earlier(recipe), folder)
    return recipe.with_train({"output_dir": folder.as_posix()})


def folder_name(recipe: str, changed: Mapping[str, object]) -> str:
    """Return the name of a folder: the recipe's, and each key that differs with its value.

    It is the same whatever the order of the keys. What no file system takes is replaced, and then a
    sum of everything keeps the name unique; capitals count as such, because Windows ignores them.
    """
    if not changed:
        return recipe
    words = {_short(key): value for key, value in sorted(changed.items())}
    exact = "+".join(f"{key}={_written(value)}" for key, value in words.items())
    safe = re.sub(r"[^\w.=+-]+", "-", exact, flags=re.ASCII)
    if safe != exact or safe != safe.lower() or len(safe) > _LONGEST or safe.endswith("."):
        digest = hashlib.sha256(json.dumps(sorted(changed.items())).encode()).hexdigest()[:6]
        safe = f"{safe[: _LONGEST - 7].rstrip('.-')}-{digest}"
    return f"{recipe}+{safe}"


def _short(key: str) -> str:
    """Return a key without its section, unless two sections have such a key."""
    last = key.rpartition(".")[2]
    return key if _NAMES[last] > 1 else last


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _earlier(recipe: Recipe) -> Iterator[Path]:
    """Yield the folders that hold a run of this recipe under another name."""
    for folder in sorted(Path("runs").glob(f"{recipe.name}*")):
        rest = folder.name.removeprefix(recipe.name)
        if rest[:1] in ("", "-", "+") and (folder / RECIPE).is_file():
            try:
                held = load_recipe(folder / RECIPE)
            except UserError:
                continue
            if not [*_other(held, recipe, _chosen(folder))]:
                yield folder


def _chosen(run: Path) -> set[str]:
    """Return the keys that were auto when a run was trained; none if it is not finished."""
    try:
        return {f"train.{key}" for key in read_record(run).chosen}
    except UserError:
        return set()


def _other(held: Recipe, recipe: Recipe, chosen: set[str]) -> Iterator[str]:
    """Yield the keys in which a run's recipe is another one, beside what its training settled.

    chosen: those whose values in the run's recipe stand for auto. A value that its user wrote does not.
    """
    left_open = {}
    if recipe.train.num_train_epochs == "auto":
        left_open = {f"train.{key}": value for key, value in schedule.OPEN_WITH_EPOCHS.items()}
    for key, (_, asked) in differences(held, recipe).items():
        is_open = asked == "auto" or (key in left_open and asked == left_open[key])
        if not key.startswith(_SETTLED) and not (is_open and key in chosen):
            yield key
