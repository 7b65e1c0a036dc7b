"""Files as people have them: packed, in other encodings and forms. Each gives the weights of a plain file."""

import gzip
import json
from collections.abc import Iterator
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
    Rows,
    as_csv,
    as_json,
    as_lines,
    plain,
    reads,
)
from .labels import as_parquet
from .refused import zipped

CSV, JSON = as_csv(TEXTS), as_json(TEXTS)
DROP = {"on_bad_rows": "drop"}
NO_ID = {"columns": {"id": None}}
NUMBERED: Rows = [{"": n, **row} for n, row in enumerate(TEXTS)]
BAD = '"",1\nlone\na,b,c\n" ",0\nx,\n'
TEXT_FORMS: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "semicolons": ("a.csv", as_csv(TEXTS, ";"), {"delimiter": ";"}),
    "bars": ("a.csv", as_csv(TEXTS, "|"), {"delimiter": "|"}),
    "tabs": ("a.csv", as_csv(TEXTS, "\t"), {"delimiter": "\\t"}),
    "tabs and quotes": ("a.tsv", as_csv(TEXTS, "\t"), {"quoting": "minimal"}),
    "ends of lines of Windows": ("a.csv", as_csv(TEXTS, end="\r\n"), {}),
    "the mark of UTF-8": ("a.csv", b"\xef\xbb\xbf" + CSV, {}),
    "cp1252": ("a.csv", as_csv(TEXTS, encoding="cp1252"), {"encoding": "cp1252"}),
    "UTF-16": ("a.csv", as_csv(TEXTS, encoding="utf-16"), {"encoding": "utf-16"}),
    "UTF-16 without a mark": ("a.csv", as_csv(TEXTS, encoding="utf-16-be"), {"encoding": "utf-16-be"}),
    "cp1252 lines": ("a.jsonl", as_lines(TEXTS).decode().encode("cp1252"), {"encoding": "cp1252"}),
    "gz": ("a.csv.gz", gzip.compress(CSV), {}),
    "gz in two pieces": ("a.csv.GZ", gzip.compress(CSV[:50]) + gzip.compress(CSV[50:]), {}),
    "gz that the name hides": ("a.csv", gzip.compress(CSV), {}),
    "gz that a browser unpacked": ("a.csv.gz", CSV, {}),
    "gz of JSON": ("a.json.gz", gzip.compress(JSON), {}),
    "gz of semicolons in cp1252": (
        "a.csv.gz", gzip.compress(as_csv(TEXTS, ";", "cp1252")), {"delimiter": ";", "encoding": "cp1252"},
    ),
    "zip": ("a.zip", zipped({"rows.csv": CSV}), {}),
    "zip with a system's notes": (
        "a.zip", zipped({"__MACOSX/._a": b"x", "a/": b"", "a/.DS_Store": b"x", "a/a.csv": CSV}), {},
    ),
    "zip of a file without a suffix": ("a.csv.zip", zipped({"rows": CSV}), {}),
    "zip of Parquet": ("a.zip", zipped({"a.parquet": as_parquet(TEXTS)}), {}),
    "Parquet": ("a.parquet", as_parquet(TEXTS), {}),
    "JSON lines": ("a.json", as_lines(TEXTS), {}),
    "rows under data": ("a.json", as_json({"version": 1, "data": TEXTS}), {}),
    "blank lines between": ("a.jsonl", as_lines(TEXTS).replace(b"\n", b"\n\n"), {}),
    "a column without a name": ("a.csv", as_csv(NUMBERED), {}),
    "other columns": ("a.csv", as_csv([{"text_id": n, **r, "note": "x"} for n, r in enumerate(TEXTS)]), {}),
    "one id for all, not read": ("a.csv", as_csv([{"id": 7, **row} for row in TEXTS]), NO_ID),
    "bad rows at the end, dropped": ("a.csv", CSV + BAD.encode(), DROP),
    "bad rows between, dropped": ("a.csv", CSV.replace(b"\n", f"\n{BAD}".encode(), 3), DROP),
    "repeated ids, dropped": (
        "a.csv", as_csv([{"id": n, **r} for n, r in enumerate(TEXTS)] + [{"id": 3, **TEXTS[0]}]), DROP,
    ),
    "unknown labels, dropped": (
        "a.json", as_json([*TEXTS, {"text": "a", "label": "x"}, {"text": "b", "label": [1]}]),
        DROP | {"labels": ["bad", "good"]},
    ),
    "unknown labels that are numbers, dropped": (
        "a.json", as_json([*TEXTS, {"text": "a", "label": 7}, {"text": "b", "label": None}]),
        DROP | {"labels": ["0", "1"]},
    ),
}  # fmt: skip


def _texts() -> Iterator[Fault]:
    for name, (file, raw, dataset) in TEXT_FORMS.items():
        cheap = name in ("semicolons", "gz", "bad rows between, dropped")
        # An encoding is that of every part.
        test = (f"b{file[1:]}", raw) if "encoding" in dataset else None
        yield reads(f"read: {name}", Given("texts", file, raw, test, dataset), cheap=cheap)
    long = [{**TEXTS[0], "text": "very " * 40_000}, *TEXTS[1:]]
    yield reads(
        "read: a cell of 200,000 letters",
        Given("texts", "a.csv", as_csv(long)),
        plain("texts", long),
    )
    lines = [{**TEXTS[0], "text": 'A "film",\n\nas one\tsays; or not.'}, *TEXTS[1:]]
    yield reads(
        "read: lines inside of a cell",
        Given("texts", "a.csv", as_csv(lines)),
        plain("texts", lines),
    )
    literal = [{**TEXTS[0], "text": 'A "film" of 3"'}, *TEXTS[1:]]
    raw = "".join(f"{row['text']}\t{row['label']}\n" for row in literal)
    tsv = Given("texts", "a.tsv", f"text\tlabel\n{raw}".encode())
    yield reads("read: quotes that are text", tsv, plain("texts", literal))
    renamed = as_csv([{"body": row["text"], "team": row["label"]} for row in TEXTS])
    columns = {"columns": {"text": "body", "label": "team"}}
    given = Given("texts", "a.csv", renamed, ("b.csv", renamed), columns)
    yield reads("read: columns of other names", given)


def _pairs() -> Iterator[Fault]:
    turned = [dict(reversed(row.items())) for row in PAIRS]
    yield reads(
        "read: columns in another order", Given("pairs", "a.csv", as_csv(turned), dataset=PAIR)
    )
    written = {"template": "premise: {premise}\nhypothesis: {hypothesis}"}
    given = plain("pairs")
    own = Given("pairs", "b.json", given.raw, dataset=PAIR, prompt=written)
    yield reads("read: the template that stands for none", own)
    joined = [
        {
            "text": f"premise: {row['premise']}\nhypothesis: {row['hypothesis']}",
            "label": row["label"],
        }
        for row in PAIRS
    ]
    yield reads("read: two columns as one", plain("pairs"), plain("texts", joined))
    bad = [*PAIRS, {**PAIRS[0], "premise": ""}, {**PAIRS[0], "hypothesis": None}]
    dropped = Given("pairs", "e.json", as_json(bad), dataset=PAIR | DROP)
    yield reads("read: half a pair, dropped", dropped)


def _squad(rows: Rows, in_articles: bool) -> bytes:
    """Questions in SQuAD's nested form, or as passages that stand in no article."""
    passages = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(*row["answers"].values(), strict=True)
                    ],
                    "is_impossible": not row["answers"]["text"],
                }
            ],
        }
        for row in rows
    ]
    articles = [{"title": "t", "paragraphs": passages}]
    return as_json({"data": articles if in_articles else passages})


def _with(**columns: Any) -> Rows:
    """The questions with other cells, each made from its row."""
    return [{**row, **{key: make(row) for key, make in columns.items()}} for row in QUESTIONS]


def _starts(row: Any) -> Any:
    return (row["answers"]["answer_start"] or [None])[0]


def _text(row: Any) -> str:
    return (row["answers"]["text"] or [""])[0]


def _questions() -> Iterator[Fault]:
    listed = _with(
        answers=lambda row: [
            {"text": text, "answer_start": start}
            for text, start in zip(*row["answers"].values(), strict=True)
        ]
    )
    flat = _with(answers=_text, answer_start=_starts)
    silent = _with(
        answers=lambda row: (
            row["answers"] if row["answers"]["text"] else {"text": [""], "answer_start": [-1]}
        )
    )
    bare = _with(
        answers=lambda row: (
            {"text": _text(row), "answer_start": _starts(row)} if _text(row) else None
        )
    )
    twice = [
        *QUESTIONS,
        {**QUESTIONS[1], "id": "off", "answers": {"text": ["Ada"], "answer_start": [1]}},
        {**QUESTIONS[1], "id": "free", "answers": ["She did."]},
        {**QUESTIONS[1], "question": " "},
    ]
    forms: dict[str, tuple[str, bytes, dict[str, Any]]] = {
        "SQuAD's articles": ("a.json", _squad(QUESTIONS, True), {}),
        "passages in no article": ("a.json", _squad(QUESTIONS, False), {}),
        "passages as a list": ("a.json", as_json(_passages()), {}),
        "JSON lines": ("a.json", as_lines(QUESTIONS), {}),
        "objects in JSON in a cell": ("a.csv", as_csv(QUESTIONS), {}),
        "objects in Python's words in a cell": ("b.csv", as_csv(_with(answers=lambda r: repr(r["answers"]))), {}),
        "lists in Python's words in a cell": (
            "c.csv", as_csv([{**row, "answers": repr(row["answers"])} for row in listed]), {},
        ),
        "a list of objects": ("b.json", as_json(listed), {}),
        "a column with the starts": ("d.csv", as_csv(flat), {}),
        "a column of another name with the starts": (
            "e.csv", as_csv([{**_less(row), "begin": row["answer_start"]} for row in flat]),
            {"columns": {"answer_start": "begin"}},
        ),
        "starts as 24.0": (
            "f.csv", as_csv(_with(answers=_text, answer_start=lambda r: float(_starts(r)) if _text(r) else "")), {},
        ),
        "lists of starts": (
            "c.json", as_json(_with(answers=lambda r: r["answers"]["text"], answer_start=lambda r: r["answers"]["answer_start"])), {},
        ),
        "an empty text at -1 for no answer": ("d.json", as_json(silent), {}),
        "one answer that is no list": ("e.json", as_json(bare), {}),
        "Parquet": ("a.parquet", as_parquet(QUESTIONS), {}),
        "bad answers, dropped": ("f.json", as_json(twice), DROP),
    }  # fmt: skip
    for name, (file, raw, dataset) in forms.items():
        test = None
        if "columns" in dataset:  # the test part has them too
            test = (f"z{file}", raw.replace(b"\nq", b"\nz"))
        given = Given("questions", file, raw, test, dataset)
        yield reads(f"read: answers: {name}", given)


def _passages() -> object:
    return json.loads(_squad(QUESTIONS, False))["data"]


def _less(row: Any) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "answer_start"}


def _free() -> Iterator[Fault]:
    yield reads("read: free answers in a cell", Given("free", "a.csv", as_csv(FREE)))
    columns = plain("alone").dataset
    for file, raw in (("a.csv", as_csv(ALONE)), ("a.jsonl", as_lines(ALONE))):
        yield reads("read: questions alone", Given("alone", file, raw, dataset=columns))
    with_more = as_json([{"context": "Not read.", **row} for row in ALONE])
    yield reads(
        "read: a passage that is not wanted", Given("alone", "b.json", with_more, dataset=columns)
    )


def faults() -> Iterator[Fault]:
    yield from _texts()
    yield from _pairs()
    yield from _questions()
    yield from _free()
