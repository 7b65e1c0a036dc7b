"""A training can choose its checkpoint by what its model predicts; these scores are those of `eval`."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from eval import harness
from eval.metrics.classification import classification_evidence
from eval.metrics.evidence import scores_of
from eval.metrics.sets_and_numbers import label_set_evidence, number_evidence
from eval.metrics.squad_v2 import fit_threshold, squad_scores
from llama_peft import data, scores
from llama_peft.inference.ask import load_run
from llama_peft.inference.predict import decided, predict
from llama_peft.recipe import Recipe, validate
from llama_peft.run_folder.threshold import Threshold
from llama_peft.training import fit as training
from tests.support import runs
from tests.support.eval.jobs import job_for, lines_of
from tests.support.questions import some_prediction

LABELS = ["a", "b", "c"]


def test_scores_are_those_of_the_evaluation() -> None:
    draw = random.Random(3)
    passage, answers = (
        "the old house of Mary stood by the river in Spain",
        ["the old house", "Mary"],
    )
    for _ in range(10):
        golds = {str(i): answers[: draw.randint(0, 2)] for i in range(30)}
        said = {i: some_prediction(passage, its, draw) for i, its in golds.items()}
        official = squad_scores(said, golds)
        for name in ("exact", "f1"):
            assert scores.answer_score(name, said, golds) == pytest.approx(official[name])
        chances = {i: draw.choice([0.1, 0.2, 0.5, 0.9]) for i in golds}
        assert scores.fit_threshold(said, golds, chances) == fit_threshold(said, golds, chances)

        sets = [tuple(x for x in LABELS if draw.random() < 0.5) for _ in range(60)]
        numbers = [draw.gauss(0, 1) for _ in range(60)]
        pairs = ({str(i): x for i, x in enumerate(its)} for its in (sets[:30], sets[30:]))
        expected = scores_of(label_set_evidence(*pairs, LABELS))
        for name in ("subset_accuracy", "f1_micro"):
            found = scores.label_score(name, sets[:30], sets[30:], LABELS)
            assert found == pytest.approx(expected[name])
        pairs = ({str(i): x for i, x in enumerate(its)} for its in halves(numbers))
        expected = scores_of(number_evidence(*pairs))
        for name in ("mae", "pearson"):
            assert scores.number_score(name, *halves(numbers)) == pytest.approx(expected[name])
        for count in (2, 3):
            single = [(draw.choice(LABELS[: draw.randint(1, count)]),) for _ in range(60)]
            parts = ({str(i): x for i, (x,) in enumerate(its)} for its in halves(single))
            expected = scores_of(classification_evidence(*parts, LABELS[:count]))
            for name in ("accuracy", "f1"):
                found = scores.label_score(name, *halves(single), LABELS[:count])
                assert found == pytest.approx(expected[name])


def halves(values: list[Any]) -> tuple[list[Any], list[Any]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def history(run: Path) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "eval_loss" in line}


CASES = [
    ("classification", {"r": 4}, "accuracy"),
    ("classification", None, "f1"),
    ("extractive_qa", {"r": 4}, "f1"),
    ("extractive_qa", None, "exact"),
    ("generative_qa", {"r": 4}, "f1"),
]


@pytest.mark.parametrize(("task", "lora", "metric"), CASES)
def test_the_score_of_the_best_step_is_that_of_the_finished_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    task: str,
    lora: dict[str, Any] | None,
    metric: str,
) -> None:
    """Also for a head on cached states, which no model computes again at a validation."""
    keys = {"eval_steps": 1, "metric_for_best_model": metric, "learning_rate": 0.02}
    train = {"output_dir": str(tmp_path / "run"), **keys}
    run = training.train(make_recipe(task, make_base(), lora=lora, train=train))
    record, tuned = runs.record_of(run), runs.load(run)
    examples = data.load(tuned.recipe).parts["validation"]
    found = {one.id: one for batch in predict(tuned, examples) for one in batch}
    if task == "classification":
        said = {i: str(one.prediction) for i, one in found.items()}
        labels = {one.id: tuned.labels[one.label] for one in examples}
        expected = scores_of(classification_evidence(said, labels, tuned.labels))[metric]
    else:
        golds = {one.id: [answer.text for answer in one.answers] for one in examples}
        threshold = None
        if tuned.recipe.kind.fits_threshold:
            raw = {i: one.raw for i, one in found.items()}
            chances = {i: one.no_answer_probability or 0.0 for i, one in found.items()}
            threshold = Threshold(no_answer_threshold=fit_threshold(raw, golds, chances))
        answers = {i: str(decided(one, threshold, ())) for i, one in found.items()}
        expected = squad_scores(answers, golds)[metric]
    assert record.best_score == {metric: pytest.approx(expected)}
    assert history(run)[record.best_step][f"eval_{metric}"] == record.best_score[metric]
    assert history(run)[record.best_step]["eval_loss"] == record.best_validation_loss


@pytest.fixture(scope="module")
def answering(
    make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path]:
    """Return a run that writes answers, and fits above which probability it gives none."""
    steps = {"max_steps": 12, "eval_steps": 2, "save_total_limit": 9, "learning_rate": 5e-3}
    layout = {"packing": "prefix_tree", "max_length": 256, "per_device_train_batch_size": 2}
    folder = {"output_dir": str(tmp_path_factory.mktemp("answering") / "run")}
    chosen = {"metric_for_best_model": "exact", "lr_scheduler_type": "constant"}
    recipe = make_recipe(
        *("generative_qa", "tiny"),
        lora={"r": 4},
        dataset={"parts": {"train": 60, "validation": 24, "test": 24}},
        train={**steps, **layout, **folder, **chosen},
        eval={"max_new_tokens": 12, "fit_no_answer_threshold": True},
    )
    return recipe, training.train(recipe)


def test_loss_and_exact_match_choose_different_checkpoints(answering: tuple[Recipe, Path]) -> None:
    _, run = answering
    found = history(run)
    by_loss = min(found, key=lambda step: found[step]["eval_loss"])
    by_match = max(found, key=lambda step: found[step]["eval_exact"])
    assert by_loss != by_match == runs.record_of(run).best_step
    saved = run / f"checkpoints/checkpoint-{by_match}/adapter_model.safetensors"
    exported = run / "adapter/adapter_model.safetensors"
    assert saved.read_bytes() == exported.read_bytes()


def test_a_fitted_threshold_decides_between_the_phrase_and_another_answer(
    answering: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """The other answer is what the model writes if it may not begin with the phrase's first token."""
    recipe, run = answering
    results = harness.run(job_for(recipe, run, tmp_path / "tuned"))
    kept = json.loads((run / "threshold.json").read_text())
    limit = kept["no_answer_threshold"]
    assert kept["fitted_on"] == 24 and results.configs["small"].no_answer_threshold == limit
    lines = {line["id"]: line for line in lines_of(tmp_path / "tuned")}
    for line in lines.values():
        silent = line["no_answer_probability"] > limit
        assert line["prediction"] == ("" if silent else line["raw"])

    loaded, examples = load_run(run), data.load(recipe).parts["test"]
    asked = [(one.question, one.context) for one in examples]
    replies = dict(zip((one.id for one in examples), loaded.predict(asked), strict=True))
    assert all(replies[i].prediction == line["prediction"] for i, line in lines.items())

    plain = recipe.changed(eval={"decoding": "plain"})
    greedy = recipe.changed(eval={"fit_no_answer_threshold": False})
    found, alone = (
        {
            one.id: one
            for batch in predict(replace(loaded.tuned, recipe=its), examples)
            for one in batch
        }
        for its in (plain, greedy)
    )
    assert {i: one.raw for i, one in found.items()} == {i: x["raw"] for i, x in lines.items()}
    assert all(one.prediction == found[i].prediction for i, one in alone.items())
    assert all(found[i].raw == one.prediction for i, one in alone.items() if one.prediction)
    assert any(found[i].raw for i, one in alone.items() if not one.prediction)


def test_a_training_that_stops_by_its_score_resumes_to_the_same_bits(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """At this learning rate the accuracy stays as it is for two validations."""
    base = make_base()

    def recipe(folder: Path, **keys: object) -> Recipe:
        usual = {"max_steps": 8, "eval_steps": 1, "save_total_limit": 9, "learning_rate": 1e-6}
        train = {"output_dir": str(folder), "early_stopping_patience": 2, **usual, **keys}
        return make_recipe("classification", base, lora={"r": 4}, train=train)

    by_score = {"metric_for_best_model": "accuracy"}
    whole = training.train(recipe(tmp_path / "whole", **by_score))
    assert runs.record_of(whole).steps == 3 and runs.record_of(whole).best_step == 1
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("checkpoints/checkpoint-3", "adapter"):
        shutil.rmtree(cut / name)
    (cut / "training.json").unlink()
    training.train(recipe(cut, **by_score))
    assert runs.record_of(cut).resumed_from == "checkpoint-2"
    ends = {"steps", "best_step", "best_score"}
    first, second = (runs.record_of(run).model_dump(include=ends) for run in (whole, cut))
    assert first == second
    last = "checkpoints/checkpoint-3/adapter_model.safetensors"
    mine, its = (load_file(run / last) for run in (whole, cut))
    assert all((mine[name] == its[name]).all() for name in mine)


@pytest.mark.parametrize(
    ("task", "metric", "right"),
    [("generative_qa", "accuracy", "loss, exact or f1"), ("regression", "f1", "loss, mae or p")],
)
def test_a_score_of_another_task_is_refused(task: str, metric: str, right: str) -> None:
    values = {
        "task": task,
        "model": {"model_name_or_path": "tiny"},
        "lora": {"r": 4},
        "dataset": {"path": "rows.csv"},
        "train": {"metric_for_best_model": metric},
    }
    faults = {fault.paths[0]: fault.message for fault in validate(values)[1]}
    assert right in faults["train", "metric_for_best_model"]
