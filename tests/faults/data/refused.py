"""Rows and files that cannot be used. Each is refused in one line that says what to do."""

import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from tests.faults.shop import Fault

from .case import (
    ALONE,
    FREE,
    PAIR,
    PAIRS,
    QUESTIONS,
    TEXTS,
    Given,
    as_csv,
    as_json,
    as_lines,
    plain,
    reads,
    refuses,
    squad,
)

ADA = [{"text": "Ada", "answer_start": 0}]
TEXT_FILES: dict[str, tuple[str, bytes]] = {
    "empty": ("a.csv", b""),
    "a header alone": ("a.csv", b"text,label\n"),
    "one row": ("a.csv", b"text,label\nfine,1\n"),
    "no such column": ("a.csv", b"words,label\nfine,1\nbad,0\n"),
    "a text is empty": ("a.csv", b"text,label\n,1\nfine,0\n"),
    "a text is blank": ("a.csv", b"text,label\n   ,1\nfine,0\n"),
    "no label": ("a.csv", b"text,label\nfine,\nbad,0\n"),
    "a label that is a fraction": ("a.csv", b"text,label\nfine,0.5\ngood,1\nbad,0\n"),
    "one class": ("a.csv", b"text,label\nfine,1\ngood,1\nwarm,1\n"),
    "binary": ("a.csv", bytes(range(256)) * 4),
    "same id twice": ("a.csv", b"id,text,label\n1,fine,1\n1,bad,0\n"),
    "ragged": ("a.csv", b"text,label\nfine,1,2,3\nbad,0\n"),
    "an open quote": ("a.csv", b'text,label\n"fine,1\nbad,0\n'),
    "JSON cut off": ("a.json", b'[{"text": "fine", "label": 1}, {"te'),
    "JSON that is a number": ("a.json", b"7"),
    "JSON lines, one broken": ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": \n'),
    "JSON lines of lists": ("a.jsonl", b"[1]\n[2]\n"),
    "texts that are numbers": ("a.json", b'[{"text": 3, "label": 1}, {"text": 4, "label": 0}]'),
    "a text that is called Parquet": ("a.parquet", b"PAR1 but no more"),
    "an unknown format": ("a.xlsx", b"PK"),
}
QUESTION_FILES: dict[str, tuple[str, bytes]] = {
    "answer off by one": ("a.json", squad([{"text": "Ada", "answer_start": 1}])),
    "answer beyond the end": ("a.json", squad([{"text": "Ada", "answer_start": 900}])),
    "answer before the start": ("a.json", squad([{"text": "Ada", "answer_start": -17}])),
    "answer empty": ("a.json", squad([{"text": "", "answer_start": 0}])),
    "answer of another case": ("a.json", squad([{"text": "ada", "answer_start": 0}])),
    "answers a number": ("a.json", squad(7)),
    "offset a text": ("a.json", squad([{"text": "Ada", "answer_start": "0"}])),
    "no answer, yet possible": ("a.json", squad([])),
    "answer, yet impossible": ("a.json", squad(ADA, is_impossible=True)),
    "question empty": ("a.json", squad(ADA, question=" ")),
    "id missing": ("a.json", squad(ADA, id=None)),
    "no data": ("a.json", b'{"data": []}'),
    "another form": ("a.json", b'{"questions": [1, 2]}'),
    "deep nesting": ("a.json", b"[" * 100_000),
    "a huge number": ("a.json", b'{"data": ' + b"9" * 10_000 + b"}"),
}


def zipped(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _locked(raw: bytes) -> bytes:
    """An archive whose one file is said to have a password, in both places."""
    changed = bytearray(raw)
    changed[6] |= 1
    changed[changed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


CSV = as_csv(TEXTS)
LATIN = as_csv([{"text": "caf\xe9", "label": 1}, {"text": "bad", "label": 0}], encoding="latin-1")
FILES: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "semicolons": ("a.csv", as_csv(TEXTS, ";"), {}, r'dataset\.delimiter: ";"'),
    "semicolons, no quotes": ("a.csv", as_csv(TEXTS, ";"), {"quoting": "none"}, 'delimiter: ";"'),
    "tabs": ("a.csv", as_csv(TEXTS, "\t"), {}, r'dataset\.delimiter: "\\t"'),
    "commas": ("a.tsv", b"text,label\na,x\nb,y\n", {}, r'dataset\.delimiter: ","'),
    "another delimiter than the recipe's": ("a.csv", CSV, {"delimiter": ";"}, 'delimiter: ","'),
    "Latin-1": ("a.csv", LATIN, {}, r"line 2: is not UTF-8.*dataset\.encoding.*latin-1 fits"),
    "UTF-16": ("a.csv", CSV.decode().encode("utf-16"), {}, r"dataset\.encoding: utf-16"),
    "UTF-16 without a mark": ("a.csv", CSV.decode().encode("utf-16-le"), {}, "encoding: utf-16-le"),
    "another encoding than the recipe's": ("a.csv", CSV, {"encoding": "ascii"}, "is not ascii text"),
    "gz cut off": ("a.csv.gz", gzip.compress(CSV)[:-12], {}, "cannot be unpacked"),
    "gz with a wrong sum": ("a.csv.gz", gzip.compress(CSV)[:-8] + bytes(8), {}, "unpacked .CRC"),
    "gz in name and mark alone": ("a.csv.gz", b"\x1f\x8bnothing", {}, "cannot be unpacked"),
    "gz of nothing": ("a.csv.gz", gzip.compress(b""), {}, "the file is empty"),
    "gz that holds Latin-1": ("a.csv.gz", gzip.compress(LATIN), {}, "line 2: is not UTF-8"),
    "zip cut off": ("a.zip", zipped({"a.csv": CSV})[:-30], {}, "cannot be unpacked"),
    "zip of two files": ("a.zip", zipped({"a.csv": CSV, "b.csv": CSV}), {}, r"2 files .a.csv, b.csv"),
    "zip of nothing": ("a.zip", zipped({}), {}, "holds 0 files"),
    "zip with a password": ("a.zip", _locked(zipped({"a.csv": CSV})), {}, "encrypted, password"),
    "zip of another format": ("a.zip", zipped({"a.docx": b"x"}), {}, r"set dataset\.format"),
    "a header without rows of names": ("a.csv", b"fine,1\nbad,0\n", {}, "the columns are: fine, 1"),
    "two columns of one name": ("a.csv", b"text,label,text\na,1,b\n", {}, "text twice"),
    "JSON lines, the last one broken": ("a.json", as_lines(TEXTS) + b'{"text": ', {}, "line 13"),
    "faults of several kinds": (
        "a.csv", b"id,text,label\n1,,x\n2,b,\n2,c,y\n,d,x\n5,,y\n", {},
        r"5 of 5 rows are wrong\n.*2 rows: empty text .first: line 2; line 6(.|\n)*columns\.id: null",
    ),
    "every row is bad, and bad rows are dropped": (
        "a.csv", b"text,label\n,1\n,0\n", {"on_bad_rows": "drop"}, "2 of 2 rows are wrong",
    ),
    "one class is left, and bad rows are dropped": (
        "a.csv", b"text,label\na,1\nb,1\n,0\n", {"on_bad_rows": "drop"}, "class|label",
    ),
    "ids are missing": ("a.csv", b"id,text,label\n1,a,x\n,b,y\n", {}, r"columns\.id: null"),
    "both columns of a list for the label": (
        "a.csv", b"text,toxic,rude\na,1,0\nb,0,1\n", {"columns": {"label": ["toxic", "rude"]}},
        r"columns\.label.*toxic and rude.*keep one",
    ),
}  # fmt: skip


def _pairs(name: str, says: str, rows: Any = PAIRS, prompt: Any = None, **dataset: Any) -> Fault:
    keys = {**PAIR, **dataset}
    given = Given("pairs", "a.json", as_json(rows), dataset=keys, prompt=prompt or {})
    return refuses(name, given, says)


def _without(rows: Any, column: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != column} for row in rows]


def _fields() -> Iterator[Fault]:
    """Texts of several columns, and the templates that name them."""
    yield _pairs("a text lacks a column", "train part has only one", _without(PAIRS, "hypothesis"))
    empty = [{**PAIRS[0], "hypothesis": " "}, *PAIRS[1:]]
    yield _pairs("a text lacks a cell", "1 row: empty hypothesis .first: row 1", empty)
    for name, template, says in (
        ("leaves a column out", "{premise}", r"leaves out \{hypothesis\}"),
        ("names an unknown column", "{premise} {claim}", "claim"),
        ("names a column twice", "{premise} {premise} {hypothesis}", "exactly once"),
        ("names no column", "nothing", "exactly once"),
        ("names one text", "This: {text}", r"write \{premise\} and \{hypothesis\}"),
        ("has an open brace", "{premise} {hypothesis", "braces"),
    ):
        yield _pairs(f"the template {name}", says, prompt={"template": template})
    other = {"template": "{premise} {hypothesis}", "zero_shot": "{premise} {claim}"}
    yield _pairs("two templates name other columns", "claim", prompt=other)


def _asked(name: str, shape: str, rows: Any, says: str, **dataset: Any) -> Fault:
    """Questions as JSON lines."""
    return refuses(
        name, Given(shape, "a.jsonl", as_lines(rows), dataset=plain(shape).dataset | dataset), says
    )


def _answers() -> Iterator[Fault]:
    flat = [{**row, "answers": "Ada", "answer_start": 20} for row in QUESTIONS[1:3]]

    def changed(**cells: Any) -> list[Any]:
        return [{**flat[0], **cells}, flat[1]]

    def whole(answers: object) -> list[Any]:
        return [{**QUESTIONS[1], "answers": answers}, QUESTIONS[2]]

    shape = "questions"
    yield _asked("a start off by one", shape, changed(answer_start=21), "is not at its offset")
    yield _asked("a start before the text", shape, changed(answer_start=-5), "not at its offset")
    yield _asked("a start that is a word", shape, changed(answer_start="x"), "one whole number")
    yield _asked("a start that is a fraction", shape, changed(answer_start=1.5), "one whole number")
    yield _asked(
        "two starts for an answer", shape, changed(answer_start=[0, 24]), "one whole number"
    )
    yield _asked(
        "more texts than starts",
        shape,
        whole({"text": ["Ada"], "answer_start": []}),
        "unknown form",
    )
    yield _asked(
        "a free answer where a piece is needed", shape, whole("Yes."), "not in its context"
    )
    yield _asked(
        "an answer that is an object in Python's words, cut off",
        shape,
        whole("{'text': ['Ada'"),
        "not in its context|unknown form",
    )
    yield _asked(
        "no column named for the starts",
        shape,
        flat,
        "no column named begin",
        columns={"answer_start": "begin"},
    )
    yield _asked("spans without passages", shape, ALONE, "context", columns={"context": None})
    yield _asked(
        "questions that lack a passage", "free", _without(FREE, "context"), "or to null if"
    )
    silent = [{**FREE[0], "answers": ["Unanswerable."]}, *FREE[1:]]
    yield _asked("an answer that means no answer", "free", silent, r"same as prompt\.no_answer")
    yield _asked(
        "an answer that is a number",
        "free",
        [{**FREE[0], "answers": [7]}, *FREE[1:]],
        "unknown form",
    )
    yield _asked(
        "a question alone is empty",
        "alone",
        [{**ALONE[0], "question": ""}, *ALONE[1:]],
        "empty question",
    )
    passages = [{"context": "Ada did.", "qas": {}}]
    yield refuses(
        "passages without a list of questions",
        Given(shape, "a.json", as_json({"data": passages})),
        "no list qas",
    )
    yield refuses(
        "a passage that is no object",
        Given(shape, "b.json", as_json({"data": [{"context": "Ada did.", "qas": [7]}]})),
        "not an object",
    )


def faults() -> Iterator[Fault]:
    for shape in ("texts", "questions"):
        yield reads(f"control: nothing is wrong with {shape}", plain(shape), cheap=True)
    for name, (file, raw) in TEXT_FILES.items():
        yield refuses(name, Given("texts", file, raw), "")
    for name, (file, raw) in QUESTION_FILES.items():
        yield refuses(name, Given("questions", file, raw), "")
    for name, (file, raw, dataset, says) in FILES.items():
        yield refuses(name, Given("texts", file, raw, dataset=dataset), says)
    yield from _fields()
    yield from _answers()
