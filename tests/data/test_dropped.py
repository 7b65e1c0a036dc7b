"""`dataset.on_bad_rows: drop` leaves out the rows that are refused otherwise, and counts them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from eval import scoring
from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from tests.support.eval.jobs import job_for
from tests.support.tables import nested, question, refusal, train_of, whole, write

BAD = "text,label\ngood,x\n,y\nbad,\n ,x\nragged\nfine,y\nlone,\n"


def test_what_is_refused_is_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "a.csv", BAD)
    assert "1 row: not 2 cells like the header (first: line 6: 1 cells)" in refusal(whole(file))
    with caplog.at_level(logging.WARNING):
        dataset = data.load(whole(file, on_bad_rows="drop"))
    kept = [(example.id, example.text) for example in dataset.parts["train"]]  # type: ignore[union-attr]
    assert kept == [("train-1", "good"), ("train-5", "fine")], "rows keep their numbers"
    counts = {"not 2 cells like the header": 1, "empty text": 2, "empty label": 2}
    assert dataset.dropped == {"train": counts}
    assert caplog.messages == [
        f"{file}: 5 of 7 rows are dropped: 1 row: not 2 cells like the header (first: line 6); "
        "2 rows: empty text (first: line 3; line 5); 2 rows: empty label (first: line 4; line 8)"
    ]


QUESTIONS: list[dict[str, Any]] = [
    question(1, 1),
    question(2, 1) | {"answers": {"text": ["Oslo"], "answer_start": [0]}},
    question(3, 1) | {"answers": ["Oslo"]},
    question(4, 1) | {"question": " "},
    question(1, 1),
]


def test_every_kind_of_bad_question_is_dropped(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", QUESTIONS)
    dataset = data.load(whole(file, "extractive_qa", on_bad_rows="drop"))
    assert [example.id for example in dataset.parts["train"]] == ["q1"]
    assert dataset.dropped["train"] == {
        "an answer is not at its offset": 1,
        "an answer is not in its context": 1,
        "empty question": 1,
        "duplicate id": 1,
    }


def test_marks_of_squad_stay_with_their_questions(tmp_path: Path) -> None:
    content = nested([{"text": "Rome", "answer_start": 13}])
    (entry,) = content["data"][0]["paragraphs"][0]["qas"]
    bad = entry | {"id": "bad", "is_impossible": True}
    unanswered = entry | {"id": "none", "answers": [], "is_impossible": True}
    content["data"][0]["paragraphs"][0]["qas"] = [bad, entry, unanswered]
    file = write(tmp_path / "a.json", content)
    kept = train_of(whole(file, "extractive_qa", on_bad_rows="drop"))
    assert [(example.id, len(example.answers)) for example in kept] == [("q", 1), ("none", 0)]


def test_a_class_of_dropped_rows_alone_is_not_a_class(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\na,x\nb,y\n,gone\n")
    recipe = whole(file, on_bad_rows="drop")
    assert data.load(recipe).labels == data.known_labels(recipe) == ("x", "y")
    assert data.load(whole(file, on_bad_rows="drop", labels=["x", "y", "gone"])).labels[2] == "gone"


def test_every_part_and_other_files_drop_their_own(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,x\nb,y\n")
    test = write(tmp_path / "b.csv", "text,label\nc,x\nd,z\n,x\n")
    parts = {"train": str(train), "test": str(test)}
    recipe = whole(train, on_bad_rows="drop").model_copy(deep=True)
    recipe.dataset.parts.__dict__.update(parts)
    dataset = data.load(recipe)
    assert dataset.dropped == {"test": {"label is not one of x, y": 1, "empty text": 1}}
    own = data.load_file(recipe, str(test))
    assert [e.text for e in own.parts["data"]] == ["c"]  # type: ignore[union-attr]
    assert own.dropped == {"data": dataset.dropped["test"]}


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n,x\n,y\n")
    assert "2 of 2 rows are wrong" in refusal(whole(file, on_bad_rows="drop"))
    write(file, "text,label\na\nb\n")
    assert "2 rows: not 2 cells like the header" in refusal(whole(file, on_bad_rows="drop"))


def test_a_clean_file_is_read_as_before(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\na,x\nb,y\n")
    refused, dropped = data.load(whole(file)), data.load(whole(file, on_bad_rows="drop"))
    assert refused == dropped
    assert data.content_sum(refused) == data.content_sum(dropped)


def test_the_counts_are_in_the_results(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", BAD)
    recipe = whole(file, on_bad_rows="drop")
    recipe.dataset.parts.__dict__.update(test=str(write(tmp_path / "b.csv", "text,label\nc,x\n")))
    job = job_for(recipe, "tiny", tmp_path / "out")
    found = scoring.material(job)
    (example,) = found.examples
    lines = [*scoring.lines_of([Prediction(id=example.id, prediction="x")], found)]
    config = scoring.ModelConfig(model_kind="k", recipe="run")
    scoring.finish(job, found, lines, config, started=0.0)
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["dropped"]["train"]["empty text"] == 2
    clean = data.Dataset(labels=found.labels, parts=found.dataset.parts)
    found = scoring.Material(dataset=clean, parts=found.parts)
    scoring.finish(job, found, lines, config, started=0.0)
    assert "dropped" not in json.loads((tmp_path / "out/results.json").read_text())


QUOTES = 'text,label\ngood,x\n"a"b,y\nfine,y\n"open,x\nnot lost,y\nthree,x,y\n'
LINES = '{"text": "good", "label": "x"}\n{"text"\n{"text": "fine", "label": "y"}\n5\n{"text": "b" "c"}\n'


def test_lines_that_cannot_be_read_are_kinds_like_others(tmp_path: Path) -> None:
    """A quote that is not closed costs its own line only."""
    quotes, lines = write(tmp_path / "a.csv", QUOTES), write(tmp_path / "a.jsonl", LINES)
    message = refusal(whole(quotes))
    assert message.startswith(
        f"{quotes}: 3 of 6 rows are wrong\n  2 rows: broken quotes (first: line 3: "
    )
    assert "; line 5: unexpected end of data): if quotes are part of the text, set " in message
    assert "1 row: not 2 cells like the header (first: line 7: 3 cells): put quotes" in message
    message = refusal(whole(lines))
    assert message.startswith(
        f"{lines}: 3 of 5 rows are wrong\n  2 rows: not valid JSON (first: line 2: "
    )
    assert "1 row: not an object with named values (first: line 4)" in message
    for file, texts, dropped in (
        (quotes, ["good", "fine", "not lost"], [2, 1]),
        (lines, ["good", "fine"], [2, 1]),
        (write(tmp_path / "b.json", LINES), ["good", "fine"], [2, 1]),
    ):
        dataset = data.load(whole(file, on_bad_rows="drop"))
        assert [e.asked[0] for e in dataset.parts["train"]] == texts
        assert [*dataset.dropped["train"].values()] == dropped


def test_rows_to_predict_are_never_dropped(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\na,x\nb\n")
    recipe = whole(file, on_bad_rows="drop")
    with pytest.raises(UserError, match="1 row: not 2 cells like the header"):
        data.load_inputs(recipe, str(file))


@pytest.mark.parametrize("first", ["sep=;\n", "sep=;\r\n", '"sep=;"\n', "\ufeffsep=;\n"])
def test_a_first_line_of_excel_names_the_delimiter(tmp_path: Path, first: str) -> None:
    file = write(tmp_path / "a.csv", f"{first}text;label\na, b;x\n ;y\n")
    assert "1 row: empty text (first: line 4)" in refusal(whole(file))
    kept = data.load_file(whole(file, on_bad_rows="drop", labels=["x", "y"]), str(file))
    assert [e.asked for e in kept.parts["data"]] == [("a, b",)]
