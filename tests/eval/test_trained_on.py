"""What a run was trained on is refused, or told beside its scores: by ids, and by texts if ids say nothing."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import harness, report
from eval.job import make_job
from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.system.files import sha256
from llama_peft.training import fit as training
from tests.support import runs

Row = tuple[str, int]


def write(path: Path, rows: list[Row]) -> None:
    """Without ids: a row's number is its id."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [(f"A {'fine' if n % 2 else 'dull'} film, seen {n} times", n % 2) for n in range(40)]


@pytest.fixture(scope="module")
def run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
) -> Path:
    """Trained on a file of one's own, from which test is cut."""
    folder = tmp_path_factory.mktemp("trained-on")
    write(folder / "reviews.csv", rows)
    own = {"path": None, "name": None, "parts": {"train": str(folder / "reviews.csv")}}
    keys = {"output_dir": str(folder / "run"), "max_steps": 1}
    recipe = make_recipe("classification", make_base(), dataset=own, train=keys)
    return training.train(recipe)


def test_ids_of_training_are_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    split = json.loads((copy / "split.json").read_text())
    split["train"] = split["test"]
    (copy / "split.json").write_text(json.dumps(split))
    facts = json.loads((copy / "training.json").read_text())
    facts["files"]["split.json"] = sha256(copy / "split.json")
    runs.write_record(copy, facts)
    with pytest.raises(UserError, match="8 of 8 examples have ids that it was trained on"):
        harness.run(make_job(model=str(copy), output=tmp_path / "out"))


@pytest.mark.parametrize("split", ["[]", '{"train": 5}', '{"train": [[1]]}', "[" * 100_000, "{}"])
def test_a_split_that_is_none_is_one_line(run: Path, tmp_path: Path, split: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "split.json").write_text(split)
    facts = json.loads((copy / "training.json").read_text())
    facts["files"]["split.json"] = sha256(copy / "split.json")
    runs.write_record(copy, facts)
    with pytest.raises(UserError, match=r"split\.json: this file is missing or damaged") as said:
        harness.run(make_job(model=str(copy), output=tmp_path / "out"))
    assert "\n" not in str(said.value)


def test_rows_in_another_order_are_refused(run: Path, tmp_path: Path, rows: list[Row]) -> None:
    """A row's number is then another text's, so that ids tell nothing."""
    file = run.parent / "reviews.csv"
    try:
        write(file, rows[2:] + rows[:2])  # the labels stand as before, and so the cut is the same
        with pytest.raises(UserError, match=r"read the same .* data have changed since"):
            harness.run(make_job(model=str(run), output=tmp_path / "out"))
    finally:
        write(file, rows)
    results = harness.run(make_job(model=str(run), output=tmp_path / "out"))
    assert results.config.seen_in_training == {"test": 0}


def test_training_rows_in_another_file_are_counted_and_shown(
    run: Path, tmp_path: Path, rows: list[Row], caplog: pytest.LogCaptureFixture
) -> None:
    """Under other ids, in other case and spacing, beside rows that are new."""
    parts = data.load(load_recipe(run / "recipe.yaml")).parts
    known = [(f"  {example.text.upper()} ", 1) for example in parts["train"][:3]]
    write(tmp_path / "mine.csv", [("Nobody has read this.", 0), *known])
    job = make_job(model=str(run), data_file=str(tmp_path / "mine.csv"), output=tmp_path / "out")
    results = harness.run(job)
    assert results.config.seen_in_training == {"data": 3}
    said = "3 of 4 examples read the same as an example that this run was trained on"
    assert said in caplog.text
    (table,) = report.compare([tmp_path / "out"])
    assert any("3 of the 4 examples are the same" in note for note in table.notes)


def test_a_text_that_stands_twice_in_the_data_is_counted(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """One's own data may repeat themselves: that is told, and no reason to refuse."""
    write(tmp_path / "train.csv", [("Fine.", 1), ("Dull.", 0), ("Warm.", 1), ("Cold.", 0)])
    write(tmp_path / "test.csv", [("fine.", 1), ("New.", 0)])
    own = {
        "path": None,
        "name": None,
        "validation_size": 0,
        "parts": {part: str(tmp_path / f"{part}.csv") for part in ("train", "test")},
    }
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    folder = training.train(make_recipe("classification", make_base(), dataset=own, train=keys))
    results = harness.run(make_job(model=str(folder), output=tmp_path / "out"))
    assert results.config.seen_in_training == {"test": 1}
    other = make_job(model=str(folder), output=tmp_path / "other", overrides=[CHOICE])
    assert harness.run(other).config.seen_in_training == {"test": 1}, "other data, no change"


CHOICE = "dataset.max_train_samples=3"
"""An evaluation may choose other data than the training's, and then nothing has changed in them."""


def test_the_validation_part_is_not_looked_at(run: Path, tmp_path: Path) -> None:
    """It chose the weights, and nobody takes its number for one of new examples."""
    both = ["test", "validation"]
    results = harness.run(make_job(model=str(run), splits=both, output=tmp_path / "out"))
    assert results.config.seen_in_training == {"test": 0}
    (test, validation) = report.compare([tmp_path / "out"])
    assert "trained on" not in " ".join([*test.notes, *validation.notes])


def test_a_run_without_a_record_says_that_it_knows_nothing(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that was made before there was any."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    facts = json.loads((copy / "training.json").read_text())
    del facts["files"]["data.sha256"]
    runs.write_record(copy, facts)
    write(tmp_path / "mine.csv", [("A dull film, seen 0 times", 0), ("New.", 1)])
    job = make_job(model=str(copy), data_file=str(tmp_path / "mine.csv"), output=tmp_path / "out")
    assert harness.run(job).config.seen_in_training is None
    assert "this run does not record which examples it was trained on" in caplog.text
