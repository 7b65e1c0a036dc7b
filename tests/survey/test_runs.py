"""The list of runs: what each is about, what it scored, and how far it is."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_peft.__main__ import app
from llama_peft.errors import UserError
from llama_peft.run_folder.layout import RESULTS, TRAINING
from llama_peft.survey.runs import find_runs
from llama_peft.system.lock import only_process
from tests.support.paths import RUNS_0_1_0


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("measured", "finished", "interrupted", "damaged", "inner/other"):
        shutil.copytree(RUNS_0_1_0 / "classifier", tmp_path / name)
    shutil.rmtree(tmp_path / "finished/tuned")
    for name in ("interrupted", "inner/other"):
        (tmp_path / name / TRAINING).unlink()
    (tmp_path / "damaged/tuned" / RESULTS).write_text("{}", "utf-8")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_states_and_scores(runs: Path) -> None:
    with only_process(runs / "inner/other", "training"):
        found = {run.folder.name: run for run in find_runs(runs)}
    assert {name: run.state for name, run in found.items()} == {
        "measured": "measured",
        "finished": "finished",
        "interrupted": "interrupted",
        "damaged": "damaged",
        "other": "training",
    }
    measured = found["measured"].as_dict()
    assert measured["task"] == "classification" and measured["base"] == "tiny"
    assert measured["score"].startswith("accuracy 0.") and "[" in measured["score"]
    assert measured["size"].endswith(" MB")


def test_a_line_each(runs: Path) -> None:
    lines = CliRunner().invoke(app, ["runs", str(runs)]).stdout.splitlines()
    assert len(lines) == 6 and lines[0].split() == [
        "run",
        "state",
        "task",
        "base",
        "score",
        "date",
        "size",
    ]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_runs(tmp_path / "runs")
    assert find_runs(tmp_path) == []
