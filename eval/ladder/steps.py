"""What the evaluation does for a ladder: `llama_peft/ladder/evaluation.py` says what is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.data import Example, Rows
from llama_peft.inference.predict import Prediction
from llama_peft.recipe import dump_recipe, load_recipe
from llama_peft.recipe.ladder import RUNGS
from llama_peft.run_folder.ladder.finished import lenders
from llama_peft.run_folder.ladder.rungs import Measurement
from llama_peft.run_folder.ladder.whole import MODEL_FOLDER
from llama_peft.run_folder.layout import BASELINES, BOTH_RESULTS, RECIPE
from llama_peft.run_folder.run import Run, open_run
from llama_peft.system.files import is_file, write_text

from .. import harness, report
from ..job import Job, make_job
from ..predictors.kinds import EngineChoice
from ..predictors.open import open_predictor
from ..predictors.recognise import identify
from ..report import Table
from . import forgetting as elsewhere
from .verdict import Verdict, judge


def measure(one: Measurement, given: Mapping[str, Rows], again: bool, processes: int = 1) -> None:
    """Predict and score one measurement, whose training is finished, into its folder.

    given: rows from Python by part. again: whether to predict even if the folder holds the same, or
    another run does. processes: in how many; a baseline, a server and rows from Python are for this
    one. Several predict whatever other runs hold: each would look for itself, and wait for one that
    found something else. Raises what `run_in` raises.
    """
    if processes == 1 or given or one.rung in (*BASELINES, "hosted"):
        others = () if again else lenders(one)
        harness.run(replace(_job(one), given=given), again=again, lenders=others)
        return
    with TemporaryDirectory(prefix="llama-peft-") as place:
        write_text(Path(place), RECIPE, dump_recipe(one.recipe))
        words = ["rung", one.rung, str(Path(place, RECIPE)), one.run, one.results]
        words += ["--again"] * again
        harness.run_in(processes, [_job(one)], words)


def measure_share(name: str, recipe: Path, run: str, results: str, again: bool) -> None:
    """Predict the share of one process of those that `measure` starts."""
    rung = next(one for one in RUNGS if one == name)
    one = Measurement(rung=rung, recipe=load_recipe(recipe), run=run, results=results)
    harness.run(_job(one), again=again)


def forgetting(run: Path) -> None:
    """Measure what the adapter of a run costs elsewhere. Raises UserError if it has none."""
    elsewhere.measure(open_run(run))


def untouched(run: Run) -> Callable[[Sequence[Example]], list[Prediction]]:
    """Load a run's base without training, and return what says its answers to examples.

    Texts are answered by the language model's own head, as in zero-shot.
    """
    recipe = run.recipe
    subject = identify(recipe.model.model_name_or_path, recipe)
    predictor, size = (
        open_predictor(subject, recipe, run.labels),
        recipe.train.per_device_eval_batch_size,
    )
    return lambda examples: [one for batch in predictor.predict(examples, size) for one in batch]


def verdict(run: Path, show_all: bool = False) -> list[str]:
    """Write the report of a run, if it has both of its results, and return the lines of its verdict.

    show_all: whether a table of all metrics stands before.
    """
    found = judge(run)
    if all(is_file(run, name) for name in BOTH_RESULTS):
        report.write_html(run, found)
    more = report.compare(found.folders) if show_all else []
    return lines_of(found, more)


def lines_of(found: Verdict, more: Sequence[Table] = ()) -> list[str]:
    """Return a verdict as lines for a terminal: its tables, and what they mean. more: tables before."""
    return [*report.render([*more, *found.tables], "rich").split("\n"), *found.lines]


def _job(one: Measurement) -> Job:
    """Return what is evaluated: a finished run, or a model that needs no training of ours."""
    recipe, output = one.recipe, Path(one.run, one.results)
    if one.trains_all_weights:
        model = str(Path(recipe.run_folder, MODEL_FOLDER))
        return make_job(recipe, model, None, None, None, output, [], "classifier")
    if one.rung == "hosted":
        engine = EngineChoice(name="openai")
        return make_job(recipe, None, None, None, None, output, [], engine=engine)
    if one.is_trained:
        return make_job(None, recipe.run_folder, None, None, None, output, [])
    model_name = one.rung if one.rung in BASELINES else None
    return make_job(recipe, model_name, None, None, None, output, [])
