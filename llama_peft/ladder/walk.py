"""Climbs a ladder: what every rung needs is checked first, then each is trained and measured.

What is finished is skipped, and what was interrupted continues, with the same command.
"""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llama_peft import data
from llama_peft.doctor import blocking
from llama_peft.errors import UserError
from llama_peft.ladder import whole
from llama_peft.ladder.evaluation import Evaluation
from llama_peft.ladder.jobs import check_jobs, devices, taken, work_in
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.ladder.finished import (
    borrow,
    forget,
    is_finished,
    key_of,
    mark_finished,
)
from llama_peft.run_folder.ladder.rungs import (
    Measurement,
    check_rung,
    measurements,
    settled,
)
from llama_peft.run_folder.layout import LADDER, LADDER_RECIPE, TRAINING
from llama_peft.run_folder.ownership import check_run_folder
from llama_peft.system.files import is_file, write_text
from llama_peft.system.lock import only_process
from llama_peft.system.memory import free_memory, is_out_of_memory, reset_peak
from llama_peft.system.processes import job
from llama_peft.training.fit import check_room
from llama_peft.training.processes.start import train_in

log = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    evaluation: Evaluation,
    *,
    fresh: bool = False,
    only: str | None = None,
    given: Mapping[str, data.Rows] | None = None,
    pushes: bool = False,
    processes: int = 1,
    jobs: int = 1,
) -> Path:
    """Measure every rung of a recipe's ladder and return the run folder.

    evaluation: predicts and scores. fresh: train and measure again what is finished already. only:
    the name of one rung. given: rows from Python by part, as in `data.load`. pushes: whether a push
    follows, which must be allowed. processes: in how many each model trains and predicts. jobs: how
    many measurements are made at a time, each in one process of its own.

    Raises UserError before anything is trained if data, base, machine or folder do not allow it. A
    rung that cannot be measured is left out with a warning, unless it is the recipe's own training
    or the only one that was asked for. Raises Died if one of several processes has died.
    """
    recipe = data.mark_given(settled(recipe), given or {})
    if jobs > 1:
        check_jobs(jobs, processes, bool(given))
    folder = Path(recipe.run_folder)
    check_run_folder(folder)
    blocking.check(recipe, pushes)
    with _data_read_once():
        steps = _steps(recipe, evaluation, fresh, only, given or {}, processes)
        places = devices(recipe, max(1, min(jobs, len(steps.plan))))
        with job.as_one_of(places[0]):
            check_room(recipe, steps.dataset, fresh)
        if len(places) == 1:
            with _held(folder, recipe):
                _climb(steps, _in_turn(steps.plan))
            return folder
        content = steps.content
        del steps  # each job reads the data
    with _held(folder, recipe):
        work_in(places, recipe, content, fresh, only)
    return folder


@contextmanager
def _held(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Hold a ladder's folder, which gets its recipe."""
    with only_process(folder / LADDER, "running a ladder"):
        write_text(folder / LADDER, LADDER_RECIPE, dump_recipe(recipe))
        yield


def work(
    recipe: Recipe, evaluation: Evaluation, place: Path, fresh: bool, only: str | None
) -> None:
    """Measure what no other job of a ladder has taken, as one of those that `run` has started.

    place: a folder of all jobs, where they take the numbers of measurements.
    """
    with _data_read_once():
        with _said_before():
            steps = _steps(recipe, evaluation, fresh, only, {}, 1)
        _climb(steps, taken(place, steps.plan, steps.content))


@contextmanager
def _said_before() -> Iterator[None]:
    """Say nothing about the data: the command that started this process has said it."""
    log_of_data = logging.getLogger(data.__name__)
    log_of_data.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log_of_data.setLevel(logging.NOTSET)


@contextmanager
def _data_read_once() -> Iterator[None]:
    try:
        with data.read_once():
            yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """What a ladder measures, and on what."""

    recipe: Recipe
    plan: Sequence[Measurement]
    is_only: bool
    """Whether one rung was asked for, so that it may not be left out."""
    dataset: data.Dataset
    content: str
    """The sum of the data."""
    evaluation: Evaluation
    fresh: bool
    given: Mapping[str, data.Rows]
    processes: int


def _steps(
    recipe: Recipe,
    evaluation: Evaluation,
    fresh: bool,
    only: str | None,
    given: Mapping[str, data.Rows],
    processes: int,
) -> _Steps:
    rung = None if only is None else check_rung(recipe, only)
    dataset = data.load(recipe, given)
    every = measurements(recipe, len(dataset.parts["train"]))
    return _Steps(
        recipe=recipe,
        plan=[one for one in every if rung in (None, one.rung)],
        is_only=rung is not None,
        dataset=dataset,
        content=data.content_sum(dataset),
        evaluation=evaluation,
        fresh=fresh,
        given=given,
        processes=processes,
    )


def _in_turn(plan: Sequence[Measurement]) -> Iterator[Measurement]:
    for number, one in enumerate(plan, start=1):
        log.info("[%d/%d] %s", number, len(plan), one.name)
        yield one


def _climb(steps: _Steps, plan: Iterable[Measurement]) -> None:
    """Measure one step of the plan after the other, and after the own training what it costs elsewhere."""
    examples = len(steps.dataset.parts["train"])
    for one in plan:
        try:
            if _measure(one, steps):
                mark_finished(one, key_of(one, steps.content), examples)
            if one.is_own:
                _forgetting(steps.recipe, steps.evaluation)
        except UserError as error:
            forget(one)
            if one.is_own or steps.is_only:
                error.args = (f"{one.name}: {error.args[0]}", *error.args[1:])
                raise
            log.warning("%s is left out: %s", one.name, "; ".join(error.args))
        finally:
            free_memory()
        gc.freeze()  # what is left are libraries and rows, which every collection would walk


def _measure(one: Measurement, steps: _Steps) -> bool:
    """Train and measure one rung; return False if this is finished already."""
    fresh, given = steps.fresh, steps.given
    if one.is_trained:
        reset_peak()
        fit = whole.train if one.trains_all_weights else partial(train_in, steps.processes)
        fit(one.recipe, fresh=fresh, given=given)
        free_memory()
    key = key_of(one, steps.content)
    if not fresh and is_finished(one, key):
        return False
    if not fresh and (other := borrow(one, key)) is not None:
        log.info("%s: the results are those of %s, which depend on the same", one.name, other)
        return True
    steps.evaluation.measure(one, given, again=fresh, processes=steps.processes)
    return True


def _forgetting(recipe: Recipe, evaluation: Evaluation) -> None:
    """Measure what the adapter costs elsewhere, if there is one."""
    folder = Path(recipe.run_folder)
    if recipe.lora is None or not recipe.ladder.forgetting or not is_file(folder, TRAINING):
        return
    free_memory()
    try:
        log.info("forgetting: ordinary text, and a task that it was not trained on")
        evaluation.forgetting(folder)
    except UserError as error:
        log.warning("forgetting is left out: %s", "; ".join(error.args))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("forgetting is left out: memory ran out")
    finally:
        free_memory()
