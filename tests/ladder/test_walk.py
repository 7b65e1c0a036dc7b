"""The walk of a recipe: every rung once, nothing twice, and what was interrupted continues."""

from pathlib import Path

import pytest

from eval.ladder.verdict import judge
from llama_peft.errors import Stopped, UserError
from llama_peft.ladder import walk
from llama_peft.recipe import Recipe
from llama_peft.run_folder.ladder.finished import read_finished
from llama_peft.run_folder.ladder.rungs import Measurement
from llama_peft.run_folder.layout import LADDER, REPORT
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


def watched(monkeypatch: pytest.MonkeyPatch, stop_at: str | None = None) -> list[str]:
    """The measurements that are evaluated from now on; one of them ends as by Ctrl-C."""
    seen: list[str] = []
    job_of = walk._job

    def note(one: Measurement, given: object) -> object:
        if one.results == stop_at:
            raise Stopped(2)
        seen.append(one.results)
        return job_of(one, None)

    monkeypatch.setattr(walk, "_job", note)
    return seen


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
    recipe = recipe_in(tmp_path)
    first = watched(monkeypatch, stop_at="tuned")
    with pytest.raises(Stopped):
        walk.run(recipe)
    monkeypatch.undo()
    second = watched(monkeypatch)
    run = walk.run(recipe)
    assert [*first, *second] == ALL
    verdict = judge(run)
    assert 1 <= len(verdict.lines) <= 8
    rungs, sizes = verdict.tables
    assert len(rungs.rows) == 4
    assert [row.name for row in sizes.rows] == ["12", "24"]
    assert all(cell.text for row in sizes.rows for cell in row.cells)
    assert verdict.lines[0] in (run / REPORT).read_text("utf-8").replace("&#39;", "'")
    walk.run(recipe)
    assert second == ALL[len(first) :]  # nothing is measured again
    # A result that was changed is measured again, and only this one.
    damaged = run / "ladder/head-12-seed-1/tuned/results.json"
    damaged.write_text(damaged.read_text("utf-8") + " ")
    walk.run(recipe)
    assert second[-1] == "ladder/head-12-seed-1/tuned"
    assert len(second) == len(ALL) - len(first) + 1


def test_one_rung_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_in(tmp_path, seeds=[], sizes=[])
    seen = watched(monkeypatch)
    run = walk.run(recipe, only="majority")
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
    walk.run(cannot, only="majority")
    finished = read_finished(run)
    assert finished is not None
    assert not finished.results
    with pytest.raises(UserError, match="no such rung"):
        walk.run(recipe, only="bm25")


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    mine = tmp_path / "run" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match="holds something that no training of ours made"):
        walk.run(recipe)
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "run" / LADDER).exists()
