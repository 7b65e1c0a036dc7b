"""Predictions made elsewhere, scored without a model: the same scores, or one line that says what is wrong."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from eval import harness, scoring
from eval.__main__ import app
from eval.job import Job, make_job
from eval.predictions_file import read_predictions, score_file, scores_folder
from llama_peft import data
from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.inference.batch import open_batch
from llama_peft.inference.batch import write as write_predictions
from llama_peft.inference.predict import Prediction
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.results import ModelConfig
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.threshold import Threshold
from tests.support.paths import RUNS_0_1_0

SMALL = ["dataset.parts={train: 24, validation: 8, test: 16}"]


def job_for(task: str, output: Path) -> Job:
    return make_job(task, None, None, None, None, output, SMALL)


def asked(job: Job) -> list[Example]:
    return data.load(job.recipe).parts["test"]


def first_answers(job: Job) -> dict[str, str]:
    return {
        e.id: e.answers[0].text if e.answers else ""
        for e in asked(job)
        if isinstance(e, QuestionExample)
    }


def scored(job: Job, path: Path, value: Any, chances: Any = None) -> dict[str, Any]:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    other = None if chances is None else path.with_name("chances.json")
    if other is not None:
        other.write_text(json.dumps(chances))
    return score_file(job, path, other).results[job.recipe.name]


def test_a_harness_s_predictions_score_the_same_again(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    for task in ("classification", "generative_qa"):
        recipe = make_recipe(task, make_base(), lora={"r": 2}, eval={"max_new_tokens": 4})
        job = Job(recipe=recipe, model=recipe.model.model_name_or_path, output=tmp_path / task)
        first = harness.run(job)
        again = Job(recipe=recipe, model="", output=tmp_path / f"{task}-again")
        second = score_file(again, tmp_path / task / "predictions.jsonl", None)
        assert first.results == second.results


@pytest.mark.parametrize("wording", ["unanswerable", "Unanswerable.", "", ' "UNANSWERABLE" '])
def test_every_wording_of_no_answer_is_one_abstention(tmp_path: Path, wording: str) -> None:
    """Law 7: a perfect abstainer scores 100 on the unanswerable."""
    job = job_for("tiny-squad", tmp_path / "out")
    found = scored(job, tmp_path / "theirs.json", dict.fromkeys(first_answers(job), wording))
    assert found["NoAns_exact"] == 100 and found["HasAns_exact"] == 0


def test_the_official_files_and_ours_score_alike(tmp_path: Path) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    answers = first_answers(job)
    chances = {id_: 0.1 if text else 0.9 for id_, text in answers.items()}
    perfect = scored(job, tmp_path / "official.json", answers, chances)
    assert perfect["exact"] == perfect["f1"] == perfect["best_f1"] == 100
    versions = json.loads((job.output / "results.json").read_text())["versions"]
    assert {"sacrebleu", "rouge_score", "nltk", "scikit-learn"} <= versions.keys()
    lines = [
        {"id": id_, "prediction": text, "no_answer_probability": chances[id_]}
        for id_, text in answers.items()
    ]
    for name, text in {
        "ours.jsonl": "\n".join(map(json.dumps, lines)) + "\n",
        "list.json": json.dumps(lines),
    }.items():
        assert scored(job, tmp_path / name, text) == perfect


def test_labels_may_be_names_or_numbers(tmp_path: Path) -> None:
    job = job_for("tiny-sst2", tmp_path / "out")
    labels = data.load(job.recipe).labels
    for write in (lambda n: labels[n], lambda n: n, str):
        given = {e.id: write(e.label) for e in asked(job)}  # type: ignore[no-untyped-call,union-attr]
        assert scored(job, tmp_path / "theirs.json", given)["accuracy"] == 1
    given = dict.fromkeys(given, "spam")
    assert scored(job, tmp_path / "theirs.json", given)["unparsable"] == 1


def spoiled(answers: dict[str, str]) -> dict[str, tuple[Any, str]]:
    first, *rest = answers
    lines = [json.dumps({"id": id_, "prediction": text}) for id_, text in answers.items()]
    return {
        "missing": ({id_: answers[id_] for id_ in rest}, rf"1 missing \(first: {first}\)"),
        "extra": (answers | {"x": ""}, r"1 for no example \(first: x\)"),
        "twice": ("\n".join([*lines, lines[0]]), rf"1 given twice \(first: {first}\)"),
        "a key twice": ('{"a": "", "a": ""}', "'a' occurs twice"),
        "a lone surrogate": (answers | {first: "\ud800"}, "prediction 1 holds an unpaired Unicode"),
        "nested": ("[" * 100_000, "cannot be read"),
        "nested lines": ("[" * 100_000 + "\n{}", "cannot be read"),
        "a huge probability": (
            [{"id": first, "prediction": "", "no_answer_probability": 10**400}],
            "prediction 1 is 1000.*, which is not a number",
        ),
        "no probability": (
            '[{"id": "x", "prediction": "", "no_answer_probability": NaN}]',
            "is nan, which is not a number",
        ),
        "a huge number": ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        "an id of two lines": (answers | {"a\nb": ""}, r"1 for no example \(first: a\\nb\)"),
        "not text": (answers | {first: 3}, "prediction 1 is no"),
        "no json": ("{", "cannot be read"),
        "a number": ("3", "holds neither"),
        "strange lines": ('{"id": "1"}\n{"id": "2"}', "prediction 1 is no"),
    }


@pytest.mark.parametrize("fault", spoiled({"a": "", "b": ""}))
def test_what_cannot_be_scored_is_one_line(tmp_path: Path, fault: str) -> None:
    """Law 8, before any number: nothing is written."""
    job = job_for("tiny-squad", tmp_path / "out")
    value, message = spoiled(first_answers(job))[fault]
    with pytest.raises(UserError, match=message) as said:
        scored(job, tmp_path / "theirs.json", value)
    assert not job.output.exists() and "\n" not in str(said.value)


@pytest.mark.parametrize("kind", ["pipe", "zeros", "loop", "folder", "large", "absent"])
def test_predictions_are_a_regular_file(tmp_path: Path, kind: str) -> None:
    job, path = job_for("tiny-squad", tmp_path / "out"), tmp_path / "theirs.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind != "absent":
        path.symlink_to("/dev/zero" if kind == "zeros" else path)
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(first_answers(job)))
    for words in ((path, None), (answers, path)):
        with pytest.raises(UserError, match=r"theirs\.json") as said:
            score_file(job, *words)
        assert "\n" not in str(said.value)


FOREIGN = {
    "results.json": '{"results": {"mmlu": {"acc": 0.5}}, "config": {"model": "hf"}}',
    "predictions.jsonl": '{"question": "mine"}\n',
    "predictions.partial.jsonl": "mine",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_results_that_are_not_ours_are_not_replaced(tmp_path: Path, name: str) -> None:
    """No model is loaded first: there is none of this name."""
    job = job_for("tiny-squad", tmp_path / "out")
    job.output.mkdir()
    (job.output / name).write_text(FOREIGN[name])
    with pytest.raises(UserError, match="no evaluation of ours wrote this file"):
        scored(job, tmp_path / "theirs.json", first_answers(job))
    with pytest.raises(UserError, match="no evaluation of ours wrote this file"):
        harness.run(replace(job, model="no/such-model"))
    both = ["--model", "no/such-model", "--model", "tiny", "--task", "tiny-squad"]
    (tmp_path / "all").mkdir()
    job.output.rename(tmp_path / "all/tiny")
    with pytest.raises(UserError, match="no evaluation of ours wrote this file"):
        app(["run", *both, "--output", str(tmp_path / "all")], standalone_mode=False)
    assert {path.name for path in (tmp_path / "all").rglob("*")} == {"tiny", name}
    assert (tmp_path / "all/tiny" / name).read_text() == FOREIGN[name]


@pytest.mark.parametrize(
    "name", ["results.json", "predictions.jsonl", ".lock", ".holder", "x.partial"]
)
def test_scores_are_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    job.output.mkdir()
    (tmp_path / "outside").write_text("precious")
    (job.output / name).symlink_to(tmp_path / "outside")
    if name == "x.partial":
        scored(job, tmp_path / "theirs.json", first_answers(job))
    else:
        with pytest.raises(UserError, match="this is a link"):
            scored(job, tmp_path / "theirs.json", first_answers(job))
    assert (tmp_path / "outside").read_text() == "precious"


def test_scores_beside_a_file_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "stranger/theirs-scores").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="leads out of"):
        scores_folder(tmp_path / "stranger/theirs.json")


def test_a_file_in_the_folder_s_place_is_one_line(tmp_path: Path) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out: this folder cannot be created: File exists"):
        scored(job, tmp_path / "theirs.json", first_answers(job))


def test_probabilities_must_be_of_the_same_ids(tmp_path: Path) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    answers = first_answers(job)
    with pytest.raises(
        UserError, match=r"chances\.json: 15 predictions for 16 examples: 1 missing"
    ):
        scored(job, tmp_path / "a.json", answers, dict.fromkeys(list(answers)[1:], 0.5))
    with pytest.raises(
        UserError, match=r"chances.json: the value of .* is 'high', which is not a number"
    ):
        scored(job, tmp_path / "a.json", answers, dict.fromkeys(answers, "high"))


def test_probabilities_are_of_all_predictions_or_of_none(tmp_path: Path) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    lines: list[dict[str, Any]] = [
        {"id": id_, "prediction": text} for id_, text in first_answers(job).items()
    ]
    lines[3]["no_answer_probability"] = 0.5
    with pytest.raises(UserError, match="15 of 16 predictions have no no_answer_probability"):
        scored(job, tmp_path / "a.json", json.dumps(lines))


def test_what_a_threshold_silenced_counts_in_the_best_scores(tmp_path: Path) -> None:
    """A span run's own predictions score as the run did: `best_*` choose from the answers before its threshold."""
    job = job_for("tiny-squad-span", tmp_path / "out")
    chances = {id_: i / 16 for i, id_ in enumerate(first_answers(job))}
    predictions = [
        Prediction(id=i, prediction=text, no_answer_probability=chances[i], raw=text or "wrong")
        for i, text in first_answers(job).items()
    ]
    found = scoring.material(job)
    limit = Threshold(no_answer_threshold=0.4)
    silenced = scoring.lines_of(predictions, found, limit)
    config = ModelConfig(model_kind="span head", recipe=job.recipe.name)
    ran = scoring.finish(job, found, silenced, config, started=0.0, threshold=limit).results
    again = job_for("tiny-squad-span", tmp_path / "again")
    assert score_file(again, job.output / "predictions.jsonl", None).results == ran


def test_labels_are_those_of_train_where_the_recipe_names_none(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\ngood,plus\nbad,minus\n")
    (tmp_path / "mine.csv").write_text("id,text,label\na,fine,plus\n")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "task: classification\nmodel: {model_name_or_path: tiny}\n"
        f"dataset: {{parts: {{train: {tmp_path / 'train.csv'}}}}}\n"
    )
    file = str(tmp_path / "mine.csv")
    job = make_job(str(recipe), None, file, None, None, tmp_path / "out", [])
    assert scored(job, tmp_path / "theirs.json", {"a": "plus"}).get("accuracy") == 1


@pytest.mark.parametrize("labels", [("1", "2", "3"), ("0", "1"), ("bad", "good")])
@pytest.mark.parametrize("kind", [int, str])
def test_a_predicted_number_is_a_name_before_it_is_a_place(
    labels: tuple[str, ...], kind: type, tmp_path: Path
) -> None:
    named = labels[0].isdecimal()
    file = tmp_path / "p.jsonl"
    numbers = [int(label) if named else place for place, label in enumerate(labels)]
    file.write_text(
        "".join(
            json.dumps({"id": f"{i}", "prediction": kind(n)}) + "\n" for i, n in enumerate(numbers)
        )
    )
    recipe = load_recipe("tiny-sst2")
    lines = [*read_predictions(file, recipe, labels)]
    assert [line.prediction for line in lines] == list(labels)
    beyond = 0 if labels[0] == "1" else 9
    file.write_text(json.dumps({"id": "x", "prediction": kind(beyond)}) + "\n")
    if kind is int:
        with pytest.raises(UserError, match="one of the labels"):
            [*read_predictions(file, recipe, labels)]
    else:  # what a model wrote, which is not a label
        assert next(iter(read_predictions(file, recipe, labels))).prediction == str(beyond)


@pytest.mark.parametrize("chances", [[0.5], [0.5, 7], {"a": 1}, "0.5", [0.5, None]])
def test_probabilities_that_are_none_are_one_line(tmp_path: Path, chances: object) -> None:
    job = job_for("tiny-sst2", tmp_path / "out")
    lines = [{"id": e.id, "prediction": 0, "probabilities": chances} for e in asked(job)]
    with pytest.raises(UserError, match=r"^probabilities of .*prediction 1"):
        scored(job, tmp_path / "theirs.json", lines)


def test_a_csv_file_scores_as_its_json(tmp_path: Path) -> None:
    job = job_for("tiny-sst2", tmp_path / "out")
    labels = data.load(job.recipe).labels
    lines = [
        {
            "id": e.id,
            "prediction": labels[n % 2],
            "probabilities": [0.4 - n % 2 / 5, 0.6 + n % 2 / 5],
        }
        for n, e in enumerate(asked(job))
    ]
    expected = scored(job, tmp_path / "a.json", lines)
    flat = [
        {"id": line["id"], "label": line["prediction"]}
        | {f"probabilities.{k}": v for k, v in zip(labels, line["probabilities"], strict=True)}
        for line in lines
    ]
    for name, frame in (("a.csv", lines), ("b.csv", flat), ("c.tsv", lines), ("d.tsv", flat)):
        between = "\t" if name.endswith("tsv") else ","
        pandas.DataFrame(frame).to_csv(tmp_path / name, index=False, sep=between)
        again = score_file(job, tmp_path / name, None).results[job.recipe.name]
        assert again == expected, name


def test_answers_in_a_csv_file(tmp_path: Path) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    answers = first_answers(job)
    lines = [
        {"id": id_, "prediction": text, "no_answer_probability": 0.1 if text else 0.9}
        for id_, text in answers.items()
    ]
    pandas.DataFrame(lines).to_csv(tmp_path / "a.csv", index=False)
    found = score_file(job, tmp_path / "a.csv", None).results[job.recipe.name]
    assert found["exact"] == found["best_f1"] == 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("film,prediction\n1,positive\n", "there is no column id"),
        ("id,text\n1,positive\n", "prediction 1 is no"),
        ("id,prediction,probabilities\n1,positive,high\n", "these are not 2 numbers"),
        ("id,prediction,probabilities.positive\n1,positive,0.5\n", "these are not 2 numbers"),
        ('id,prediction,probabilities\n1,positive,"[0.5, 7]"\n', "these are not 2 numbers"),
        ("id,prediction\n1,positive\n", "16 missing"),
        ("id,prediction\n1\n", "not 2 cells like the header"),
        ("", "the file is empty"),
    ],
)
def test_a_csv_file_that_cannot_be_scored_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    job, path = job_for("tiny-sst2", tmp_path / "out"), tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        score_file(job, path, None)
    # Rows that cannot be read have a line for their kind.
    assert len(error.value.args) == (2 if "cells" in said else 1)
    assert not any("\n" in line for line in error.value.args)


def test_equal_numbers_are_one_predicted_label(tmp_path: Path) -> None:
    """pandas writes whole numbers as 1.0 if a cell of the column is empty."""
    path = tmp_path / "a.csv"
    path.write_text("id,prediction\na,1.0\nb,2\nc, TRUE\n")
    lines = [*read_predictions(path, load_recipe("tiny-sst2"), ("1", "2", "True"))]
    assert [line.prediction for line in lines] == ["1", "2", "True"]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("run", ["classifier", "generative"])
def test_what_predict_writes_scores_as_the_run_s_own_evaluation(
    tmp_path: Path, run: str, name: str
) -> None:
    folder = RUNS_0_1_0 / run
    recipe = load_recipe(folder / "recipe.yaml")
    part = data.load(recipe).parts["test"][:10]
    rows = [
        {"id": e.id, "text": e.text, "label": recipe.dataset.labels[e.label]}  # type: ignore[index]
        if isinstance(e, TextExample)
        else {"id": e.id, "question": e.question, "context": e.context, "answers": []}
        for e in part
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    own = make_job(None, str(folder), str(file), None, None, tmp_path / "own", [])
    expected = harness.run(own).results
    write_predictions(open_batch(open_run(folder), str(file), None, ()), tmp_path / name)
    job = make_job(str(folder / "recipe.yaml"), None, str(file), None, None, tmp_path / "s", [])
    assert score_file(job, tmp_path / name, None).results == expected
