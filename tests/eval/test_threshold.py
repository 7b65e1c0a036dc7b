"""The no-answer threshold: fitted on validation, kept with its run, and fitted again if anything differs."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval import harness, threshold
from llama_peft.errors import UserError
from llama_peft.inference.ask import load_run
from llama_peft.inference.predict import tempered
from llama_peft.recipe import Recipe
from llama_peft.recipe.schema import Parts
from llama_peft.system.files import with_sum
from tests.support.eval.jobs import job_for, lines_of


def test_span_threshold_is_fitted_on_validation_and_kept(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = span_run
    results = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    kept = json.loads((folder / "threshold.json").read_text())
    assert kept["fitted_on"] == 8
    assert results.configs["small"].no_answer_threshold == kept["no_answer_threshold"]
    for line in lines_of(tmp_path / "tuned"):
        silent = line["no_answer_probability"] > kept["no_answer_threshold"]
        assert line["prediction"] == ("" if silent else line["raw"])
    (folder / "threshold.json").write_text(
        json.dumps(with_sum(kept | {"no_answer_threshold": 1.0}))
    )
    harness.run(job_for(recipe, folder, tmp_path / "again"))
    assert all(line["prediction"] == line["raw"] for line in lines_of(tmp_path / "again"))
    (folder / "threshold.json").unlink()


def test_a_threshold_is_of_its_validation_examples_and_settings(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """Fitted under overrides, it is used by that evaluation only; if it does not fit, it is fitted again."""
    recipe, folder = span_run
    few = recipe.changed(dataset={"max_eval_samples": 4})
    assert harness.run(job_for(few, folder, tmp_path / "few"))
    assert not (folder / "threshold.json").exists()
    short = recipe.changed(eval={"max_answer_length": 1})
    assert harness.run(job_for(short, folder, tmp_path / "short"))
    assert not (folder / "threshold.json").exists()
    full = harness.run(job_for(recipe, folder, tmp_path / "full"))
    fitted = (folder / "threshold.json").read_text()
    stale = json.loads(fitted) | {"no_answer_threshold": 0.999, "fitted_for": "another"}
    for name, record in {"stale": with_sum(stale), "bare": {"no_answer_threshold": 0.9}}.items():
        (folder / "threshold.json").write_text(json.dumps(record))
        again = harness.run(job_for(recipe, folder, tmp_path / name))
        assert (folder / "threshold.json").read_text() == fitted
        assert again.results == full.results
    (folder / "threshold.json").unlink()


def test_a_file_is_evaluated_with_the_threshold_of_the_run_s_validation(
    span_run: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, folder = span_run
    row = {"question": "Who?", "context": "Ada built it.", "answers": ["Ada"]}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row))
    harness.run(job_for(recipe, folder, tmp_path / "own", data_file=str(file)))
    kept = json.loads((folder / "threshold.json").read_text())
    assert kept["fitted_on"] == 8
    (folder / "threshold.json").unlink()
    gone = recipe.changed(dataset={"path": None, "name": None, "parts": Parts(train="gone.csv")})
    with caplog.at_level("WARNING", logger="eval.threshold"):
        found = harness.run(job_for(gone, folder, tmp_path / "gone", data_file=str(file)))
    assert found.configs["small"].no_answer_threshold == 0.5
    assert "gone.csv" in caplog.text and "0.5" in caplog.text


def test_a_temperature_is_fitted_on_validation_kept_and_used_everywhere(
    class_run: tuple[Recipe, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It changes no label; results hold the scores with it and without; old results have none."""
    recipe, folder = class_run
    texts = ["good film", "a dull, slow film"]
    before = load_run(folder).predict(texts)
    with caplog.at_level("INFO", logger="eval.threshold"):
        results = harness.run(job_for(recipe, folder, tmp_path / "few"))
    assert "8 validation examples are fewer than 50, so no temperature is fitted" in caplog.text
    assert results.configs["small"].temperature is None and not (folder / "threshold.json").exists()
    monkeypatch.setattr(threshold, "FEW", 8)
    results = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    kept = json.loads((folder / "threshold.json").read_text())
    temperature = kept["temperature"]
    assert kept["fitted_on"] == 8 and kept["metric"] == "log_loss" and temperature != 1
    assert results.configs["small"].temperature == temperature
    scores, lines = results.results["small"], lines_of(tmp_path / "tuned")
    raws = [tempered(line["probabilities"], 1 / temperature) for line in lines]
    order = [results.settings.labels.index(line["gold"]) for line in lines]
    loss = -np.mean([np.log(raw[gold]) for raw, gold in zip(raws, order, strict=True)])
    assert scores["log_loss_uncalibrated"] == pytest.approx(loss, abs=1e-9)
    assert sum(scores["reliability_count_per_bin"]) == len(lines)
    after = load_run(folder).predict(texts)
    for first, second in zip(before, after, strict=True):
        expected = tempered(list(first.probabilities.values()), temperature)
        assert list(second.probabilities.values()) == pytest.approx(expected)
        assert first.prediction == second.prediction
    other = {"no_answer_threshold": 0.5, "fitted_for": "x"}
    (folder / "threshold.json").write_text(json.dumps(with_sum(other)))
    with pytest.raises(UserError, match="damaged"):
        load_run(folder)
    (folder / "threshold.json").unlink()
