"""What tests of data share: rows, files of them, and recipes that read them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.data import Answer
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


ROME = (Answer("Rome", 13),)


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


def nested(answers: object, **extra: object) -> dict[str, Any]:
    entry = {"id": "q", "question": "Where?", "answers": answers} | extra
    paragraphs = [{"context": CONTEXT, "qas": [entry]}]
    return {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": paragraphs}]}


def reviews(tmp_path: Path, count: int) -> Path:
    rows = [f"text {n},{'np'[n % 2]},g{n // 4}" for n in range(count)]
    return write(tmp_path / "reviews.csv", "\n".join(["text,label,group", *rows]))


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
