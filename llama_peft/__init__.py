"""Fine-tune a small Llama or Gemma in 4-bit, and use what was trained.

    from llama_peft import load_recipe, load_run, predict, train

    run = train("tiny-sst2")
    print(predict(run, ["A warm film.", "Not worth the time."]))

`llama_peft_eval` (in a checkout: `eval`) evaluates. Nothing heavy is imported before a function is
called.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.errors import UserError

if TYPE_CHECKING:
    from llama_peft.data import Rows
    from llama_peft.inference.ask import Inputs, LoadedRun, Reply
    from llama_peft.recipe import Recipe, Source

__version__ = "0.1.0"
__all__ = ["UserError", "load_recipe", "load_run", "predict", "run", "train"]


def load_recipe(source: "Source", overrides: Sequence[str] = ()) -> "Recipe":
    """The checked recipe of a file, of a recipe's name, or of a dict. Raises UserError with every
    fault at once.

    overrides: words such as "train.max_steps=100" that replace what the source says.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from llama_peft.recipe import load_recipe

        return load_recipe(source, overrides)


def train(
    recipe: "Source",
    data: "Rows | Mapping[str, Rows] | None" = None,
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
) -> Path:
    """Train a recipe and return its run folder. The same call continues a run that was interrupted.

    data: rows to train on in place of the recipe's own data, as a list of dicts, a pandas DataFrame
    or a datasets.Dataset;
        or such rows by part: {"train": ..., "validation": ..., "test": ...}.
    overrides: words such as "train.max_steps=100" that replace what the recipe says.
    fresh: train again from the beginning, whatever the run folder holds.

    Raises UserError, in one line, on any mistake.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from llama_peft.survey.own_folder import load_in_own_folder
        from llama_peft.training.fit import train as fit

        given = _by_part(data)
        loaded = load_in_own_folder(recipe, overrides, given)
        return fit(loaded, fresh=fresh, given=given)


def run(
    recipe: "Source",
    data: "Rows | Mapping[str, Rows] | None" = None,
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    only: str | None = None,
    jobs: int = 1,
) -> Path:
    """Train a recipe, measure it and everything that is cheaper, and return its run folder.

    The same call skips what is finished and continues what was interrupted. `report.html` in the
    folder begins with the verdict.

    data, overrides, fresh: as in `train`. only: the name of one rung, such as "tf-idf". jobs: how many
    measurements are made at a time, each in one process of its own.

    Raises UserError, in one line, on any mistake.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from llama_peft.ladder.evaluation import find_evaluation
        from llama_peft.ladder.walk import run as walk
        from llama_peft.survey.own_folder import load_in_own_folder

        given, evaluation = _by_part(data), find_evaluation()
        loaded = load_in_own_folder(recipe, overrides, given)
        folder = walk(loaded, evaluation, fresh=fresh, only=only, given=given, jobs=jobs)
        evaluation.verdict(folder)
        return folder


def load_run(name: str | Path, base: str | None = None) -> "LoadedRun":
    """A finished run with its model in memory, by its folder or by the Hub's user/repo[@revision].

    base: another name of its base, if that is a folder of another machine.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from llama_peft.inference.ask import load_run as load

        return load(name, base)


def predict(run: "LoadedRun | str | Path", inputs: "Inputs") -> "list[Reply]":
    """One reply for each text or question, in the order given.

    run: a loaded run, or the name of one; the last one stays loaded between calls.
    inputs: texts, or questions as {"question": ..., "context": ...}; or a DataFrame or Dataset with
    the recipe's columns.

    Raises UserError, in one line, if an input is not what the run was trained on.
    """
    from llama_peft.system.quiet import python_face

    with python_face():
        from llama_peft.inference.ask import LoadedRun
        from llama_peft.inference.ask import load_run as load

        loaded = run if isinstance(run, LoadedRun) else load(run)
        return loaded.predict(inputs)


def _by_part(data: object) -> "Mapping[str, Rows]":
    """Rows by part; rows without a part are to train on."""
    from llama_peft.data import PARTS

    if data is None:
        return {}
    if not isinstance(data, Mapping):
        return {"train": data}
    if not data or set(data) - set(PARTS):
        raise UserError(
            f"data: {', '.join(map(str, data)) or 'an empty dict'} does not name parts; "
            f"give rows, or a dict with some of {', '.join(PARTS)}"
        )
    return data
