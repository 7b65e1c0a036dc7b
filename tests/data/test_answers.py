"""Answers are read in every usual form."""

from pathlib import Path
from typing import Any

import pytest

from llama_peft.data import Answer, QuestionExample
from tests.support.tables import (
    CONTEXT,
    ROME,
    nested,
    question,
    refusal,
    to_parquet,
    train_of,
    whole,
    write,
)

SECOND = "Rome is old. Ada saw Rome and Rome."


@pytest.mark.parametrize(
    ("content", "answers"),
    [
        (nested([{"text": "Rome", "answer_start": 13}]), ROME),
        (nested([{"text": "Rome", "answer_start": 13}], is_impossible=False), ROME),
        (nested([], is_impossible=True, plausible_answers=[{"text": "x"}]), ()),
        ([{"answers": {"text": ["Rome", "Ada"], "answer_start": [13, 19]}}], (*ROME, ("Ada", 19))),
        ([{"answers": {"text": ["Ada"], "answer_start": [19]}}], (Answer("Ada", 19),)),
        ([{"answers": {"text": [], "answer_start": []}}], ()),
        ([{"answers": {"text": "Rome", "answer_start": 13}}], ROME),
        ([{"answers": {"text": ["Rome"]}}], ROME),
        ([{"answers": [{"text": "Rome", "answer_start": 13}]}], ROME),
        ([{"answers": ["Rome"]}], ROME),
        ([{"answer": "Rome"}], ROME),
        ([{"answers": '{"text": ["Rome"], "answer_start": [13]}'}], ROME),
        ([{"answers": '["Rome"]'}], ROME),
        ([{"answers": "{'text': ['Rome'], 'answer_start': [13]}"}], ROME),
        ([{"answers": "['Rome']"}], ROME),
        ([{"answers": "{'text': [], 'answer_start': []}"}], ()),
        ([{"answers": {"text": [""], "answer_start": [-1]}}], ()),
        ([{"answers": '{"text": [""], "answer_start": [-1]}'}], ()),
        ([{"answers": ""}], ()),
        ([{"answers": None}], ()),
        ([{"answers": []}], ()),
    ],
)
def test_answers_in_every_usual_form(
    tmp_path: Path, content: Any, answers: tuple[Answer, ...]
) -> None:
    if isinstance(content, list):
        content = [
            {"id": "q", "question": "Where?", "context": CONTEXT, "title": "Ada"} | content[0]
        ]
    for task in ("extractive_qa", "generative_qa"):
        examples = train_of(whole(write(tmp_path / "a.json", content), task))
        assert examples == [
            QuestionExample(
                id="q", question="Where?", context=CONTEXT, answers=answers, title="Ada"
            )
        ]


def test_questions_come_from_csv_and_parquet_too(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", f'context,question,answer\n{CONTEXT},Where?,"Rome"\n')
    rows = [question(1, 1), question(2, 1) | {"answers": {"text": [], "answer_start": []}}]
    parquet = write(tmp_path / "a.parquet", to_parquet(rows))
    assert train_of(whole(csv, "extractive_qa"))[0].answers == ROME
    assert [e.answers for e in train_of(whole(parquet, "extractive_qa"))] == [ROME, ()]


def test_two_bad_answers_are_one_bad_row(tmp_path: Path) -> None:
    rows = [question(1, 1) | {"answers": ["Paris", "Oslo"]}, question(2, 1)]
    message = refusal(whole(write(tmp_path / "a.json", rows), "extractive_qa"))
    assert "1 of 2 rows are wrong\n  1 row: an answer is not in its context" in message


@pytest.mark.parametrize(
    ("cells", "starts"),
    [
        ({"answer": "Rome", "answer_start": 21}, [21]),
        ({"answer": "Rome", "answer_start": "21"}, [21]),
        ({"answer": "Rome", "answer_start": 21.0}, [21]),
        ({"answer": "Rome", "answer_start": [21]}, [21]),
        ({"answer": ["Rome", "Rome"], "answer_start": [21, 30]}, [21, 30]),
        ({"answer": '["Rome", "Rome"]', "answer_start": "[21, 30]"}, [21, 30]),
        ({"answer": {"text": ["Rome"], "answer_start": [30]}, "answer_start": 21}, [30]),
        ({"answer": "Rome", "answer_start": None}, [0]),
        ({"answer": "Rome", "answer_start": ""}, [0]),
        ({"answer": "", "answer_start": -1}, []),
        ({"answer": "", "answer_start": ""}, []),
        ({"answer": "Rome", "at": 21}, [0]),
    ],
)
def test_starts_may_stand_in_a_column_of_their_own(
    tmp_path: Path, cells: dict[str, Any], starts: list[int]
) -> None:
    file = write(tmp_path / "a.json", [{"context": SECOND, "question": "Where?"} | cells])
    (example,) = train_of(whole(file, "extractive_qa"))
    assert example.answers == tuple(Answer("Rome", start) for start in starts)
    if "at" in cells:
        named = whole(file, "extractive_qa", columns={"answer_start": "at"})
        assert train_of(named)[0].answers == (Answer("Rome", 21),)


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"answer": "Rome", "answer_start": 20}, "an answer is not at its offset"),
        ({"answer": "Rome", "answer_start": "x"}, "does not hold one whole number for an answer"),
        ({"answer": "Rome", "answer_start": 1.5}, "does not hold one whole number for an answer"),
        ({"answer": ["Rome"] * 2, "answer_start": 21}, "does not hold one whole number for an"),
    ],
)
def test_starts_that_cannot_be_right_are_refused(
    tmp_path: Path, cells: dict[str, Any], fault: str
) -> None:
    file = write(tmp_path / "a.json", [{"context": SECOND, "question": "Where?"} | cells])
    assert fault in refusal(whole(file, "extractive_qa"))


def test_answers_without_a_start_that_occur_several_times_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    row = {"context": SECOND, "question": "Where?", "answer": "Rome"}
    rows = [row | {"answer": "Ada"}, row, row, row | {"answer_start": 21}]
    file = write(tmp_path / "a.json", rows)
    train_of(whole(file, "extractive_qa"))
    assert caplog.messages == [
        f"{file}: 2 of 4 questions have an answer that occurs several times in its passage, and no "
        "start: the first place is taken; a column with the starts (dataset.columns.answer_start) "
        'would say which place is meant (first: row 2: "Rome")'
    ]
    caplog.clear()
    train_of(whole(file, "generative_qa"))
    assert not caplog.messages, "this task learns no places"
