"""Rows come from files, the Hub, the generator and Python objects."""

from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.data.sources.python import read_rows
from llama_peft.errors import UserError
from llama_peft.recipe import Data
from tests.support.tables import (
    ROME,
    ROWS,
    make,
    nested,
    question,
    refusal,
    to_csv,
    to_parquet,
    to_tsv,
    train_of,
    whole,
    write,
)


def test_the_format_can_be_said(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.data", to_tsv(ROWS))
    assert "set dataset.format to one of csv, tsv, json" in refusal(whole(file))
    assert len(train_of(whole(file, format="tsv"))) == 6


def test_a_table_of_another_program_gets_advice(tmp_path: Path) -> None:
    """A workbook is an archive, but its files are not what a user wants to name."""
    assert "save its sheet as CSV" in refusal(whole(write(tmp_path / "a.XLSX", b"PK\x03\x04")))
    assert "as Parquet" in refusal(whole(write(tmp_path / "a.feather", b"ARROW1")))


def test_a_home_that_nobody_has_is_one_line() -> None:
    assert "~nobody-here/a.csv: " in refusal(whole("~nobody-here/a.csv"))


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", to_csv(ROWS))
    near = refusal(whole(tmp_path / "trian.csv"))
    assert f"no such file; did you mean {tmp_path / 'train.csv'}?" in near
    assert "there is no folder" in refusal(whole(tmp_path / "nowhere" / "train.csv"))
    assert "no such file" in refusal(make(path=str(tmp_path / "x.csv")))


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
    assert len(data.load_file(recipe, str(hub_folder), "validation").parts["data"]) == 3
    absent = make(path=str(hub_folder), parts={"test": "exam"}, **sizes)
    assert 'Unknown split "exam". Should be one of' in refusal(absent)
    assert "set dataset.parts" in refusal(absent)
    assert "set dataset.name" in refusal(make(path=str(hub_folder), name="sst2"))


def test_an_absent_split_is_said_with_those_that_there_are(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    recipe = make(path="a/b", labels=["bad", "good"])
    with pytest.raises(UserError, match=r"Should be one of .*train.*: name one of these splits$"):
        data.load_file(recipe, str(hub_folder), "exam")
    recipe = make(path=str(hub_folder), parts={"test": "validation"}, labels=["bad", "good"])
    assert len(data.load_file(recipe, str(hub_folder)).parts["data"]) == 3, (
        "its test part is that split"
    )


@pytest.mark.parametrize("name", ["text", "csv", "json", "parquet", "imagefolder", "webdataset"])
def test_a_file_format_is_not_the_name_of_a_data_set(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library would read every file of that format in the working directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.csv", to_csv(ROWS))
    write(tmp_path / "train.txt", "a\nb\n")
    with pytest.raises(UserError) as error:
        data.load_file(make(path="tiny", labels=["bad", "good"]), name)
    for message in (refusal(make(path=name)), str(error.value)):
        assert message.startswith(f"{name}: this is a file format of the datasets library")
        assert f"write ./{name} for a folder, or owner/name for a data set on the Hub" in message
        assert "\n" not in message


def test_a_folder_is_not_taken_for_a_data_set_of_the_hub(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hub_folder.parent)
    (hub_folder.parent / "owner").mkdir()
    hub_folder.rename("owner/name")
    sizes: dict[str, Any] = {"test_size": 0.0, "validation_size": 0.0}
    sizes["parts"] = {"official": "validation"}
    for name in ("owner", "owner/name"):
        message = refusal(make(path=name, **sizes))
        assert (
            f"{name}: this can be a folder here or a data set on the Hub; write ./{name}" in message
        )
    assert data.load(make(path="./owner/name", **sizes)).labels


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
    assert "mixed-reviews or passages" in refusal(make(path="tiny", name="poems", parts=parts))


# Rows from Python ------------------------------------------------------------------------------


def forms(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same rows in every type that is taken."""
    import datasets
    import pandas

    return {
        "list": rows,
        "tuple": tuple(rows),
        "frame": pandas.DataFrame(rows),
        "dataset": datasets.Dataset.from_list(rows),
    }


def test_rows_from_python_are_those_of_a_file(tmp_path: Path) -> None:
    recipe = whole(write(tmp_path / "rows.json", ROWS))
    expected = data.load(recipe)
    for name, rows in forms(ROWS).items():
        assert data.load(whole("unused.csv"), {"train": rows}) == expected, name
    questions = [question(1, 1), question(2, 1) | {"answers": {"text": [], "answer_start": []}}]
    recipe = whole(write(tmp_path / "rows.json", questions), "extractive_qa")
    expected = data.load(recipe)
    for name, rows in forms(questions).items():
        assert data.load(whole("unused.csv", "extractive_qa"), {"train": rows}) == expected, name


def test_a_frame_that_pandas_read_from_parquet(tmp_path: Path) -> None:
    """Its lists are arrays of numpy."""
    import pandas

    file = write(tmp_path / "rows.parquet", to_parquet([question(1, 1), question(2, 2)]))
    recipe = whole(file, "extractive_qa")
    assert data.load(recipe, {"train": pandas.read_parquet(file)}) == data.load(recipe)


def test_missing_cells_of_pandas_are_empty_and_numbers_stay() -> None:
    import numpy
    import pandas

    missing = [None, float("nan"), numpy.nan, pandas.NA, pandas.NaT]
    frame = pandas.DataFrame({"label": [0, 1, 2, 0, 1], "size": [1, None, 2.5, 4, 5]})
    frame["text"] = missing
    frame["stars"] = pandas.array([1, None, 3, 4, 5], dtype="Int64")
    table = read_rows(frame, Data())
    assert [record["text"] for record in table.records] == [None] * 5
    assert [record["size"] for record in table.records] == [1.0, None, 2.5, 4.0, 5.0]
    assert [record["stars"] for record in table.records] == [1, None, 3, 4, 5]
    assert {type(record["label"]) for record in table.records} == {int}
    cells = [{"text": cell, "label": numpy.int64(1)} for cell in missing]
    table = read_rows(cells, Data())
    assert table.records == [{"text": None, "label": 1}] * 5
    assert type(table.records[0]["label"]) is int
    message = given_refusal(frame)
    assert message.splitlines() == [
        "the given train part: 5 of 5 rows are wrong",
        "  5 rows: empty text (first: row 1; row 2; row 3)",
    ]


def test_a_dataset_brings_its_label_names() -> None:
    import datasets

    labels = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    dataset = data.load(whole("unused.csv"), {"train": rows})
    assert dataset.labels == ("bad", "good")
    assert [e.label for e in dataset.parts["train"]] == [1, 0]  # type: ignore[union-attr]


def test_squads_articles_may_be_given() -> None:
    content = nested([{"text": "Rome", "answer_start": 13}])
    dataset = data.load(whole("unused.csv", "extractive_qa"), {"train": content["data"]})
    assert [e.answers for e in dataset.parts["train"]] == [ROME]  # type: ignore[union-attr]


def given_refusal(rows: Any) -> str:
    with pytest.raises(UserError) as caught:
        data.load(whole("unused.csv"), {"train": rows})
    return str(caught.value)


def test_other_objects_are_refused_in_one_line() -> None:
    import datasets
    import pandas

    types = "must be a list of dicts, a pandas DataFrame or a datasets.Dataset, not of type"
    split = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    assert given_refusal(split) == f"the given train part: {types} DatasetDict"
    assert given_refusal({"text": ["a"]}) == f"the given train part: {types} dict"
    assert given_refusal(iter(ROWS)) == f"the given train part: {types} list_iterator"
    assert "2 rows: not an object with named values (first: row 2; row 3)" in given_refusal(
        [ROWS[0], "good", 5]
    )
    assert given_refusal([]) == "the given train part: contains no rows"
    assert given_refusal(pandas.DataFrame()) == "the given train part: contains no rows"
    twice = pandas.DataFrame([["a", "b", "c"]], columns=["text", "text", "label"])
    assert "the header contains text twice" in given_refusal(twice)
    assert "missing column" in given_refusal(pandas.DataFrame([["a", "b"]]))
    assert (
        given_refusal("rows.csv") == "given rows: train is a file: set dataset.parts.train=rows.csv"
    )
