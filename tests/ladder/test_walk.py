"""The walk of a recipe: every rung once, nothing twice, and what was interrupted continues."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eval.ladder import steps
from eval.ladder.verdict import judge
from llama_peft.data import Rows, dataset
from llama_peft.errors import Stopped, UserError
from llama_peft.ladder import walk
from llama_peft.recipe import Recipe
from llama_peft.run_folder.ladder.finished import read_finished
from llama_peft.run_folder.ladder.rungs import Measurement, measurements
from llama_peft.run_folder.layout import LADDER, PREDICTIONS, REPORT
from llama_peft.system.processes import launch
from tests.support import forked
from tests.support.runs import record_of
from tests.support.small import make_recipe, save_base

LADDER_KEYS = {
    "rungs": ["majority", "zero-shot", "head", "tuned"],
    "seeds": [1],
    "sizes": [12],
    "forgetting": False,
}


def recipe_in(folder: Path, **ladder: object) -> Recipe:
    base = folder / "base"
    if not base.exists():
        save_base(base)
    return make_recipe(
        "classification",
        base,
        lora={"r": 2},
        train={"output_dir": str(folder / "run")},
        ladder={**LADDER_KEYS, **ladder},
    )


class Watched:
    """The evaluation, with what it was asked to measure; one measurement ends as by Ctrl-C."""

    forgetting = staticmethod(steps.forgetting)
    verdict = staticmethod(steps.verdict)

    def __init__(self, stop_at: str | None = None) -> None:
        self.stop_at, self.seen = stop_at, list[str]()

    def measure(
        self, one: Measurement, given: Mapping[str, Rows], again: bool, processes: int = 1
    ) -> None:
        if one.results == self.stop_at:
            raise Stopped(2)
        self.seen.append(one.results)
        steps.measure(one, given, again, processes)


ALL = [
    "ladder/majority",
    "zero-shot",
    "ladder/head-seed-1/tuned",
    "tuned",
    "ladder/head-12-seed-1/tuned",
    "ladder/tuned-12-seed-1/tuned",
]


def test_an_interrupted_ladder_continues_and_measures_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each walk reads the data once, for all trainings and evaluations."""
    recipe, read = recipe_in(tmp_path), []
    plain = dataset._whole
    monkeypatch.setattr(dataset, "_whole", lambda *a: (read.append(a), plain(*a))[1])
    stopped, evaluation = Watched(stop_at="tuned"), Watched()
    with pytest.raises(Stopped):
        walk.run(recipe, stopped)
    run = walk.run(recipe, evaluation)
    first, second = stopped.seen, evaluation.seen
    assert [*first, *second] == ALL
    assert len(read) == 2
    assert evaluation.verdict(run)
    verdict = judge(run)
    assert 1 <= len(verdict.lines) <= 8
    rungs, sizes = verdict.tables
    assert len(rungs.rows) == 4
    assert [row.name for row in sizes.rows] == ["12", "24"]
    assert all(cell.text for row in sizes.rows for cell in row.cells)
    assert verdict.lines[0] in (run / REPORT).read_text("utf-8").replace("&#39;", "'")
    walk.run(recipe, evaluation)
    assert second == ALL[len(first) :]  # nothing is measured again
    # A result that was changed is measured again, and only this one.
    damaged = run / "ladder/head-12-seed-1/tuned/results.json"
    damaged.write_text(damaged.read_text("utf-8") + " ")
    walk.run(recipe, evaluation)
    assert second[-1] == "ladder/head-12-seed-1/tuned"
    assert len(second) == len(ALL) - len(first) + 1


def test_what_tuning_costs_elsewhere_is_measured_after_the_own_training_and_ends_no_walk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if memory runs out: every further walk would end there too."""
    recipe = recipe_in(tmp_path, rungs=["tuned"], forgetting=True)
    evaluation = Watched()

    def forgetting(run: Path) -> None:
        evaluation.seen.append(f"forgetting of {run.name}")
        raise MemoryError

    evaluation.forgetting = forgetting
    walk.run(recipe, evaluation)
    assert evaluation.seen == ["tuned", "forgetting of run", "ladder/tuned-12-seed-1/tuned"]
    assert "forgetting is left out: memory ran out" in caplog.text


def test_a_curve_is_measured_from_its_end_and_shown_from_its_beginning(tmp_path: Path) -> None:
    evaluation = Watched()
    run = walk.run(recipe_in(tmp_path, rungs=["tf-idf"], sizes=[6, 12]), evaluation)
    assert evaluation.seen == [f"ladder/tf-idf{end}" for end in ("", "-12", "-6")]
    _, table = judge(run).tables
    assert [row.name for row in table.rows] == ["6", "12", "24"]


def test_one_rung_alone(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, seeds=[], sizes=[])
    evaluation = Watched()
    run = walk.run(recipe, evaluation, only="majority")
    seen = evaluation.seen
    assert seen == ["ladder/majority"]
    assert not (run / "training.json").exists()
    finished = read_finished(run)
    assert finished is not None
    assert [*finished.results] == seen
    # A rung that can no longer be measured is not shown with the results of another recipe.
    run_of = str(run)
    cannot = make_recipe(
        "classification",
        recipe.model.model_name_or_path,
        train={"output_dir": run_of},
        lora={"r": 2},
        eval={"num_fewshot": 1},
        ladder=recipe.ladder.model_dump(),
    )
    with pytest.raises(UserError):  # nothing else was asked for
        walk.run(cannot, evaluation, only="majority")
    finished = read_finished(run)
    assert finished is not None
    assert not finished.results
    with pytest.raises(UserError, match="no such rung"):
        walk.run(recipe, evaluation, only="bm25")


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    mine = tmp_path / "run" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="holds something that no training of ours made"):
        walk.run(recipe, Watched())
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "run" / LADDER).exists()


def test_what_does_not_depend_on_the_learning_rate_is_shared(tmp_path: Path) -> None:
    """Another run of the recipe gets the results of rungs that train nothing, if they are whole."""
    recipe = recipe_in(tmp_path, rungs=["majority", "zero-shot"])
    run, other = tmp_path / recipe.name, tmp_path / f"{recipe.name}+learning_rate=0.01"
    slow = recipe.with_train({"output_dir": str(run)})
    fast = recipe.with_train({"output_dir": str(other), "learning_rate": 0.01})
    first, second, third = Watched(), Watched(), Watched()
    walk.run(slow, first)
    walk.run(fast, second)
    assert first.seen == ["ladder/majority", "zero-shot"] and second.seen == []
    for name in ("results.json", "predictions.jsonl"):
        assert (other / "zero-shot" / name).read_bytes() == (run / "zero-shot" / name).read_bytes()
    assert judge(other).tables[0].rows == judge(run).tables[0].rows
    (run / "zero-shot/predictions.jsonl").write_text("", "utf-8")
    (other / "zero-shot/results.json").unlink()
    walk.run(fast, third)
    assert third.seen == ["zero-shot"]


def test_models_train_and_predict_in_several_processes_and_say_what_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in one of them leaves a rung out, or ends the walk, as here."""
    started = list[tuple[str, int]]()

    def start(command: list[str], rank: int, *of: Any) -> forked.Rank:
        started.append((" ".join(command[2:5]), rank))
        return forked.Rank(command, rank, *of)

    monkeypatch.setattr(launch, "_start", start)
    recipe = recipe_in(
        tmp_path, rungs=["majority", "zero-shot", "few-shot", "tuned"], seeds=[], sizes=[]
    )
    watched = Watched()
    folder = walk.run(recipe, watched, processes=2)
    assert watched.seen == ["ladder/majority", "zero-shot", "ladder/few-shot", "tuned"]
    assert record_of(folder).processes == 2
    models = ["zero-shot", "few-shot", "tuned"]
    assert [words for words, rank in started if rank and "rung" in words] == [
        f"eval rung {name}" for name in models
    ]
    for one in measurements(recipe, 24)[1:]:
        predictions = folder / one.results / PREDICTIONS
        in_two = predictions.read_bytes()
        predictions.unlink()
        steps.measure(one, {}, again=True)
        assert predictions.read_bytes() == in_two
    huge = recipe.with_train({"learning_rate": 1e30})
    with pytest.raises(UserError, match=r"step \d: .* is (nan|inf)"):
        walk.run(huge, watched, processes=2, fresh=True)
