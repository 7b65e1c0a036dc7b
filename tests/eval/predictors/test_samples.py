"""Samples of lm-evaluation-harness score as the same predictions do, and match row for row or are refused in one line."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.job import Job, make_job
from eval.predictions_file import score_file
from llama_peft import data
from llama_peft.data import QuestionExample, TextExample
from llama_peft.errors import UserError

SMALL = ["dataset.parts={train: 24, validation: 8, test: 16}"]
Sample = dict[str, Any]


def job_for(task: str, output: Path, *overrides: str) -> Job:
    return make_job(task, output=output, overrides=[*SMALL, *overrides])


def scored(job: Job, path: Path, lines: list[Sample]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (its,) = score_file(job, path, None).results.values()
    return {name: value for name, value in its.items() if isinstance(value, float)}


def texts(job: Job) -> list[TextExample]:
    return [e for e in data.load(job.recipe).parts["test"] if isinstance(e, TextExample)]


def questions(job: Job) -> list[QuestionExample]:
    return [e for e in data.load(job.recipe).parts["test"] if isinstance(e, QuestionExample)]


def chance(number: int) -> float:
    """Of the second label."""
    return (number * 7 % 16 + 0.5) / 16.5


def choice(number: int, example: TextExample, words: list[str], turned: bool = False) -> Sample:
    """A sample as the harness writes it: numbers are text."""
    scores = [[str(math.log(p) - 3), "False"] for p in (1 - chance(number), chance(number))]
    target = example.label
    if turned:
        scores, words, target = scores[::-1], words[::-1], 1 - target
    return {
        "doc_id": number,
        "doc": {"id": example.id, "text": example.text, "label": target},
        "target": str(target),
        "arguments": {
            f"gen_args_{n}": {"arg_0": example.text, "arg_1": f" {word}"}
            for n, word in enumerate(words)
        },
        "resps": [[score] for score in scores],
        "filtered_resps": scores,
        "filter": "none",
        "acc": 1.0,
    }


def as_numbers(sample: Sample) -> Sample:
    """As another version wrote it: requests are lists, and numbers are numbers."""
    requests = [list(words.values()) for words in sample["arguments"].values()]
    scores = [[float(number), False] for number, _ in sample["filtered_resps"]]
    return {**sample, "arguments": requests, "filtered_resps": scores}


def unfiltered(sample: Sample) -> Sample:
    return {key: value for key, value in sample.items() if key != "filtered_resps"}


@pytest.mark.parametrize(
    ("words", "overrides", "change"),
    [
        (["negative", "positive"], [], dict),
        (["negative", "positive"], [], as_numbers),
        (["negative", "positive"], [], unfiltered),
        (["bad", "good"], ["prompt.verbalizers=[bad, good]"], dict),
        (["A", "B"], [], dict),
    ],
)
def test_choices_score_as_their_labels(
    tmp_path: Path, words: list[str], overrides: list[str], change: Callable[[Sample], Sample]
) -> None:
    """By the words of the choices in any order, or by their place if the right one is at its place."""
    job = job_for("tiny-sst2", tmp_path / "plain")
    labels = data.load(job.recipe).labels
    plain = [
        {
            "id": e.id,
            "prediction": labels[chance(n) > 0.5],
            "probabilities": [1 - chance(n), chance(n)],
        }
        for n, e in enumerate(texts(job))
    ]
    expected = scored(job, tmp_path / "plain.jsonl", plain)
    for turned in (False, True) if words != ["A", "B"] else (False,):
        lines = [change(choice(n, e, words, turned)) for n, e in enumerate(texts(job))]
        random.Random(0).shuffle(lines)
        again = job_for("tiny-sst2", tmp_path / f"samples-{turned}", *overrides)
        assert scored(again, tmp_path / "samples_x.jsonl", lines) == pytest.approx(expected)


def test_a_label_that_a_model_wrote(tmp_path: Path) -> None:
    job = job_for("tiny-sst2", tmp_path / "out")
    labels = data.load(job.recipe).labels
    lines = [
        {**choice(n, e, []), "filtered_resps": [f" {labels[e.label]}\n"]}
        for n, e in enumerate(texts(job))
    ]
    assert scored(job, tmp_path / "samples_x.jsonl", lines)["accuracy"] == 1


def written(number: int, example: QuestionExample) -> Sample:
    """The two requests of squadv2: an answer, and how likely "unanswerable" is."""
    answer = example.answers[0].text if example.answers else "unanswerable"
    silence = str(math.log(0.9 if number % 3 else 0.2))
    return {
        "doc_id": number,
        "doc": {"id": example.id, "question": example.question, "context": example.context},
        "target": answer,
        "resps": [[f" {answer}"], [[silence, "False"]]],
        "filtered_resps": [f" {answer}", [silence, "False"]],
    }


@pytest.mark.parametrize("requests", [1, 2])
def test_answers_score_as_they_are_written(tmp_path: Path, requests: int) -> None:
    job = job_for("tiny-squad", tmp_path / "plain")
    lines = [written(n, e) for n, e in enumerate(questions(job))]
    plain = [{"id": s["doc"]["id"], "prediction": s["target"]} for s in lines]
    if requests == 1:
        lines = [{**s, "filtered_resps": s["filtered_resps"][:1]} for s in lines]
    else:
        plain = [
            {**one, "no_answer_probability": 0.9 if n % 3 else 0.2} for n, one in enumerate(plain)
        ]
    expected = scored(job, tmp_path / "plain.jsonl", plain)
    again = job_for("tiny-squad", tmp_path / "again")
    found = scored(again, tmp_path / "samples_x.jsonl", lines)
    assert found == pytest.approx(expected) and found["exact"] == 100


def numbered(tmp_path: Path) -> tuple[Job, list[Sample]]:
    """Rows without ids, in a file of their own."""
    first = job_for("tiny-sst2", tmp_path / "first")
    its, labels = texts(first), data.load(first.recipe).labels
    file = tmp_path / "rows.jsonl"
    rows = [{"text": e.text, "label": labels[e.label]} for e in its]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    job = make_job("tiny-sst2", data_file=str(file), output=tmp_path / "out", overrides=SMALL)
    lines = [choice(n, e, list(labels)) for n, e in enumerate(its)]
    for line in lines:
        line["doc"].pop("id")
    return job, lines


def test_rows_without_ids_match_by_their_number_and_text(tmp_path: Path) -> None:
    job, lines = numbered(tmp_path)
    random.Random(0).shuffle(lines)
    expected = scored(job, tmp_path / "samples_x.jsonl", lines)
    right = [int(line["target"]) == (chance(line["doc_id"]) > 0.5) for line in lines]
    assert expected["accuracy"] == pytest.approx(sum(right) / len(right))


def spoiled(lines: list[Sample], fault: str) -> list[Sample]:
    first, *rest = lines
    doc = first["doc"]
    changed: dict[str, Sample] = {
        "another text": {**first, "doc": {**doc, "text": "Another film."}},
        "no text": {**first, "doc": {"label": 1}},
        "a number beyond": {**first, "doc_id": 99},
        "nothing given": {**first, "filtered_resps": []},
        "one score": {**first, "filtered_resps": first["filtered_resps"][:1]},
        "several texts": {**first, "filtered_resps": ["a", "b"]},
        "not a number": {**first, "filtered_resps": [["nan", "False"]] * 2},
        "another filter": {**first, "filter": "strict"},
        "not a sample": {"id": "1", "prediction": "positive"},
    }
    if fault == "shifted":
        return [{**line, "doc_id": (line["doc_id"] + 1) % len(lines)} for line in lines]
    if fault == "missing":
        return rest
    if fault == "twice":
        return [first, *lines]
    if fault == "wrong places":
        letters = [choice(n, e, ["A", "B"], True) for n, e in enumerate(texts_of(lines))]
        return [{**new, "doc": old["doc"]} for new, old in zip(letters, lines, strict=True)]
    return [*rest, changed[fault]] if fault == "not a sample" else [changed[fault], *rest]


def texts_of(lines: list[Sample]) -> list[TextExample]:
    return [TextExample(id="", text=s["doc"]["text"], label=int(s["target"])) for s in lines]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shifted", "does not hold the text of example rows-2"),
        ("another text", "does not hold the text of example rows-1"),
        ("no text", "does not hold the text"),
        ("a number beyond", "its doc has no id"),
        ("missing", r"1 missing \(first: rows-1\)"),
        ("twice", r"1 given twice \(first: rows-1\)"),
        ("nothing given", "neither one text nor"),
        ("one score", "1 scores for 2 labels"),
        ("several texts", "neither one text nor"),
        ("not a number", "neither one text nor"),
        ("another filter", r"several filters \(none, strict\)"),
        ("not a sample", "some lines are samples"),
        ("wrong places", "its target . is not the number of the right label"),
    ],
)
def test_what_does_not_match_is_one_line(tmp_path: Path, fault: str, said: str) -> None:
    job, lines = numbered(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        scored(job, tmp_path / "samples_x.jsonl", spoiled(lines, fault))
    assert "\n" not in str(error.value) and len(error.value.args) == 1 and not job.output.exists()


def test_ids_of_another_data_set_are_one_line(tmp_path: Path) -> None:
    job = job_for("tiny-squad", tmp_path / "out")
    lines = [written(n, e) for n, e in enumerate(questions(job))]
    for line in lines:
        line["doc"].pop("id")
    with pytest.raises(UserError, match="cannot be matched"):
        scored(job, tmp_path / "samples_x.jsonl", lines)
    with pytest.raises(UserError, match="1 for no example"):
        foreign = {**lines[0], "doc": {**lines[0]["doc"], "id": "x"}}
        ids = [e.id for e in questions(job)]
        rest = [
            {**line, "doc": {**line["doc"], "id": i}} for line, i in zip(lines, ids, strict=True)
        ]
        scored(job, tmp_path / "samples_x.jsonl", [foreign, *rest])
