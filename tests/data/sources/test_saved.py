"""A folder of `save_to_disk` is read as it is, whole or a slice; a strange one is refused in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft import data
from llama_peft.data.sources.hub import read_hub
from llama_peft.errors import UserError
from llama_peft.recipe import Data
from tests.support.tables import make, refusal

ARROW, STATE, INFO = "data-00000-of-00001.arrow", "state.json", "dataset_info.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the data set `one`, and `dict` with the same one as its train part."""
    import datasets

    features = {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
    }
    rows = {"text": ["a", "b", "c"], "label": [1, 0, 1]}
    one = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(tmp_path / "dict")
    return tmp_path


def texts(folder: Path, split: str = "train", limit: int | None = None) -> str:
    table = read_hub(str(folder), split, Data(), None, limit=limit)
    return "".join(str(row["text"]) for row in table.records)


def test_what_was_saved_to_disk_is_read_with_its_label_names(saved: Path) -> None:
    """Only its own files: `map` leaves copies of the rows beside them."""
    own = saved / "dict" / "train" / ARROW
    (own.parent / "cache-1.arrow").write_bytes(own.read_bytes())
    for name in ("one", "dict"):
        read = data.load(make(path=str(saved / name), test_size=0.0, validation_size=0.0))
        assert read.labels == ("bad", "good") and len(read.parts["train"]) == 3
    assert "Should be one of ['train', 'test']: set dataset.parts" in refusal(
        make(path=str(saved / "dict"), parts={"train": "training"})
    )


def test_slices_sums_and_limits(saved: Path) -> None:
    for split, expected in (
        ("train[:2]", "ab"),
        ("train[-1:]", "c"),
        ("train[:67%]", "ab"),
        ("train[7:]", ""),
        ("test+train[1:]", "abc"),
    ):
        assert texts(saved / "dict", split) == expected
    assert [texts(saved / name, limit=2) for name in ("one", "dict")] == ["ab", "ab"]
    assert texts(saved / "one", "train[1:]", 9) == "bc"
    for split, why in (("exam[:2]", 'Unknown split "exam"'), ("train[", "Unrecognized instr")):
        with pytest.raises(UserError, match=why):
            texts(saved / "dict", split)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", [ARROW, STATE, INFO])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "none"])
def test_only_regular_files_of_the_folder_are_read(saved: Path, name: str, kind: str) -> None:
    """A pipe would wait for ever, and a link may lead to what is not the sender's."""
    file = saved / "dict" / "train" / name
    file.rename(saved / "elsewhere")
    {
        "link": lambda: file.symlink_to(saved / "elsewhere"),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "none": lambda: None,
    }[kind]()
    with pytest.raises(UserError, match=r"leads out of|is no regular file of this name$") as caught:
        texts(saved / "dict")
    assert name in str(caught.value)


def test_names_do_not_lead_out_of_the_folder(saved: Path) -> None:
    for name in ("..", "../dict/train/" + ARROW, str(saved / "one" / ARROW), "."):
        state = json.loads((saved / "one" / STATE).read_text("utf-8"))
        state["_data_files"] = [{"filename": name}]
        (saved / "dict" / "train" / STATE).write_text(json.dumps(state), "utf-8")
        with pytest.raises(UserError, match=r"leads out of|no regular file"):
            texts(saved / "dict")
    (saved / "dict" / "dataset_dict.json").write_text('{"splits": ["../one"]}', "utf-8")
    with pytest.raises(UserError, match="leads out of"):
        texts(saved / "dict", "../one")


def _changed(name: str, **keys: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text("utf-8")) | keys
        kept = {key: value for key, value in values.items() if value != "absent"}
        (folder / name).write_text(json.dumps(kept), "utf-8")

    return change


@pytest.mark.parametrize(
    "change",
    [
        _changed(STATE, _fingerprint="absent"),
        _changed(STATE, _split=5),
        _changed(STATE, _split="x/../y"),
        _changed(STATE, _format_kwargs=5),
        _changed(STATE, _format_columns=["zzz"]),
        _changed(STATE, _data_files=[]),
        _changed(STATE, _data_files="absent"),
        _changed(INFO, features={"text": 5}),
        _changed(INFO, features={"text": {"_type": "Nope"}}),
        lambda folder: (folder / INFO).write_text("[]"),
        lambda folder: (folder / STATE).write_text('[{"text": "a"}]'),
        lambda folder: (folder / STATE).write_text("{"),
        lambda folder: (folder / ARROW).write_bytes((folder / ARROW).read_bytes()[:300]),
    ],
)
def test_a_damaged_folder_is_one_line(saved: Path, change: Callable[[Path], object]) -> None:
    change(saved / "one")
    with pytest.raises(UserError) as caught:
        texts(saved / "one")
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)
