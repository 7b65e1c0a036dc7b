"""Rows become examples, and all bad rows are counted."""

from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from tests.support.tables import nested, question, refusal, to_parquet, train_of, whole, write


@pytest.mark.parametrize(
    ("values", "names", "labels", "numbers"),
    [
        ([0, 1, 1], None, ("0", "1"), [0, 1, 1]),
        (["0", "2", "0"], None, ("0", "2"), [0, 1, 0]),
        ([1.0, 0.0, 1.0], None, ("0", "1"), [1, 0, 1]),
        (["b", "a", " b "], None, ("a", "b"), [1, 0, 1]),
        ([True, False, True], None, ("false", "true"), [1, 0, 1]),
        ([1, 0, 1], ["neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        (["1", "0", "1"], ["neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        (["pos", "neg", 0], ["neg", "pos"], ("neg", "pos"), [1, 0, 0]),
        (["1", "0", 1], ["1", "0"], ("1", "0"), [0, 1, 0]),
        (["no", "null", "no"], None, ("no", "null"), [0, 1, 0]),
        ([10, 2, 1.0, "2"], None, ("1", "2", "10"), [2, 1, 0, 1]),
        ([2, 1], ["1", "2"], ("1", "2"), [1, 0]),
        ([0, 4, "4.0"], None, ("0", "4"), [0, 1, 1]),
        (["1", "01", "1.0"], None, ("01", "1"), [1, 0, 1]),
        (["-1", -1.0, 0, "-0", "0.00", 1], None, ("-1", "0", "1"), [0, 0, 1, 1, 1, 2]),
        (["TRUE", True, "true", "False"], None, ("false", "true"), [1, 1, 1, 0]),
        (["True", False, "FALSE"], ["False", "True"], ("False", "True"), [1, 0, 0]),
        ([0.0, "1.0", 1], ["neg", "pos"], ("neg", "pos"), [0, 1, 1]),
        (["1.0", 2, 1], ["2.0", "1"], ("2.0", "1"), [1, 0, 1]),
        (["0.50", 1.5, 0.5], ["0.5", "1.5"], ("0.5", "1.5"), [0, 1, 0]),
    ],
)
def test_labels(
    tmp_path: Path,
    values: list[Any],
    names: list[str] | None,
    labels: tuple[str, ...],
    numbers: list[int],
) -> None:
    rows = [{"text": "x", "label": value} for value in values]
    dataset = data.load(whole(write(tmp_path / "rows.json", rows), labels=names))
    assert dataset.labels == labels
    assert [example.label for example in dataset.parts["train"]] == numbers  # type: ignore[union-attr]


def test_all_bad_rows_are_counted_by_kind_with_the_first_three_of_each(tmp_path: Path) -> None:
    rows = ["id,text,label", "1,,pos", "2,b,good", "2,c,7", "4,,good", "5,e,pos"]
    file = write(tmp_path / "a.csv", "\n".join(rows))
    assert refusal(whole(file, labels=["neg", "pos"])).splitlines() == [
        f"{file}: 4 of 5 rows are wrong",
        "  2 rows: empty text (first: line 2; line 5)",
        '  2 rows: label is not one of neg, pos (first: line 3: "good"; line 5: "good")',
        '  1 row: label out of range 0 to 1 (first: line 4: "7")',
        '  1 row: duplicate id (first: line 4: "2"): make the ids unique, or set '
        "dataset.columns.id: null to number the rows",
    ]


def test_columns_are_taken_by_the_first_name_that_is_there(tmp_path: Path) -> None:
    rows = [{"id": 7, "content": "a", "stars": 0}, {"id": 8, "content": "b", "stars": 1}]
    file = write(tmp_path / "rows.json", rows)
    recipe = whole(file, columns={"label": ["rating", "stars"]})
    assert [(e.id, e.text, e.label) for e in train_of(recipe)] == [("7", "a", 0), ("8", "b", 1)]
    recipe = whole(file, columns={"label": "stars", "id": None})
    assert [example.id for example in train_of(recipe)] == ["train-1", "train-2"]
    message = refusal(whole(file, columns={"id": "key", "text": "txt"}))
    assert "no column named label or labels or class: set dataset.columns.label" in message
    assert "no column named txt: set dataset.columns.text" in message
    assert "no column named key: set dataset.columns.id" in message
    assert "the columns are: id, content, stars" in message


def test_a_list_of_columns_names_one_column(tmp_path: Path) -> None:
    """A recipe that names two columns which the data have would otherwise lose the second."""
    rows = [{"premise": "a", "hypothesis": "b", "text": "c", "content": "d", "label": "x"}]
    rows += [rows[0] | {"label": "y"}]
    file = write(tmp_path / "a.json", rows)
    both = refusal(whole(file, columns={"label": ["label", "content"]}))
    assert "dataset.columns.label lists names for one column" in both
    assert train_of(whole(file))[0].text == "c", "the usual names are tried one after the other"


def test_numbers_of_a_column_with_gaps_are_names(tmp_path: Path) -> None:
    """Whole numbers with one missing among them are stored as floats."""

    def rows(*ids: object) -> list[dict[str, Any]]:
        return [{"id": id_, "text": f"a {n}", "label": str(n % 2)} for n, id_ in enumerate(ids)]

    file = write(tmp_path / "a.parquet", to_parquet(rows(1.0, 2.0, 10.0)))
    assert [example.id for example in train_of(whole(file))] == ["1", "2", "10"]
    file = write(tmp_path / "a.parquet", to_parquet(rows(1.0, float("nan"), 3.0)))
    assert "1 row: empty id (first: row 2)" in refusal(whole(file))
    file = write(tmp_path / "a.parquet", to_parquet(rows(1.0, 2.5, 3.0)))
    assert "id is neither text nor a whole number (first: row 2: 2.5)" in refusal(whole(file))


@pytest.mark.parametrize("gold", ["Unanswerable", "unanswerable.", '"UNANSWERABLE!"'])
def test_a_right_answer_must_not_be_the_words_for_no_answer(tmp_path: Path, gold: str) -> None:
    context = f"They call it {gold} in Rome"
    row = question(1, 1) | {"context": context, "answers": [gold]}
    file = write(tmp_path / "a.json", [row])
    assert "reads the same as prompt.no_answer (unanswerable)" in refusal(
        whole(file, "generative_qa")
    )
    assert len(train_of(whole(file, "extractive_qa"))) == 1


FLAT = {"id": "q", "context": "Ada built it.", "question": "Who?"}


BAD_QUESTIONS: list[tuple[Any, str]] = [
    ([FLAT | {"answers": ["Ada"], "is_impossible": True}], "is_impossible is true, but there are"),
    ([FLAT | {"answers": [], "is_impossible": False}], "no answer, but is_impossible is not true"),
    (nested([{"text": "Rome", "answer_start": 12}]), "an answer is not at its offset (first: ques"),
    (nested([{"text": "Rome", "answer_start": -16}]), "an answer is not at its offset"),
    (nested([{"text": "Rome", "answer_start": 1300}]), "an answer is not at its offset"),
    (nested([{"text": "Rome", "answer_start": "13"}]), "answers in an unknown form"),
    (nested([{"text": "Rome", "answer_start": True}]), "answers in an unknown form"),
    (nested([{"text": " ", "answer_start": 3}]), "an answer is empty"),
    (nested([]), "no answer, but is_impossible is not true (first: question 1 (id q))"),
    (
        nested([{"text": "Ada", "answer_start": 0}], is_impossible=True),
        "is_impossible is true, but",
    ),
    (nested([{"text": "Rome", "answer_start": 13}], id=None), "empty id"),
    (nested([{"text": "Rome", "answer_start": 13}], question=" "), "empty question"),
    ({"data": [{"title": "x", "paragraphs": {}}]}, "article 1: has no list paragraphs"),
    ({"data": [{"paragraphs": [{"context": "x"}]}]}, "article 1, paragraph 1: has no list qas"),
    ({"data": [{"paragraphs": [{"context": "x", "qas": [3]}]}]}, "a question is not an object"),
    (
        [question(1, 1) | {"answers": ["Paris"]}],
        'an answer is not in its context (first: row 1: "P',
    ),
    (
        [question(1, 1) | {"answers": {"text": ["a"], "answer_start": []}}],
        "answers in an unknown form",
    ),
    ([question(1, 1) | {"answers": 5}], "answers in an unknown form (first: row 1: 5)"),
    ([question(1, 1) | {"context": ""}], "empty context"),
    ([question(1, 1), question(1, 2)], 'duplicate id (first: row 2: "q1")'),
]


@pytest.mark.parametrize(("content", "fragment"), BAD_QUESTIONS)
def test_bad_questions(tmp_path: Path, content: Any, fragment: str) -> None:
    assert fragment in refusal(whole(write(tmp_path / "a.json", content), "extractive_qa"))
