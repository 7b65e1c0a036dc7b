"""Data: every source gives the same examples, every bad row is counted, and splits leak nothing."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_peft import data
from llama_peft.data import Answer, QuestionExample, TextExample, splits
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe

ROWS = [
    {"text": "good", "label": "pos"},
    {"text": 'a "quoted" one, with comma', "label": "neg"},
    {"text": "null", "label": "pos"},
    {"text": "NA", "label": "neg"},
    {"text": "None", "label": "pos"},
    {"text": "naïve 日本 😀", "label": "neg"},
]
CONTEXT = "Ada lived in Rome. Ada wrote."


def make(
    task: str = "classification", prompt: dict[str, Any] | None = None, **dataset: Any
) -> Recipe:
    values = {"task": task, "model": {"model_name_or_path": "tiny"}, "dataset": dataset}
    return Recipe.model_validate(values | {"prompt": prompt or {}})


def whole(path: Path | str, task: str = "classification", **dataset: Any) -> Recipe:
    """A recipe that trains on all of a file."""
    sizes = {"test_size": 0.0, "validation_size": 0.0}
    return make(task, parts={"train": str(path)}, **(sizes | dataset))


def write(file: Path, content: object) -> Path:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        file.write_text(text, encoding="utf-8", newline="")
    return file


def refusal(recipe: Recipe) -> str:
    with pytest.raises(UserError) as caught:
        data.load(recipe)
    return str(caught.value)


def train_of(recipe: Recipe) -> Sequence[Any]:
    return data.load(recipe).parts["train"]


def question(number: int, passage: int, title: int = 0) -> dict[str, Any]:
    answers = {"text": ["Rome"], "answer_start": [13]}
    return {
        "id": f"q{number}",
        "context": f"{CONTEXT} {passage}",
        "question": "Where?",
        "answers": answers,
        "title": f"t{title}",
    }


# Sources ---------------------------------------------------------------------------------------


def to_csv(rows: list[dict[str, str]]) -> str:
    lines = [f'"{row["text"].replace(chr(34), chr(34) * 2)}",{row["label"]}\n' for row in rows]
    return "text,label\n" + "".join(lines)


def to_tsv(rows: list[dict[str, str]]) -> str:
    return "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows)


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue().to_pybytes()


FORMS: list[tuple[str, Callable[[Any], object]]] = [
    ("rows.csv", to_csv),
    ("rows.csv", lambda rows: b"\xef\xbb\xbf" + to_csv(rows).replace("\n", "\r\n").encode()),
    ("rows.csv", lambda rows: to_csv(rows).replace("\n", "\n\n")),
    ("rows.tsv", to_tsv),
    ("rows.json", list),
    ("rows.json", lambda rows: {"version": 1, "data": rows}),
    ("rows.jsonl", lambda rows: "\n".join(map(json.dumps, rows))),
    ("rows.ndjson", lambda rows: "\r\n\n".join(map(json.dumps, rows)) + "\n"),
    ("rows.parquet", to_parquet),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_format_gives_the_same_examples(
    tmp_path: Path, name: str, form: Callable[[Any], object]
) -> None:
    dataset = data.load(whole(write(tmp_path / name, form(ROWS))))
    assert dataset.labels == ("neg", "pos")
    assert dataset.parts["train"] == [
        TextExample(id=f"train-{n}", text=row["text"], label=int(row["label"] == "pos"))
        for n, row in enumerate(ROWS, start=1)
    ]


def test_the_format_can_be_said(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.data", to_tsv(ROWS))
    assert "set dataset.format to one of csv, tsv, json" in refusal(whole(file))
    assert len(train_of(whole(file, format="tsv"))) == 6


def test_quotes_are_text_in_tsv_and_quotes_in_csv(tmp_path: Path) -> None:
    text = 'text{0}label\n"open{0}a\nclosed"{0}b\n'
    tsv = write(tmp_path / "rows.tsv", text.format("\t"))
    assert [example.text for example in train_of(whole(tsv))] == ['"open', 'closed"']
    csv = write(tmp_path / "rows.csv", text.format(","))
    assert "all 1 rows to train on have one label (b)" in refusal(whole(csv))
    literal = train_of(whole(csv, quoting="none"))
    assert [example.text for example in literal] == ['"open', 'closed"']


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


@pytest.mark.parametrize(
    ("values", "names", "labels", "numbers"),
    [
        ([0, 1, 1], None, ("0", "1"), [0, 1, 1]),
        (["0", "2", "0"], None, ("0", "1", "2"), [0, 2, 0]),
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


# Bad files -------------------------------------------------------------------------------------

BAD_TEXTS: list[tuple[str, object, str]] = [
    ("a.csv", "", "the file is empty"),
    ("a.jsonl", " \n\n", "the file is empty"),
    ("a.csv", "text,label\n", "holds no rows"),
    ("a.json", [], "holds no rows"),
    ("a.jsonl", "{}", "missing column"),
    ("a.csv", b"text,label\na,b\n\xff\xfe,c\n", "line 3: not UTF-8 text (byte 0xff)"),
    ("a.csv", "a,label\nx,y\n", "no column named text or sentence or content or review: set data"),
    ("a.csv", "text,text,label\nx,y,z\n", "the header names text twice"),
    (
        "a.csv",
        "text,label\na,b\nc\nd,e,f\n",
        "2 of 3 rows have not 2 cells as the header (first: l",
    ),
    ("a.tsv", "text\tlabel\na\tb\tc\n", "(first: line 2 has 3): quotes are plain text here"),
    ("a.csv", 'text,label\n"a"b,c\n', "line 2: malformed row ("),
    ("a.csv", 'text,label\na,b\n"open\n,b\n', "line 3: malformed row (unexpected end of data)"),
    ("a.csv", "text,label\n ,b\nx,a\n,a\n", "2 rows: empty text (first: line 2)"),
    ("a.csv", 'text,label\n"two\nlines",a\n,b\n', "1 row: empty text (first: line 4)"),
    ("a.csv", "text,label\nx,\ny,a\n", "1 row: empty label (first: line 2)"),
    ("a.csv", "id,text,label\n1,a,x\n1,b,y\n1,c,y\n", "2 rows: duplicate id (first: line 3: "),
    ("a.csv", "id,text,label\n,a,x\n2,b,y\n", "1 row: empty id (first: line 2)"),
    ("a.csv", "text,label\na,x\nb,x\n", "all 2 rows to train on have one label (x): there is no"),
    ("a.csv", "text,label\na,-1\nb,0\nc,1\n", "1 row: label out of range 0 to 1 (first: line 2"),
    ("a.csv", "text,label\na,0\nb,999999999\n", "label out of range 0 to 1 (first: line 3"),
    ("a.json", {"rows": []}, 'must be a list of rows, or {"data": [...]}'),
    ("a.json", "{", "line 1: not valid JSON"),
    ("a.json", "[" * 100_000, "too deep"),
    ("a.json", "[" + "9" * 5000 + "]", "a number too long"),
    (
        "a.json",
        [{"text": "a", "label": 0}, 5],
        "1 of 2 rows are not objects with named values (fir",
    ),
    ("a.json", [{"text": 5, "label": 0}, {"text": "a", "label": 1}], "1 row: text is not text (f"),
    (
        "a.json",
        [{"label": 0}, {"text": None, "label": 1}],
        "2 rows: empty t",
    ),
    ("a.json", [{"text": "a", "label": [1]}, {"text": "b", "label": 1}], "label not among 1 (f"),
    ("a.json", '[{"text": "\\ud800", "label": 0}]', "half a character (a surrogate) in the text"),
    (
        "a.json",
        '[{"text": "a", "label": "\\ud800"}]',
        "half a character (a surrogate) in the label",
    ),
    ("a.jsonl", '{"text": "a", "label": 0}\n{"text"\n', "line 2: not valid JSON"),
    ("a.parquet", b"PAR1 but not really", "not a Parquet file that can be read"),
]


def test_what_arrow_holds_and_python_cannot_is_one_line(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    day = pyarrow.array([2**62], pyarrow.timestamp("us"))
    table = pyarrow.table({"text": ["a"], "label": ["b"], "day": day})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "not a Parquet file that can be read" in refusal(whole(tmp_path / "a.parquet"))


def test_a_home_that_nobody_has_is_one_line() -> None:
    assert "~nobody-here/a.csv: " in refusal(whole("~nobody-here/a.csv"))


@pytest.mark.parametrize(("name", "content", "fragment"), BAD_TEXTS)
def test_bad_files(tmp_path: Path, name: str, content: object, fragment: str) -> None:
    file = write(tmp_path / name, content)
    message = refusal(whole(file))
    assert fragment in message
    assert str(file) in message


def test_all_bad_rows_are_counted_by_kind_with_the_first_of_each(tmp_path: Path) -> None:
    rows = ["id,text,label", "1,,pos", "2,b,good", "2,c,7", "4,,good", "5,e,pos"]
    file = write(tmp_path / "a.csv", "\n".join(rows))
    assert refusal(whole(file, labels=["neg", "pos"])).splitlines() == [
        f"{file}: 4 of 5 rows are wrong",
        "  2 rows: empty text (first: line 2)",
        '  2 rows: label not among neg, pos (first: line 3: "good")',
        '  1 row: label out of range 0 to 1 (first: line 4: "7")',
        '  1 row: duplicate id (first: line 4: "2")',
    ]


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", to_csv(ROWS))
    near = refusal(whole(tmp_path / "trian.csv"))
    assert f"no such file; did you mean {tmp_path / 'train.csv'}?" in near
    assert "there is no folder" in refusal(whole(tmp_path / "nowhere" / "train.csv"))
    assert "is a folder: name a file in it" in refusal(whole(tmp_path))
    assert "no such file" in refusal(make(path=str(tmp_path / "x.csv")))


def test_ids_are_unique_over_parts(tmp_path: Path) -> None:
    text = "id,text,label\n1,a,x\n2,b,y\n"
    parts = {"train": str(write(tmp_path / "a.csv", text)), "test": str(tmp_path / "a.csv")}
    recipe = make(parts=parts, validation_size=0.0)
    assert "2 ids stand in two parts (first: 1, in train and test)" in refusal(recipe)
    numbered = make(parts=parts, validation_size=0.0, columns={"id": None})
    assert data.split_ids(data.load(numbered)) == {
        "train": ["train-1", "train-2"],
        "test": ["test-1", "test-2"],
    }


def test_other_parts_are_read_with_the_labels_of_train(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\na,x\nb,y\nc,z\n")
    good = write(tmp_path / "good.csv", "sentence,class\na,z\n")
    bad = write(tmp_path / "bad.csv", "text,label\na,w\n")
    parts = {"train": str(train), "validation": str(good), "test": str(good), "official": str(good)}
    dataset = data.load(make(parts=parts))
    assert [example.label for example in dataset.parts["official"]] == [2]  # type: ignore[union-attr]
    message = refusal(make(parts=parts | {"official": str(bad)}))
    assert (
        f'{bad}: 1 of 1 rows are wrong\n  1 row: label not among x, y, z (first: line 2: "w"'
        in (message)
    )


def test_verbalizers_must_fit_the_labels_of_the_data(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\na,x\nb,y\nc,z\n")
    recipe = whole(file).model_copy(
        update={"prompt": whole(file).prompt.model_copy(update={"verbalizers": [" x", " y"]})}
    )
    assert f"prompt.verbalizers: 2 for the 3 labels of {file} (x, y, z)" in refusal(recipe)


# Questions -------------------------------------------------------------------------------------


def nested(answers: object, **extra: object) -> dict[str, Any]:
    entry = {"id": "q", "question": "Where?", "answers": answers} | extra
    paragraphs = [{"context": CONTEXT, "qas": [entry]}]
    return {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": paragraphs}]}


ROME = (Answer("Rome", 13),)


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


def test_questions_come_from_csv_and_parquet_too(tmp_path: Path) -> None:
    csv = write(tmp_path / "a.csv", f'context,question,answer\n{CONTEXT},Where?,"Rome"\n')
    rows = [question(1, 1), question(2, 1) | {"answers": {"text": [], "answer_start": []}}]
    parquet = write(tmp_path / "a.parquet", to_parquet(rows))
    assert train_of(whole(csv, "extractive_qa"))[0].answers == ROME
    assert [e.answers for e in train_of(whole(parquet, "extractive_qa"))] == [ROME, ()]


FLAT = {"id": "q", "context": "Ada built it.", "question": "Who?"}
BAD_QUESTIONS: list[tuple[Any, str]] = [
    ([FLAT | {"answers": ["Ada"], "is_impossible": True}], "is_impossible is true, but there are"),
    ([FLAT | {"answers": [], "is_impossible": False}], "no answer, but is_impossible is not true"),
    (nested([{"text": "Rome", "answer_start": 12}]), "an answer is not at its offset (first: ques"),
    (nested([{"text": "Rome", "answer_start": -16}]), "an answer is not at its offset"),
    (nested([{"text": "Rome", "answer_start": 1300}]), "an answer is not at its offset"),
    (nested([{"text": "Rome", "answer_start": "13"}]), "answers in no known form"),
    (nested([{"text": "Rome", "answer_start": True}]), "answers in no known form"),
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
        "answers in no known form",
    ),
    ([question(1, 1) | {"answers": 5}], "answers in no known form (first: row 1: 5)"),
    ([question(1, 1) | {"context": ""}], "empty context"),
    ([question(1, 1), question(1, 2)], 'duplicate id (first: row 2: "q1")'),
]


@pytest.mark.parametrize(("content", "fragment"), BAD_QUESTIONS)
def test_bad_questions(tmp_path: Path, content: Any, fragment: str) -> None:
    assert fragment in refusal(whole(write(tmp_path / "a.json", content), "extractive_qa"))


def test_squad_format_is_checked_when_it_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", [question(1, 1)])
    assert "must be SQuAD's" in refusal(whole(file, "extractive_qa", format="squad"))
    write(file, {"data": [question(1, 1)]})
    assert len(train_of(whole(file, "extractive_qa"))) == 1
    message = refusal(whole(file, "extractive_qa", format="squad"))
    assert "article 1: has no list paragraphs: this is not SQuAD's format" in message


def test_two_bad_answers_are_one_bad_row(tmp_path: Path) -> None:
    rows = [question(1, 1) | {"answers": ["Paris", "Oslo"]}, question(2, 1)]
    message = refusal(whole(write(tmp_path / "a.json", rows), "extractive_qa"))
    assert "1 of 2 rows are wrong\n  1 row: an answer is not in its context" in message


@pytest.mark.parametrize("gold", ["Unanswerable", "unanswerable.", '"UNANSWERABLE!"'])
def test_a_right_answer_must_not_read_like_no_answer(tmp_path: Path, gold: str) -> None:
    context = f"They call it {gold} in Rome"
    row = question(1, 1) | {"context": context, "answers": [gold]}
    file = write(tmp_path / "a.json", [row])
    assert "reads like prompt.no_answer (unanswerable)" in refusal(whole(file, "generative_qa"))
    assert len(train_of(whole(file, "extractive_qa"))) == 1


# Splits ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=4),
    share=st.floats(0.15, 0.8),
    seed=st.integers(0, 99),
)
def test_a_stratified_cut_keeps_every_share_within_one_row(
    counts: list[int], share: float, seed: int
) -> None:
    labels = [str(label) for label, count in enumerate(counts) for _ in range(count)]
    cut = splits.cut(len(labels), share, seed, labels=labels, what="test")
    assert sorted(cut.kept + cut.taken) == list(range(len(labels)))
    assert cut.kept == sorted(cut.kept) and cut.taken == sorted(cut.taken)
    assert len(cut.taken) == -(-share * len(labels) // 1)
    taken = Counter(labels[row] for row in cut.taken)
    for label, count in enumerate(counts):
        assert abs(taken[str(label)] - len(cut.taken) * count / len(labels)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    passages=st.lists(st.integers(0, 12), min_size=30, max_size=60),
    titles=st.lists(st.integers(0, 8), min_size=60, max_size=60),
    seed=st.integers(0, 99),
)
def test_nothing_of_a_group_is_on_both_sides(
    passages: list[int], titles: list[int], seed: int
) -> None:
    """Rows equal in one key or the other, directly or over a chain, stay together."""
    keys = [list(map(str, passages)), list(map(str, titles[: len(passages)]))]
    groups = splits.components(*keys)
    for key in keys:
        homes: dict[str, int] = {}
        assert all(homes.setdefault(k, g) == g for k, g in zip(key, groups, strict=True))
    if len(set(groups)) < 2:
        return
    cut = splits.cut(len(groups), 0.3, seed, groups=groups, what="test")
    assert sorted(cut.kept + cut.taken) == list(range(len(groups)))
    for key in keys:
        assert not {key[row] for row in cut.kept} & {key[row] for row in cut.taken}


def test_groups_are_no_larger_than_they_must_be() -> None:
    groups = splits.components(list("aabbccd"), list("1234567"))
    assert [groups.count(group) for group in groups] == [2, 2, 2, 2, 2, 2, 1]


def reviews(tmp_path: Path, count: int) -> Path:
    rows = [f"text {n},{'np'[n % 2]},g{n // 4}" for n in range(count)]
    return write(tmp_path / "reviews.csv", "\n".join(["text,label,group", *rows]))


def test_test_is_cut_from_train_and_validation_from_the_rest(tmp_path: Path) -> None:
    official = write(tmp_path / "dev.csv", "text,label\nx,n\ny,p\n")
    parts = {"train": str(reviews(tmp_path, 100)), "official": str(official)}
    dataset = data.load(make(parts=parts))
    sizes = {part: len(examples) for part, examples in dataset.parts.items()}
    assert sizes == {"train": 72, "validation": 8, "test": 20, "official": 2}
    assert list(sizes) == ["train", "validation", "test", "official"]
    ids = [name for names in data.split_ids(dataset).values() for name in names]
    assert sorted(ids) == sorted({*(f"train-{n}" for n in range(1, 101)), *ids[-2:]})
    assert Counter(e.label for e in dataset.parts["test"]) == {0: 10, 1: 10}  # type: ignore[union-attr]


def test_given_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    file = str(reviews(tmp_path, 20))
    dataset = data.load(make(parts={"train": file, "test": file, "validation": file}))
    assert [len(examples) for examples in dataset.parts.values()] == [20, 20, 20]
    none = data.load(make(parts={"train": file}, test_size=0.0, validation_size=0.0))
    assert data.split_ids(none) == {"train": [f"train-{n}" for n in range(1, 21)]}


def test_rows_of_a_group_stay_in_one_part(tmp_path: Path) -> None:
    dataset = data.load(make(parts={"train": str(reviews(tmp_path, 100))}, group_by="group"))
    seen: dict[str, str] = {}
    for part, examples in dataset.parts.items():
        assert examples
        assert all(seen.setdefault(example.group, part) == part for example in examples)
    assert len(seen) == 25


@pytest.mark.parametrize("group_by", [None, "context", "title"])
def test_a_passage_is_in_one_part_only(tmp_path: Path, group_by: str | None) -> None:
    # Passage 0 stands under every title: a cut by title alone would tear it apart.
    rows = [question(n, 0 if n % 9 == 8 else n // 4, title=n // 8) for n in range(160)]
    rows = [row for row in rows if group_by != "title" or row["context"] != f"{CONTEXT} 0"]
    file = write(tmp_path / "a.json", rows)
    dataset = data.load(make("extractive_qa", parts={"train": str(file)}, group_by=group_by))
    assert list(dataset.parts) == ["train", "validation", "test"]
    keys = ["context", "title"] if group_by == "title" else ["context"]
    for key in keys:
        seen: dict[str, str] = {}
        for part, examples in dataset.parts.items():
            assert all(seen.setdefault(getattr(e, key), part) == part for e in examples)


def test_a_passage_under_all_titles_makes_one_group(tmp_path: Path) -> None:
    rows = [question(n, 0 if n % 2 else n, title=n // 2) for n in range(40)]
    file = write(tmp_path / "a.json", rows)
    message = refusal(make("extractive_qa", parts={"train": str(file)}, group_by="title"))
    assert "test: cannot cut 0.2 of 1 group: give a test file (dataset.parts.test)" in message


@pytest.mark.parametrize(
    ("rows", "dataset", "fragment"),
    [
        (["a,x", "b,y", "c,y"], {}, "test: 1 label(s) have one row only"),
        (["a,x", "b,x", "c,y", "d,y"], {}, "test: 1 rows cannot hold all 2 labels"),
        (["a,x"], {"stratify": False}, "test: cannot cut 0.2 of 1 row"),
        (["a,x,", "b,y,g"], {"group_by": "group"}, "1 row: empty group (first: line 2)"),
    ],
)
def test_cuts_that_cannot_be_made(
    tmp_path: Path, rows: list[str], dataset: dict[str, Any], fragment: str
) -> None:
    header = "text,label,group" if "group_by" in dataset else "text,label"
    file = write(tmp_path / "a.csv", "\n".join([header, *rows]))
    assert fragment in refusal(make(parts={"train": str(file)}, **dataset))


def test_group_by_needs_its_column(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", to_csv(ROWS))
    message = refusal(make(parts={"train": str(file)}, group_by="group"))
    assert "no column named group: set dataset.columns.group" in message


def test_samples_are_taken_after_the_cut_and_in_order(tmp_path: Path) -> None:
    file = str(reviews(tmp_path, 200))
    full = data.load(make(parts={"train": file}))
    few = data.load(make(parts={"train": file}, max_train_samples=30, max_eval_samples=10))
    for part, size in (("train", 30), ("validation", 10), ("test", 10)):
        assert len(few.parts[part]) == size
        assert [example for example in full.parts[part] if example in few.parts[part]] == (
            few.parts[part]
        )
    more = data.load(make(parts={"train": file}, max_train_samples=10**6))
    assert more.parts == full.parts
    one = refusal(make(parts={"train": file}, max_train_samples=1))
    assert "all 1 rows to train on have one label" in one


def test_splits_are_the_same_in_every_process_and_follow_the_seed(tmp_path: Path) -> None:
    file = str(reviews(tmp_path, 60))
    code = (
        "import json, sys; from llama_peft import data; from llama_peft.recipe import Recipe;"
        "recipe = Recipe.model_validate(json.loads(sys.argv[1]));"
        "print(json.dumps(data.split_ids(data.load(recipe))))"
    )
    recipe = make(parts={"train": file}, max_train_samples=20, seed=3)
    here = data.split_ids(data.load(recipe))
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, recipe.model_dump_json()],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=120,
        )
        assert json.loads(done.stdout) == here
    other = make(parts={"train": file}, max_train_samples=20, seed=4)
    assert data.split_ids(data.load(other)) != here


# The Hub, the generator, single files ----------------------------------------------------------


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A data set in the Hub's own layout, label names included."""
    import datasets

    labels = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": labels})
    rows = {"sentence": ["a", "b", "c"], "label": [1, 0, 1]}
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return folder


def test_a_hub_data_set_brings_its_label_names(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sizes = {"test_size": 0.0, "validation_size": 0.0}
    recipe = make(path=str(hub_folder), parts={"official": "validation"}, **sizes)
    dataset = data.load(recipe)
    assert dataset.labels == ("bad", "good")
    assert [(e.id, e.label) for e in dataset.parts["official"]] == [  # type: ignore[union-attr]
        ("official-1", 1),
        ("official-2", 0),
        ("official-3", 1),
    ]
    assert len(data.load_file(recipe, str(hub_folder), "validation")) == 3
    absent = make(path=str(hub_folder), parts={"test": "exam"}, **sizes)
    assert 'Unknown split "exam". Should be one of' in refusal(absent)
    assert "set dataset.parts" in refusal(absent)
    assert "set dataset.name" in refusal(make(path=str(hub_folder), name="sst2"))


def test_no_hub_is_said_with_what_to_do() -> None:
    message = refusal(make(path="nobody/nothing"))
    assert message.startswith("nobody/nothing: Couldn't reach")
    assert "unset HF_HUB_OFFLINE, or name local files under dataset.parts" in message


def test_what_the_hub_refuses_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    reasons = {
        "Dataset 'a/b' is a gated dataset on the Hub.": "https://huggingface.co/datasets/a/b, then",
        "Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.": "`hf auth login`",
    }
    for reason, advice in reasons.items():

        def refuse(*_: object, reason: str = reason, **__: object) -> None:
            raise DatasetNotFoundError(reason)

        monkeypatch.setattr("datasets.load_dataset", refuse)
        assert advice in refusal(make(path="a/b"))


def test_the_generator_is_a_source() -> None:
    parts = {"train": 40, "validation": "10", "test": 10}
    dataset = data.load(make(path="tiny", name="reviews", parts=parts))
    assert dataset.labels == ("negative", "positive")
    assert [len(examples) for examples in dataset.parts.values()] == [40, 10, 10]
    assert dataset == data.load(make(path="tiny", name="reviews", parts=parts))
    assert dataset != data.load(make(path="tiny", name="reviews", parts=parts, seed=1))
    passages = data.load(make("extractive_qa", path="tiny", name="passages", parts=parts))
    assert len(passages.parts["train"]) == 40
    assert "reviews or passages" in refusal(make(path="tiny", name="poems", parts=parts))


def test_a_single_file_is_read_whole_with_the_recipes_labels(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\na,x\nb,y\nc,y\n")
    file = write(tmp_path / "exam.csv", "text,label\nd,y\n")
    expected = [TextExample(id="exam-1", text="d", label=1)]
    assert data.load_file(whole(train), str(file)) == expected
    assert data.load_file(whole("gone.csv", labels=["x", "y"]), str(file)) == expected
    with pytest.raises(UserError, match="label not among"):
        data.load_file(whole(train, labels=["x", "z"]), str(file))


def test_a_number_is_no_index_where_names_are_numbers(tmp_path: Path) -> None:
    """Ratings from 1: a 0 in another file would otherwise be read as the first of them."""
    train = write(tmp_path / "train.csv", "text,label\na,1\nb,2\nc,3\n")
    file = write(tmp_path / "exam.csv", "text,label\nd,3\ne,0\n")
    with pytest.raises(UserError, match=r"1 row: label not among 1, 2, 3 \(first: line 3"):
        data.load_file(whole(train), str(file))


def test_a_path_that_is_a_file_is_the_train_part(tmp_path: Path) -> None:
    file = str(reviews(tmp_path, 20))
    short, long = make(path=file), make(parts={"train": file})
    assert data.load(short) == data.load(long)
    assert "keep one" in refusal(make(path=file, parts={"train": file}))


# Real data -------------------------------------------------------------------------------------


def test_real_sst2(shared: Path) -> None:
    folder = shared / "data" / "sst2"
    parts = {"train": str(folder / "train.tsv"), "official": str(folder / "dev.tsv")}
    dataset = data.load(make(parts=parts, labels=["negative", "positive"]))
    sizes = {part: len(examples) for part, examples in dataset.parts.items()}
    assert sizes == {"train": 48491, "validation": 5388, "test": 13470, "official": 436}
    lines = (folder / "train.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    for part in ("train", "validation", "test"):
        for example in dataset.parts[part]:
            assert isinstance(example, TextExample)
            line = f"{example.label}\t{example.text}"
            assert lines[int(example.id.removeprefix("train-")) - 1] == line


def test_real_squad(shared: Path) -> None:
    file = str(shared / "data" / "squad" / "squad_v2.json")
    for group_by, key in ((None, "context"), ("title", "title")):
        dataset = data.load(make("generative_qa", path=file, group_by=group_by))
        assert sum(map(len, dataset.parts.values())) == 4012
        seen: dict[str, str] = {}
        for part, examples in dataset.parts.items():
            assert all(seen.setdefault(getattr(e, key), part) == part for e in examples)
        assert len(seen) == (11 if key == "title" else 417)
        assert any(not e.answers for e in dataset.parts["test"])  # type: ignore[union-attr]


def test_what_is_measured_whole_needs_no_column_to_cut_by(tmp_path: Path) -> None:
    row = {"question": "Who?", "context": "Ada built it.", "answers": ["Ada"]}
    file = write(tmp_path / "rows.jsonl", json.dumps(row))
    (example,) = data.load_file(make("extractive_qa", path="a/b", group_by="title"), str(file))
    assert example.id == "rows-1"


def test_an_absent_split_is_said_with_those_that_there_are(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    recipe = make(path="a/b", labels=["bad", "good"])
    with pytest.raises(UserError, match=r"Should be one of .*train.*: name one with --split$"):
        data.load_file(recipe, str(hub_folder), "exam")
    recipe = make(path=str(hub_folder), parts={"test": "validation"}, labels=["bad", "good"])
    assert len(data.load_file(recipe, str(hub_folder))) == 3, "its test part is that split"
