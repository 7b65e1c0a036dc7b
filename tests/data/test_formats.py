"""Every format gives the same rows, and a bad file is refused with its line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.data import TextExample
from tests.support.tables import (
    ROWS,
    question,
    refusal,
    to_csv,
    to_parquet,
    to_tsv,
    train_of,
    whole,
    write,
)

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
    ("rows.json", lambda rows: "\n".join(map(json.dumps, rows))),
    ("rows.json", lambda rows: "\n\n" + "\r\n\n".join(map(json.dumps, rows)) + "\n"),
    ("rows.csv", lambda rows: "," + to_csv(rows).replace("\n", "\n0,").removesuffix("0,")),
    ("rows.csv", lambda rows: to_csv(rows).replace("\n", ",9\n").replace("label,9", "label, ")),
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


def test_quotes_are_text_in_tsv_and_quotes_in_csv(tmp_path: Path) -> None:
    text = 'text{0}label\n"open{0}a\nclosed"{0}b\n'
    tsv = write(tmp_path / "rows.tsv", text.format("\t"))
    assert [example.text for example in train_of(whole(tsv))] == ['"open', 'closed"']
    csv = write(tmp_path / "rows.csv", text.format(","))
    assert "all 1 rows to train on have one label (b)" in refusal(whole(csv))
    literal = train_of(whole(csv, quoting="none"))
    assert [example.text for example in literal] == ['"open', 'closed"']


BAD_TEXTS: list[tuple[str, object, str]] = [
    ("a.csv", "", "the file is empty"),
    ("a.jsonl", " \n\n", "the file is empty"),
    ("a.csv", "text,label\n", "contains no rows"),
    ("a.json", [], "contains no rows"),
    ("a.jsonl", "{}", "missing column"),
    ("a.csv", b"text,label\na,b\n\xff\xfe,c\n", "line 3: is not UTF-8 text (byte 0xff)"),
    ("a.csv", "a,label\nx,y\n", "no column named text or sentence or content or review: set data"),
    ("a.csv", "text,text,label\nx,y,z\n", "the header contains text twice"),
    (
        "a.csv",
        "text,label\na,b\nc\nd,e,f\n",
        "2 of 3 rows are wrong\n  2 rows: not 2 cells like the header (first: line 3: 1 cells; line 4: 3 c",
    ),
    (
        "a.tsv",
        "text\tlabel\na\tb\tc\n",
        "(first: line 2: 3 cells): quotes are part of the text here",
    ),
    ("a.csv", 'text,label\n"a"b,c\n', "1 row: broken quotes (first: line 2: "),
    (
        "a.csv",
        'text,label\na,b\n"open\n,b\n',
        "1 row: broken quotes (first: line 3: unexpected end of data): if ",
    ),
    ("a.csv", "text,label\n ,b\nx,a\n,a\n", "2 rows: empty text (first: line 2; line 4)"),
    ("a.csv", 'text,label\n"two\nlines",a\n,b\n', "1 row: empty text (first: line 4)"),
    ("a.csv", "text,label\nx,\ny,a\n", "1 row: empty label (first: line 2)"),
    ("a.csv", "id,text,label\n1,a,x\n1,b,y\n1,c,y\n", "2 rows: duplicate id (first: line 3: "),
    ("a.csv", "id,text,label\n,a,x\n2,b,y\n", "1 row: empty id (first: line 2)"),
    ("a.csv", "text,label\na,x\nb,x\n", "all 2 rows to train on have one label (x): there is no"),
    ("a.json", {"rows": []}, 'must be a list of rows, or {"data": [...]}'),
    ("a.json", "{", "line 1: not valid JSON"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.json", "[" + "9" * 5000 + "]", "a number is too long"),
    (
        "a.json",
        [{"text": "a", "label": 0}, 5],
        "1 row: not an object with named values (first: row 2)",
    ),
    ("a.json", [{"text": 5, "label": 0}, {"text": "a", "label": 1}], "1 row: text is not text (f"),
    (
        "a.json",
        [{"label": 0}, {"text": None, "label": 1}],
        "2 rows: empty t",
    ),
    (
        "a.json",
        [{"text": "a", "label": [1, 2]}, {"text": "b", "label": 1}],
        "label holds several values, but a row has one class (f",
    ),
    ("a.json", '[{"text": "\\ud800", "label": 0}]', "unpaired Unicode surrogate in the text"),
    (
        "a.json",
        '[{"text": "a", "label": "\\ud800"}]',
        "unpaired Unicode surrogate in the label",
    ),
    ("a.jsonl", '{"text": "a", "label": 0}\n{"text"\n', "1 row: not valid JSON (first: line 2: "),
    ("a.parquet", b"PAR1 but not really", "cannot be read as Parquet"),
]


@pytest.mark.parametrize(("name", "content", "fragment"), BAD_TEXTS)
def test_bad_files(tmp_path: Path, name: str, content: object, fragment: str) -> None:
    file = write(tmp_path / name, content)
    message = refusal(whole(file))
    assert fragment in message
    assert str(file) in message


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},a\ny,b\n")
    assert [len(example.text) for example in train_of(whole(file))] == [200_000, 1]


def test_json_lines_in_a_json_file_name_the_wrong_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '{"text": "a", "label": 1}\n{"text": "b"\n')
    assert "1 row: not valid JSON (first: line 2: " in refusal(whole(file))


def test_passages_may_stand_in_no_article(tmp_path: Path) -> None:
    qas = [{"id": "q", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 0}]}]
    file = write(tmp_path / "a.json", {"data": [{"context": "Rome", "qas": qas}]})
    assert train_of(whole(file, "extractive_qa"))[0].answers == (("Rome", 0),)


def test_what_arrow_holds_and_python_cannot_is_one_line(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    day = pyarrow.array([2**62], pyarrow.timestamp("us"))
    table = pyarrow.table({"text": ["a"], "label": ["b"], "day": day})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "cannot be read as Parquet" in refusal(whole(tmp_path / "a.parquet"))


def test_squad_format_is_checked_when_it_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", [question(1, 1)])
    assert "must be SQuAD's" in refusal(whole(file, "extractive_qa", format="squad"))
    write(file, {"data": [question(1, 1)]})
    assert len(train_of(whole(file, "extractive_qa"))) == 1
    message = refusal(whole(file, "extractive_qa", format="squad"))
    assert "article 1: has no list paragraphs, so this is not SQuAD's format" in message
