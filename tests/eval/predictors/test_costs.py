"""What a model costs, as results.json says it."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from eval.predictors.costs import Meter
from eval.predictors.predictor import Predictor
from eval.predictors.recognise import Subject
from llama_peft.data import Example, QuestionExample
from llama_peft.inference.predict import Prediction
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import Costs, ModelConfig, read_results
from tests.support.eval.jobs import evaluate
from tests.support.paths import ROOT

ASKED = [QuestionExample(id=str(n), context="", question="Who?", answers=()) for n in range(4)]


def slow(examples: Sequence[Example], size: int) -> Iterator[list[Prediction]]:
    for one in examples:
        time.sleep(0.02)
        yield [Prediction(id=one.id, prediction="")]


def test_only_the_time_of_predictions_counts() -> None:
    """Not that of whoever takes them; and fitting is measured apart."""
    config = ModelConfig(model_kind="slow", recipe="small")
    fit = lambda: [time.sleep(0.05), 7][1]  # noqa: E731
    meter = Meter(Predictor(config=config, labels=(), predict=slow, prompt=str, fit=fit))
    subject = Subject(kind="baseline", name="slow")
    assert meter.costs(subject).seconds_per_1000 is None
    meter.fit()
    for _ in meter.measured.predict(ASKED, 1):
        time.sleep(0.1)
    costs = meter.costs(subject)
    assert costs.bytes_to_ship == 7 and 0.05 <= (costs.fit_seconds or 0) < 0.2
    assert 20 <= (costs.seconds_per_1000 or 0) < 80


def test_a_run_ships_its_weights_and_a_base_nothing(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    results = evaluate(recipe, folder, tmp_path / "tuned")
    found = results.costs
    assert found.bytes_to_ship == (folder / "head.safetensors").stat().st_size
    assert found.fit_seconds == pytest.approx(results.config.training.wall_seconds, abs=1e-3)
    zero = evaluate(recipe, recipe.model.model_name_or_path, tmp_path / "zero").costs
    assert (zero.fit_seconds, zero.bytes_to_ship) == (0.0, 0) and zero.seconds_per_1000


def test_older_results_have_no_costs() -> None:
    old = next((ROOT / "tests/support/runs_0.1.0").rglob("results.json"))
    assert read_results(old).costs == Costs()
