"""The reference is chosen, equal results stand once, and what differs between two runs is said."""

import json
import shutil
from pathlib import Path

import pytest

from eval import report
from eval.report.table import Row, Table
from llama_peft.errors import UserError
from tests.support.evaluations import GOLDS, LABELS, write
from tests.support.paths import RUNS_0_1_0


def names(folders: list[Path], against: str | None = None) -> list[str]:
    (table,) = report.compare(folders, against)
    return [row.name for row in systems(table)]


def systems(table: Table) -> list[Row]:
    """The rows that have costs: those of evaluated systems."""
    return [row for row in table.rows if any(map(any, row.cells[table.costs_from :]))]


def test_the_reference_is_chosen_by_its_path_its_end_or_its_kind(run: Path) -> None:
    assert names([run]) == ["zero-shot", "head"]
    for word in (str(run / "tuned"), "tuned", "sst2/tuned", "head"):
        assert names([run], word) == ["head", "zero-shot"]
    (table,) = report.compare([run], "tuned")
    (change,) = [row for row in table.rows if row.name == "difference"]
    assert change.cells[0].text.startswith("-0.3")


def test_a_word_that_names_none_or_several_is_refused(run: Path, tmp_path: Path) -> None:
    write(tmp_path / "other/tuned", GOLDS, GOLDS, labels=LABELS)
    with pytest.raises(UserError, match=r"names none .*zero-shot"):
        report.compare([run], "absent")
    with pytest.raises(UserError, match=r"names several .*other/tuned"):
        report.compare([run, tmp_path / "other/tuned"], "tuned")


def test_a_run_folder_without_the_usual_two_stands_for_what_is_in_it(tmp_path: Path) -> None:
    for name in ("4-shot", "tf-idf"):
        write(tmp_path / name, GOLDS, GOLDS, labels=LABELS, kind=name)
    assert names([tmp_path]) == ["4-shot", "tf-idf"]


def test_two_runs_say_what_differs_and_share_their_zero_shot(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(RUNS_0_1_0 / "classifier", tmp_path / name)
    file = tmp_path / "two/recipe.yaml"
    text = file.read_text("utf-8")
    file.write_text(text.replace("warmup_steps: ", "warmup_steps: 7  # "), "utf-8")
    (table,) = report.compare([tmp_path / "one", tmp_path / "two"])
    assert len(systems(table)) == 2, "all four results are those of two models"
    same = [note for note in table.notes if "has the same predictions as" in note]
    assert len(same) == 2 and str(tmp_path / "two/zero-shot") in same[0]
    (table,) = report.compare([tmp_path / "one/tuned", tmp_path / "two/zero-shot"])
    assert any("train.warmup_steps 7.0 (there 0.03" in note for note in table.notes)


def test_scored_predictions_have_the_name_of_their_file(run: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine", GOLDS, GOLDS, labels=LABELS, kind="scored predictions")
    file = tmp_path / "mine/results.json"
    results = json.loads(file.read_text("utf-8"))
    results["config"] |= {"model": None, "predictions": "/x/mine.csv"}
    file.write_text(json.dumps(results), "utf-8")
    assert "mine.csv, scored predictions" in names([run, tmp_path / "mine"])
