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
