"""Evaluation end to end: same examples, honest zero-shot, exact ids, and nothing predicted twice."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import harness
from eval.job import Job, make_job
from eval.predictors import Predictor, open_predictor
from llama_peft import checkpoint, data, predict
from llama_peft import train as training
from llama_peft.data import Example
from llama_peft.predict import Prediction
from llama_peft.recipe import Recipe, UserError


def job_for(recipe: Recipe, model: Path | str, output: Path, **changes: Any) -> Job:
    return Job(recipe=recipe, model=str(model), output=output, **changes)


@pytest.fixture(scope="module")
def span_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("span") / "run"
    keys = {"output_dir": str(folder), "max_steps": 1, "max_length": 300}
    recipe = make_recipe("extractive_qa", make_base(), lora={"r": 4}, train=keys)
    return recipe, training.train(recipe)


@pytest.fixture(scope="module")
def class_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("class") / "run"
    recipe = make_recipe(
        "classification", make_base(), bits=4, train={"output_dir": str(folder), "max_steps": 1}
    )
    return recipe, training.train(recipe)


def test_zero_shot_and_tuned_answer_the_same_examples(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    base = recipe.model.model_name_or_path
    zero = harness.run(job_for(recipe, base, tmp_path / "zero"))
    tuned = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    assert zero["config"]["model_kind"] == "zero-shot verbalizer", "law 9: never an untrained head"
    assert tuned["config"]["model_kind"] == "classification head"
    assert zero["adapter_sha256"] is None and tuned["adapter_sha256"]
    lines = [
        [
            json.loads(line)
            for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        ]
        for name in ("zero", "tuned")
    ]
    pairs = [[(line["id"], line["gold"]) for line in its] for its in lines]
    assert pairs[0] == pairs[1] == sorted(pairs[0]) and len(pairs[0]) == 16
    for line in lines[0] + lines[1]:
        assert sum(line["probabilities"]) == pytest.approx(1.0)
        best = max(range(2), key=line["probabilities"].__getitem__)
        assert line["prediction"] == ("negative", "positive")[best]
    scores = tuned["results"]["small"]
    right = sum(line["prediction"] == line["gold"] for line in lines[1]) / 16
    assert scores["accuracy"] == pytest.approx(right)
    assert scores["accuracy_ci95"][0] <= right <= scores["accuracy_ci95"][1]


@pytest.mark.parametrize("task", ["classification", "generative_qa"])
def test_shared_prefixes_change_no_prediction(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], task: str
) -> None:
    """The tree engine and its plain twin, through the zero-shot predictors of both kinds."""
    found = []
    for decoding in ("prefix_tree", "plain"):
        recipe = make_recipe(
            task, make_base(), lora={"r": 4}, eval={"decoding": decoding, "max_new_tokens": 6}
        )
        labels = ("negative", "positive") if task == "classification" else ()
        predictor = open_predictor(recipe.model.model_name_or_path, recipe, labels)
        its = {p.id: p for p in predictor.predict(data.load(recipe).parts["test"])}
        found.append(its)
    assert found[0].keys() == found[1].keys()
    for id_, one in found[0].items():
        other = found[1][id_]
        assert (one.prediction, one.raw) == (other.prediction, other.raw)
        if one.probabilities:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        else:
            assert one.no_answer_probability == pytest.approx(other.no_answer_probability, rel=1e-3)


def test_span_threshold_is_fitted_on_validation_and_kept(
    span_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = span_run
    results = harness.run(job_for(recipe, folder, tmp_path / "tuned"))
    kept = json.loads((folder / "threshold.json").read_text())
    assert kept["fitted_on"] == 8
    assert results["configs"]["small"]["no_answer_threshold"] == kept["no_answer_threshold"]
    for line in (tmp_path / "tuned/predictions.jsonl").read_text().splitlines():
        found = json.loads(line)
        silent = found["no_answer_probability"] > kept["no_answer_threshold"]
        assert found["prediction"] == ("" if silent else found["raw"])
    (folder / "threshold.json").write_text('{"no_answer_threshold": 2.0}')
    harness.run(job_for(recipe, folder, tmp_path / "again"))
    lines = (tmp_path / "again/predictions.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prediction"] == json.loads(line)["raw"] for line in lines)
    (folder / "threshold.json").unlink()


def oracle(silent: bool = False) -> Callable[[Sequence[Example]], Iterator[Prediction]]:
    """A predictor that knows the answers, or one that never answers."""

    def answer(examples: Sequence[Example]) -> Iterator[Prediction]:
        for example in examples:
            text = "" if silent or not example.answers else example.answers[0].text
            yield Prediction(id=example.id, prediction=text, no_answer_probability=float(not text))

    return answer


def test_a_perfect_abstainer_scores_100_on_the_unanswerable(
    make_recipe: Callable[..., Recipe],
) -> None:
    """Law 7, through the harness's own scoring."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    share = 100 * sum(not e.answers for e in examples) / len(examples)
    assert 0 < share < 100

    def scores(answer: Callable[[Sequence[Example]], Iterator[Prediction]]) -> dict[str, Any]:
        lines = [
            {
                "id": p.id,
                "prediction": p.prediction,
                "no_answer_probability": p.no_answer_probability,
            }
            for p in answer(examples)
        ]
        return harness.score(lines, examples, ())

    silent, perfect = scores(oracle(silent=True)), scores(oracle())
    assert silent["NoAns_exact"] == 100 and silent["exact"] == pytest.approx(share)
    assert perfect["exact"] == perfect["f1"] == 100


@pytest.mark.parametrize("fault", ["missing", "extra", "twice"])
def test_predictions_that_do_not_match_id_for_id_are_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path, fault: str
) -> None:
    """Law 8."""
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]

    def answer(asked: Sequence[Example]) -> Iterator[Prediction]:
        found = list(oracle()(asked))
        if fault == "extra":
            yield replace(found[0], id=found[1].id)
        yield from found[1:] if fault == "missing" else found
        if fault == "twice":
            yield found[0]

    predictor = Predictor(kind="oracle", labels=(), predict=answer, facts={})
    with pytest.raises(UserError, match="predictions"):
        harness.predict(predictor, examples, tmp_path / "partial", "key")


def test_what_was_predicted_before_a_crash_is_not_predicted_again(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    examples = data.load(make_recipe("extractive_qa", "tiny")).parts["test"]
    asked: list[str] = []

    def crashing(todo: Sequence[Example]) -> Iterator[Prediction]:
        for i, prediction in enumerate(oracle()(todo)):
            if i == 5:
                raise MemoryError
            asked.append(prediction.id)
            yield prediction

    def counting(todo: Sequence[Example]) -> Iterator[Prediction]:
        asked.extend(example.id for example in todo)
        return oracle()(todo)

    partial = tmp_path / "partial"
    broken = Predictor(kind="oracle", labels=(), predict=crashing, facts={})
    with pytest.raises(MemoryError):
        harness.predict(broken, examples, partial, "key")
    with partial.open("a") as file:
        file.write('{"id": "torn')
    whole = replace(broken, predict=counting)
    lines = harness.predict(whole, examples, partial, "key")
    assert sorted(asked) == sorted(e.id for e in examples), "each was asked once"
    assert {line["id"] for line in lines} == set(asked)
    asked.clear()
    harness.predict(whole, examples, partial, "another key")
    assert len(asked) == len(examples), "predictions of another key are no use"


def test_measuring_on_training_examples_is_refused(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    split = json.loads((copy / "split.json").read_text())
    split["train"] = split["test"]
    (copy / "split.json").write_text(json.dumps(split))
    facts = json.loads((copy / "training.json").read_text())
    facts["files"]["split.json"] = checkpoint.sha256(copy / "split.json")
    (copy / "training.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="16 of 16 examples have ids that it was trained on"):
        harness.run(job_for(recipe, copy, tmp_path / "out"))


def test_a_file_of_the_user_s_is_measured_whole(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    _, folder = class_run
    file = tmp_path / "mine.csv"
    file.write_text('text,label\n"A fine, warm film",positive\nDull,negative\nGood,1\n')
    job = make_job(None, str(folder), str(file), None, None, tmp_path / "out", [])
    results = harness.run(job)
    assert results["n-samples"] == {"small": {"original": 3, "effective": 3}}
    lines = [
        json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    ]
    assert [line["gold"] for line in lines] == ["positive", "negative", "positive"]


def test_limit_takes_the_same_sample_for_every_system(
    class_run: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = class_run
    ids = []
    for name, model in (("zero", recipe.model.model_name_or_path), ("tuned", folder)):
        results = harness.run(job_for(recipe, model, tmp_path / name, limit=5))
        assert results["n-samples"]["small"] == {"original": 16, "effective": 5}
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        ids.append([json.loads(line)["id"] for line in lines])
    assert ids[0] == ids[1]


def test_task_and_labels_must_be_the_run_s(
    class_run: tuple[Recipe, Path], span_run: tuple[Recipe, Path]
) -> None:
    with pytest.raises(UserError, match="trained for extractive_qa"):
        open_predictor(str(span_run[1]), class_run[0], ("negative", "positive"))
    with pytest.raises(UserError, match="labels negative, positive"):
        open_predictor(str(class_run[1]), class_run[0], ("bad", "good"))


def test_one_example_at_a_time_gives_what_a_batch_gives(
    class_run: tuple[Recipe, Path], span_run: tuple[Recipe, Path]
) -> None:
    """`llama-peft predict` and the evaluation are one path."""
    for _, folder in (class_run, span_run):
        run = checkpoint.load_run(folder)
        examples = data.load(run.recipe).parts["test"]
        batch = {p.id: p for p in predict.predict(run, examples)}
        for example in examples[:4]:
            (alone,) = predict.predict(run, [example])
            assert alone.prediction == batch[example.id].prediction
    text = {"text": "A fine film."}
    assert set(predict.predict_one(class_run[1], **text)) == {"prediction", "negative", "positive"}
    asked = {"question": "Who?", "context": "Ada built it."}
    assert set(predict.predict_one(span_run[1], **asked)) == {"prediction", "no_answer_probability"}
