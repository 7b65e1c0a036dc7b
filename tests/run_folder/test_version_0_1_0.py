"""Runs of version 0.1.0 can still be read: opened, evaluated, compared, continued, staged and
shown.
"""

import json
import shutil
from pathlib import Path

import pytest

from eval import report
from eval.__main__ import app
from eval.results import read_systems
from llama_peft.export.stage import stage
from llama_peft.recipe import load_recipe
from llama_peft.run_folder import layout
from llama_peft.run_folder.comparison import read_comparison
from llama_peft.run_folder.results import read_results
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.threshold import read_threshold
from llama_peft.training.fit import train
from tests.support import runs
from tests.support.paths import RUNS_0_1_0

EVALUATED = ["classifier", "head", "span", "generative"]
NUMBERS = ("probabilities", "no_answer_probability")


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run that the test names, in the place that its recipe names: `runs/NAME` in the
    working folder.
    """
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(RUNS_0_1_0 / request.param, tmp_path / "runs" / request.param))


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / layout.PREDICTIONS).open(encoding="utf-8")]


def scores_of(folder: Path) -> dict[str, object]:
    """The scores of an evaluation of one part."""
    (scores,) = read_results(folder / layout.RESULTS).results.values()
    return dict(scores)


def test_every_kind_of_run_is_there() -> None:
    assert sorted(path.name for path in RUNS_0_1_0.iterdir()) == sorted([*EVALUATED, "pushed"])
    kinds = {load_recipe(RUNS_0_1_0 / name / layout.RECIPE).task for name in EVALUATED}
    assert len(kinds) == 3


@pytest.mark.parametrize("run", [*EVALUATED, "pushed"], indirect=True)
def test_an_evaluation_gives_the_recorded_predictions(run: Path, tmp_path: Path) -> None:
    """A pushed run holds no predictions: it must give those of the run that was pushed."""
    before = runs.sums(run)
    recorded = lines(RUNS_0_1_0 / ("classifier" if run.name == "pushed" else run.name) / "tuned")
    output = tmp_path / "out"
    words = ["run", "--model", f"runs/{run.name}", "--output", str(output)]
    app(words, standalone_mode=False)
    found = lines(output)
    assert len(found) == 16
    for old, new in zip(recorded, found, strict=True):
        for key in NUMBERS:
            assert new.pop(key, None) == pytest.approx(old.pop(key, None), abs=1e-4)
        for name in ("group", "prompt", "passage", "start", "gold_starts"):
            new.pop(name, None)  # what this version records of the example beside it
        assert new == old
    scores, recorded_scores = scores_of(output), scores_of(run / layout.TUNED)
    assert scores.keys() >= recorded_scores.keys()  # this version knows more scores
    for name, score in recorded_scores.items():
        if name.endswith("_ci95"):  # version 0.1.0's were too narrow
            continue
        assert scores[name] == pytest.approx(score, abs=1e-4), name
    assert runs.sums(run) == before


@pytest.mark.parametrize("run", EVALUATED, indirect=True)
def test_results_and_comparisons_can_be_read(run: Path) -> None:
    for name in (layout.ZERO_SHOT, layout.TUNED):
        (system,) = read_systems(run / name)
        assert len(system.lines) == 16 and system.part == "test"
    comparison = read_comparison(run)
    assert comparison.results_sha256.keys() == {layout.ZERO_SHOT, layout.TUNED}
    (part,) = comparison.parts
    assert part.examples == 16 and part.metrics
    opened = open_run(run)
    assert opened.record.steps == 4
    threshold = read_threshold(run)
    assert (threshold is not None) == opened.recipe.kind.fits_threshold
    assert threshold is None or threshold.fitted_on == 8


@pytest.mark.parametrize("run", ["head"], indirect=True)
def test_training_continues_from_a_checkpoint(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A finished run stays as it is. One without its exports makes the same bytes again, from its
    checkpoint alone.
    """
    recipe = load_recipe(run / layout.RECIPE)
    before = runs.sums(run)
    caplog.set_level("INFO", "llama_peft")
    assert train(recipe).resolve() == run and "is finished" in caplog.text
    assert before.items() <= runs.sums(run).items()
    (run / layout.TRAINING).unlink()
    (run / layout.HEAD).unlink()
    train(recipe)
    after = runs.sums(run)
    kept = (layout.HEAD, layout.LAYER_CHOICE)
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert open_run(run).record.resumed_from == "checkpoint-4"
    assert open_run(run).record.files == open_run(RUNS_0_1_0 / "head").record.files


@pytest.mark.parametrize("run", ["classifier"], indirect=True)
def test_a_run_is_staged_and_shown(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    bundle = stage(open_run(run), folder)
    assert open_run(folder).record.weights_sha256 == open_run(run).record.weights_sha256
    assert bundle.comparison is not None and len(bundle.comparison.parts) == 1
    old = read_comparison(run)
    (run / layout.REPORT).unlink()
    (run / layout.COMPARISON).unlink()
    assert report.write_html(run).is_file()
    (found,) = read_comparison(run).parts
    (before,) = old.parts
    kept = {"name", "percent", "zero_shot", "tuned", "difference"}  # intervals were too narrow
    assert [one.model_dump(include=kept) for one in found.metrics] == [
        one.model_dump(include=kept) for one in before.metrics
    ]
