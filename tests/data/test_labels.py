"""A label is a name, in every format and in every part."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_peft import data
from llama_peft.data.labels import label_key
from llama_peft.errors import UserError
from tests.support.tables import make, refusal, to_parquet, train_of, whole, write

MANY = "label holds several values, but a row has one class"
NUMBER = "label is a number and not a class: round it, or list the classes in dataset.labels"
UNLABELLED = (
    "label -1 is not a class here: it often means that a row has no label, as in the hidden test "
    "parts of GLUE"
)


def rows_of(*labels: object) -> list[dict[str, Any]]:
    return [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]


def classes(tmp_path: Path, names: list[str], *labels: int, name: str = "a.parquet") -> Path:
    """A Parquet file as the datasets library writes it."""
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    datasets.Dataset.from_list(rows_of(*labels), features=features).to_parquet(tmp_path / name)
    return tmp_path / name


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_equal_numbers_are_one_label_in_every_form(number: float) -> None:
    forms = [number, float(number) if abs(number) < 2**53 else number]
    if isinstance(number, float) and number.is_integer():
        forms.append(int(number))
    keys = {label_key(form) for form in forms}
    assert len(keys) == 1
    (key,) = keys
    assert label_key(key) == key
    assert label_key(f" {key}.0 " if "." not in key else f"{key}0") == key


@pytest.mark.parametrize("name", ["test.csv", "test.json", "test.parquet"])
def test_train_with_floats_and_test_with_whole_numbers(tmp_path: Path, name: str) -> None:
    """pandas writes 1.0 for 1 if a cell of the column is empty."""
    train = "text,label\n" + "".join(f"t{n},{n}.0\n" for n in range(1, 6))
    rows = rows_of(1, 2, 3, 4)
    lines = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
    form = {"test.csv": lines, "test.json": rows, "test.parquet": to_parquet(rows)}[name]
    parts = {"train": str(write(tmp_path / "train.csv", train))}
    parts["test"] = str(write(tmp_path / name, form))
    dataset = data.load(make(parts=parts, validation_size=0.0))
    assert dataset.labels == ("1", "2", "3", "4", "5")
    assert [dataset.labels[e.label] for e in dataset.parts["test"]] == [  # type: ignore[union-attr]
        *("1", "2", "3", "4")
    ]


def test_a_position_is_a_label_only_where_names_are_given(tmp_path: Path) -> None:
    parts = {
        "train": str(write(tmp_path / "train.json", rows_of("ham", "spam"))),
        "test": str(write(tmp_path / "test.json", rows_of(0, "ham", 1))),
    }
    message = refusal(make(parts=parts, validation_size=0.0))
    assert (
        "2 rows: label is not one of ham, spam, and nothing says that 0 is ham, 1 is spam: if that is "
        "so, set dataset.labels in this order (first: row 1: 0"
    ) in message
    named = data.load(make(parts=parts, validation_size=0.0, labels=["spam", "ham"]))
    assert [e.label for e in named.parts["test"]] == [0, 1, 1]  # type: ignore[union-attr]


def test_the_names_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    file = classes(tmp_path, ["3", "1", "2"], 0, 1, 2)
    dataset = data.load(whole(file))
    assert dataset.labels == ("3", "1", "2"), "0 is the class 3, and 1 is the class 1"
    assert [e.label for e in dataset.parts["train"]] == [0, 1, 2]  # type: ignore[union-attr]
    words = classes(tmp_path, ["good", "bad"], 0, 1, 1, name="b.parquet")
    given = [e.label for e in train_of(whole(words, labels=["bad", "good"]))]
    assert given == [1, 0, 0], "names of the recipe are found by name, not by position"
    renamed = [e.label for e in train_of(whole(words, labels=["yes", "no"]))]
    assert renamed == [0, 1, 1]
    other = classes(tmp_path, ["bad", "good"], 0, 1, name="c.parquet")
    parts = {"train": str(words), "test": str(other)}
    both = data.load(make(parts=parts, validation_size=0.0))
    assert [both.labels[e.label] for e in both.parts["test"]] == ["bad", "good"]  # type: ignore[union-attr]
    numbers = write(tmp_path / "d.json", rows_of(0, 1))
    assert [e.label for e in data.load_file(whole(words), str(numbers)).parts["data"]] == [0, 1]  # type: ignore[union-attr]
    unlabelled = classes(tmp_path, ["good", "bad"], 0, 1, -1, name="e.parquet")
    assert f"1 row: {UNLABELLED} (first: row 3" in refusal(whole(unlabelled))


@pytest.mark.parametrize("metadata", [b"{", b"[]", b"1", b'{"info": {"features": {"label": 3}}}'])
def test_what_other_programs_write_into_parquet_is_left(tmp_path: Path, metadata: bytes) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows_of(1, 2)).replace_schema_metadata(
        {b"huggingface": metadata}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert data.load(whole(tmp_path / "a.parquet")).labels == ("1", "2")


@pytest.mark.parametrize(
    ("labels", "names", "fault"),
    [
        ([0.37, 0.5, 0], None, f"2 rows: {NUMBER} (first: row 1: 0.37"),
        (["0.37", "0.5"], None, f"2 rows: {NUMBER}"),
        ([1e-7, 1], None, f"1 row: {NUMBER}"),
        ([["a", "b"], "c"], None, f"1 row: {MANY}"),
        (["['a', 'b']", "c"], None, f"1 row: {MANY}"),
        (["[0, 1]", "c"], ["c", "d"], f"1 row: {MANY}"),
        ([{"a": 1}, "c"], None, f"1 row: {MANY}"),
        ([-1, 0, 1], ["neg", "pos"], f"1 row: {UNLABELLED} (first: row 1: -1"),
        (["-1.0", 0, 1], ["neg", "pos"], f"1 row: {UNLABELLED}"),
        ([0, 2], ["neg", "pos"], "1 row: label out of range 0 to 1 (first: row 2: 2"),
        ([0, 999999999999], ["neg", "pos"], "1 row: label out of range 0 to 1"),
        ([float("inf"), 1], None, "1 row: label is neither a word nor a number"),
        ([float("nan"), 1], None, "1 row: empty label"),
        ([None, 1], None, "1 row: empty label"),
        (["[sic]", "a", "neutral (n)"], None, ""),
    ],
)
def test_what_is_not_a_class(
    tmp_path: Path, labels: list[Any], names: list[str] | None, fault: str
) -> None:
    recipe = whole(write(tmp_path / "a.json", rows_of(*labels)), labels=names)
    if fault:
        assert fault in refusal(recipe)
    else:
        assert len(data.load(recipe).labels) == len(labels)


def test_two_names_of_one_label_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", rows_of(1, 2))
    with pytest.raises(UserError, match=r"^dataset.labels: 1 and 1.0 are the same label: remove"):
        data.load(whole(file, labels=["1", "1.0"]))
