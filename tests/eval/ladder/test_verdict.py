"""The verdict says first what tuning does not beat, and why, and never claims more than was measured."""

from pathlib import Path

import pytest

from eval.ladder import read, verdict
from eval.ladder.read import Climbed, Repeat, Rung
from eval.ladder.standing import best_of, standings
from eval.lines import PredictionLine, Told
from eval.metrics.catalogue import METRICS
from eval.metrics.intervals import measured_means
from eval.results import SystemResults
from llama_peft.recipe import RungName
from llama_peft.run_folder.ladder.rungs import Measurement
from llama_peft.run_folder.results import ModelConfig, Results, TaskSettings
from tests.eval.ladder.test_causes import run_with
from tests.support.small import make_recipe

ACCURACY = next(metric for metric in METRICS if metric.name == "accuracy")


def rung(folder: Path, name: RungName, right: int, of: int = 120) -> Rung:
    """A rung with so many right predictions."""
    recipe = make_recipe("classification", "tiny", lora={"r": 2})
    results = Results(
        results={"t": {}}, configs={"t": TaskSettings(labels=["a", "b"])},
        config=ModelConfig(model_kind=name, recipe="t"),
    )  # fmt: skip
    system = SystemResults(
        folder=folder,
        task="t",
        part="test",
        labels=("a", "b"),
        lines=[],
        told=Told.of([]),
        results=results,
    )
    one = Measurement(rung=name, recipe=recipe, run=str(folder), results=name)
    found = Rung(
        name=name, title=name, size=None, repeats=(Repeat(measurement=one, system=system, record=None),)
    )  # fmt: skip
    values = [[1.0] * right + [0.0] * (of - right)]
    found.__dict__["measured"] = {
        "accuracy": measured_means(values, is_deterministic=name != "tuned")
    }
    return found


@pytest.mark.parametrize(("golds", "says"), [(["a"], False), ([], True)])
def test_no_answer_is_missing_only_if_a_question_has_none(
    golds: list[str], says: bool, tmp_path: Path
) -> None:
    recipe = make_recipe("generative_qa", "tiny", lora={"r": 2})
    lines = [
        PredictionLine(id="1", prediction="", gold=["b"], split="test"),
        PredictionLine(id="2", prediction="", gold=golds, split="test"),
    ]
    results = Results(
        results={"t": {}}, configs={"t": TaskSettings(labels=[])},
        config=ModelConfig(model_kind="bm25", recipe="t"),
    )  # fmt: skip
    known = SystemResults(
        folder=tmp_path, task="t", part="test", labels=(), lines=lines, told=Told.of(lines), results=results
    )  # fmt: skip
    one = Measurement(rung="no-answer", recipe=recipe, run=str(tmp_path), results="no-answer")
    assert read._says_something(one, known) is says
    assert read._says_something(Measurement(rung="bm25", recipe=recipe, run="", results=""), known)


def climbed(folder: Path, **right: int) -> Climbed:
    run = run_with(folder, [1.0 - 0.05 * n for n in range(15)], num_train_epochs=2.0)
    names: dict[str, RungName] = {"tf_idf": "tf-idf", "zero_shot": "zero-shot", "tuned": "tuned"}
    rungs = tuple(rung(folder, names[name], count) for name, count in right.items())
    recipe = make_recipe("classification", "tiny", lora={"r": 2})
    return Climbed(
        run=run, recipe=recipe, part="test", examples=480, rungs=rungs, smaller=(), missing=()
    )


def lines(found: Climbed) -> list[str]:
    best = best_of(found, ACCURACY)
    standing = standings(found, ACCURACY, best)
    return [
        *verdict._unbeaten(found, ACCURACY),
        *verdict._best(found, standing, best, ACCURACY),
        *verdict._cheaper(standing, best, ACCURACY),
        *verdict._not_measured(found),
    ]


def test_what_is_free_and_better_comes_first_with_the_cause(tmp_path: Path) -> None:
    """600 tickets: the untouched base .19, tuned .39, and TF-IDF .875."""
    first, cause, best, *_, last = lines(climbed(tmp_path, tf_idf=105, zero_shot=23, tuned=47))
    assert first.startswith("Tuning is worse than tf-idf: 0.3917 against 0.8750 (-0.4833 [")
    assert cause.endswith("Try train.num_train_epochs=4.")
    assert best.startswith("Best: tf-idf")
    assert "other seeds (ladder.seeds), so each difference is about one training only" in last


def test_a_lead_within_the_noise_is_not_called_one(tmp_path: Path) -> None:
    first, _, best, cheaper, _ = lines(climbed(tmp_path, tf_idf=96, zero_shot=60, tuned=97))
    assert first.startswith("Tuning does not clearly beat tf-idf")
    assert best.startswith("Best: tuned")
    assert cheaper.startswith("The cheapest within its noise: tf-idf")


def test_a_clear_lead_is_said_without_a_warning(tmp_path: Path) -> None:
    best, cheaper, _ = lines(climbed(tmp_path, tf_idf=80, zero_shot=60, tuned=110))
    assert best.startswith("Best: tuned, accuracy 0.9167 [")
    assert cheaper == "Nothing cheaper is within the noise of it."


@pytest.mark.parametrize(
    ("task", "ladder", "word"),
    [
        ("extractive_qa", {"encoder": "some/encoder"}, "works for texts"),
        ("classification", {"rungs": ["bm25"]}, "bm25"),
        ("generative_qa", {"rungs": ["tf-idf"]}, "tf-idf"),
        ("classification", {"rungs": ["encoder"]}, "set ladder.encoder"),
        ("generative_qa", {"rungs": ["hosted"]}, "set ladder.hosted"),
    ],
)
def test_a_ladder_asks_for_nothing_that_does_not_exist(
    task: str, ladder: dict[str, object], word: str
) -> None:
    with pytest.raises(AssertionError, match=word):
        make_recipe(task, "tiny", lora={"r": 2}, ladder=ladder)
