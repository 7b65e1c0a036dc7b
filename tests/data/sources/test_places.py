"""A folder, a pattern or a URL is read as one table: whole, in the order of names, or refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.tables import make, refusal, to_csv, to_parquet, train_of, whole, write

ROWS = [{"text": f"text {n}", "label": "pn"[n % 2]} for n in range(9)]
FORMS: dict[str, Any] = {
    ".csv": to_csv,
    ".parquet": to_parquet,
    ".jsonl": lambda rows: "".join(f"{row}\n" for row in rows).replace("'", '"'),
}


def shards(folder: Path, suffix: str = ".csv") -> Path:
    """Three files of three rows each, written in another order than that of their names."""
    folder.mkdir(exist_ok=True)
    for number in (2, 0, 1):
        write(folder / f"part-{number}{suffix}", FORMS[suffix](ROWS[3 * number : 3 * number + 3]))
    write(folder / "_SUCCESS", "")
    return folder


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The store that fsspec keeps in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def upload(memory: fsspec.AbstractFileSystem, folder: Path) -> None:
    for file in folder.iterdir():
        memory.pipe_file(f"/bucket/rows/{file.name}", file.read_bytes())


@pytest.mark.parametrize("suffix", FORMS)
def test_every_place_of_the_same_rows_gives_the_same_examples(
    tmp_path: Path, suffix: str, memory: fsspec.AbstractFileSystem
) -> None:
    folder = shards(tmp_path / "rows", suffix)
    upload(memory, folder)
    expected = train_of(whole(write(tmp_path / "one.csv", to_csv(ROWS))))
    assert len(expected) == 9
    for place in (
        str(folder),
        f"{folder}/part-*{suffix}",
        f"{folder}/part-[0-2]{suffix}",
        f"file://{folder}",
        f"local://{folder}/part-*{suffix}",
        "memory://bucket/rows",
        f"memory://bucket/rows/part-*{suffix}",
    ):
        assert train_of(whole(place)) == expected, place
        assert data.load(_path(place)).parts["train"] == expected, place
    own = data.load_file(whole(str(folder)), f"memory://bucket/rows/part-1{suffix}").parts["data"]
    assert [one.id for one in own] == ["part-1-1", "part-1-2", "part-1-3"]


def _path(place: str) -> Recipe:
    return make(path=place, test_size=0.0, validation_size=0.0)


def test_a_bad_row_of_several_files_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "rows")
    write(folder / "part-1.csv", "text,label\nfine,p\n,n\n")
    assert "empty text (first: file part-1.csv, line 3)" in refusal(whole(folder))
    write(folder / "part-1.csv", "text,label\nfine,p\nno cell\n")
    assert "part-1.csv: 1 of 2 rows are wrong" in refusal(whole(folder))
    dropped = data.load(whole(folder, on_bad_rows="drop"))
    assert len(dropped.parts["train"]) == 7 and len(dropped.dropped["train"]) == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_of_other_columns_are_named(tmp_path: Path, suffix: str) -> None:
    folder = shards(tmp_path / "rows", suffix)
    rows = [{"text": "a", "label": "p", "more": "b"}]
    write(
        folder / f"part-1{suffix}", FORMS[suffix](rows) if suffix != ".csv" else "text,more\na,b\n"
    )
    message = refusal(whole(folder))
    assert f"part-1{suffix}: the columns differ from those of part-0{suffix}" in message
    assert "more" in message and "\n" not in message


def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = shards(tmp_path / "rows")
    (folder / "more").mkdir()
    assert "/more, too: name its data files by a pattern, such as" in refusal(whole(folder))
    (folder / "more").rmdir()
    write(folder / "notes.txt", "")
    assert "/notes.txt, too: name its data files by a pattern" in refusal(whole(folder))
    (folder / "notes.txt").unlink()
    write(folder / "z.parquet", to_parquet(ROWS))
    assert "this folder holds files of several formats" in refusal(whole(folder))
    assert "no file fits this pattern" in refusal(whole(f"{folder}/*.tsv"))
    (tmp_path / "none").mkdir()
    assert "this folder holds no data file" in refusal(whole(tmp_path / "none"))
    write(tmp_path / "a[1].csv", to_csv(ROWS))
    assert len(train_of(whole(tmp_path / "a[1].csv"))) == 9, "a name is no pattern"


def test_a_folder_of_splits_keeps_the_layout_of_the_hub(tmp_path: Path) -> None:
    folder = shards(tmp_path / "rows")
    assert data.is_file_name(str(folder))
    (folder / "part-2.csv").rename(folder / "test-2.csv")
    assert not data.is_file_name(str(folder))
    (folder / "test-2.csv").rename(folder / "README.md")
    assert not data.is_file_name(str(folder))


@pytest.mark.parametrize(
    ("url", "fragment"),
    [
        (
            "s3://bucket/rows.csv",
            "Install s3fs to access S3: install the package that reads it: pip i",
        ),
        ("gs://bucket/*.parquet", "pip install gcsfs"),
        ("nowhere://rows.csv", "cannot be read (ValueError: Protocol not known: nowhere"),
        ("memory://bucket/none.csv", "memory://bucket/none.csv: there is no such file"),
        ("memory://bucket/none-*.csv", "no file fits this pattern"),
        ("http://127.0.0.1:9/rows.csv", "or nothing answers at this address"),
    ],
)
def test_what_a_store_refuses_is_one_line(url: str, fragment: str) -> None:
    message = refusal(whole(url))
    assert fragment in message and message.startswith(url) and "\n" not in message


def test_streaming_fetches_only_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files after those that hold enough rows are not even opened."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    rows = [{"sentence": f"text {n}", "label": n % 2} for n in range(200)]
    write(folder / "data" / "train-00000.parquet", to_parquet(rows))
    write(folder / "data" / "train-00001.parquet", b"PAR1 is damaged")
    write(folder / "data" / "test-00000.parquet", to_parquet(rows))
    settings = {"max_train_samples": 100, "max_eval_samples": 10, "streaming": True}
    recipe = make(path=f"{folder}/", **settings)
    dataset = data.load(recipe)
    assert {part: len(its) for part, its in dataset.parts.items()} == {
        "train": 100,
        "validation": 10,
        "test": 10,
    }
    texts = {one.text for its in dataset.parts.values() for one in its}  # type: ignore[union-attr]
    assert texts <= {row["sentence"] for row in rows[:143]}, "the first rows, and no others"
    assert data.content_sum(dataset) == data.content_sum(data.load(recipe))
    own = make(path=f"{folder}/", parts={"test": "test"}, **settings)
    assert len(data.load(own).parts["test"]) == 10
    assert len(data.load_file(own, f"{folder}/").parts["data"]) == 10
    with pytest.raises(UserError):
        data.load(make(path=f"{folder}/"))


def test_files_are_not_streamed(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", to_csv(ROWS))
    recipe = make(path=str(file), streaming=True, max_train_samples=5)
    assert "rows.csv is not a data set on the Hub: remove this key" in refusal(recipe)
