"""A recipe becomes examples in parts, the same ones in every process."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.data import TextExample
from llama_peft.errors import UserError
from llama_peft.recipe import GIVEN, dump_recipe, load_recipe
from tests.support.paths import RUNS_0_1_0
from tests.support.tables import (
    CONTEXT,
    ROWS,
    make,
    question,
    refusal,
    reviews,
    to_csv,
    whole,
    write,
)

RECIPE = {"task": "classification", "model": {"model_name_or_path": "tiny"}}


def test_ids_are_unique_over_parts(tmp_path: Path) -> None:
    text = "id,text,label\n1,a,x\n2,b,y\n"
    parts = {"train": str(write(tmp_path / "a.csv", text)), "test": str(tmp_path / "a.csv")}
    recipe = make(parts=parts, validation_size=0.0)
    assert "2 ids are in two parts (first: 1, in train and test)" in refusal(recipe)
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
        f'{bad}: 1 of 1 rows are wrong\n  1 row: label is not one of x, y, z (first: line 2: "w"'
        in (message)
    )


def test_verbalizers_must_fit_the_labels_of_the_data(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\na,x\nb,y\nc,z\n")
    recipe = whole(file).model_copy(
        update={"prompt": whole(file).prompt.model_copy(update={"verbalizers": [" x", " y"]})}
    )
    assert (
        f"prompt.verbalizers: there are 2 verbalizers for the 3 labels of {file} (x, y, z)"
        in refusal(recipe)
    )


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
    # This process hashes by chance, or as its environment says.
    other_hashes = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", code, recipe.model_dump_json()],
        env=os.environ | {"PYTHONHASHSEED": other_hashes},
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == here
    other = make(parts={"train": file}, max_train_samples=20, seed=4)
    assert data.split_ids(data.load(other)) != here


def test_a_single_file_is_read_whole_with_the_recipes_labels(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\na,x\nb,y\nc,y\n")
    file = write(tmp_path / "exam.csv", "text,label\nd,y\n")
    expected = [TextExample(id="exam-1", text="d", label=1)]
    assert data.load_file(whole(train), str(file)).parts["data"] == expected
    assert data.load_file(whole("gone.csv", labels=["x", "y"]), str(file)).parts["data"] == expected
    with pytest.raises(UserError, match="label is not one of"):
        data.load_file(whole(train, labels=["x", "z"]), str(file))


def test_a_number_is_not_an_index_if_names_are_numbers(tmp_path: Path) -> None:
    """Ratings from 1: a 0 in another file would otherwise be read as the first of them."""
    train = write(tmp_path / "train.csv", "text,label\na,1\nb,2\nc,3\n")
    file = write(tmp_path / "exam.csv", "text,label\nd,3\ne,0\n")
    with pytest.raises(UserError, match=r"1 row: label is not one of 1, 2, 3 \(first: line 3"):
        data.load_file(whole(train), str(file))


def test_a_path_that_is_a_file_is_the_train_part(tmp_path: Path) -> None:
    file = str(reviews(tmp_path, 20))
    short, long = make(path=file), make(parts={"train": file})
    assert data.load(short) == data.load(long)
    assert "keep one" in refusal(make(path=file, parts={"train": file}))


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


def test_a_single_file_needs_no_column_to_cut_by(tmp_path: Path) -> None:
    row = {"question": "Who?", "context": "Ada built it.", "answers": ["Ada"]}
    file = write(tmp_path / "rows.jsonl", json.dumps(row))
    (example,) = data.load_file(
        make("extractive_qa", path="a/b", group_by="title"), str(file)
    ).parts["data"]
    assert example.id == "rows-1"


# Rows from Python ------------------------------------------------------------------------------


def some(count: int) -> list[dict[str, str]]:
    return [{"text": f"text {n}", "label": "np"[n % 2]} for n in range(count)]


def test_given_train_rows_are_cut_like_those_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", some(100))
    recipe = load_recipe(RECIPE, given=["train"])
    assert data.load(recipe, {"train": some(100)}) == data.load(make(path=str(file)))


def test_given_rows_replace_the_part_that_the_recipe_names(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.json", some(20)))
    for recipe in (make(path=file), make(parts={"train": file, "test": "gone.csv"})):
        dataset = data.load(recipe, {"test": some(4), "official": some(2)})
        sizes = {part: len(examples) for part, examples in dataset.parts.items()}
        assert sizes == {"train": 18, "validation": 2, "test": 4, "official": 2}
        assert [example.id for example in dataset.parts["official"]] == ["official-1", "official-2"]
    for recipe in (make(path="gone.csv"), make(path="tiny", name="reviews", parts={"train": 9})):
        dataset = data.load(recipe, {"train": some(20)})
        assert [len(examples) for examples in dataset.parts.values()] == [14, 2, 4]


def test_a_recipe_records_what_was_given_and_asks_for_it_again(tmp_path: Path) -> None:
    """What a run folder holds can be read, and says what is missing if nothing is given."""
    marked = data.mark_given(make(path="a.csv"), ["train", "official"])
    file = write(tmp_path / "recipe.yaml", dump_recipe(marked))
    recipe = load_recipe(file)
    assert recipe == marked.model_copy(update={"name": "run"})
    assert recipe.dataset.parts.given() == {"train": GIVEN, "official": GIVEN}
    rows = {"train": some(20), "official": some(2)}
    assert data.load(recipe, rows) == data.load(make(path="a.csv"), rows)
    with pytest.raises(
        UserError, match=r"dataset\.parts\.train: its rows were given from Python: g"
    ):
        data.load(recipe)
    with pytest.raises(UserError, match=r"dataset\.parts\.official: its rows were given"):
        data.load(recipe, {"train": some(20)})
    with pytest.raises(UserError, match=r"no part exam: use train, validation, test, official"):
        data.load(recipe, {"exam": some(20)})


def test_rows_to_evaluate_may_be_given_in_place_of_a_file() -> None:
    recipe = make(path="gone.csv", labels=["n", "p"])
    assert data.load_file(recipe, some(2)).parts["data"] == [
        TextExample(id="rows-1", text="text 0", label=0),
        TextExample(id="rows-2", text="text 1", label=1),
    ]
    unnamed = make(path="gone.csv")
    assert data.known_labels(unnamed, {"train": some(9)}) == ("n", "p")
    (example,) = data.load_file(unnamed, some(1), "exam", {"train": some(9)}).parts["data"]
    assert (example.id, example.label) == ("exam-1", 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("run", ["classifier", "generative", "head", "span"])
def test_split_and_record_are_those_that_version_0_1_0_wrote(run: str) -> None:
    folder = RUNS_0_1_0 / run
    dataset = data.load(load_recipe(folder / "recipe.yaml"))
    assert data.split_text(dataset) == (folder / "split.json").read_text("utf-8")
    assert data.record_text(dataset) == (folder / "data.sha256").read_text("utf-8")


def test_what_changes_a_sum() -> None:
    one = TextExample(id="1", text="A good film", label=1)
    asked = [replace(one, id="2"), replace(one, label=0), replace(one, text=" a GOOD\n film")]
    assert {data.asked_sum(example) for example in asked} == {data.asked_sum(one)}
    assert data.asked_sum(replace(one, text="A good film!")) != data.asked_sum(one)
    sets = [data.Dataset(labels=("n", "p"), parts={"train": [each]}) for each in (one, *asked)]
    assert len(set(map(data.content_sum, sets))) == 4
    unused = data.Dataset(labels=("n", "p"), parts={"test": [one]})
    assert data.asked_sums(unused) == set()


def test_data_are_read_once_if_that_is_asked_for(tmp_path: Path) -> None:
    """Samples are drawn from what was read, and a file that changes meanwhile changes nothing."""
    file = tmp_path / "rows.jsonl"

    def write(words: str) -> None:
        rows = [{"text": f"{words} {n}", "label": "ab"[n % 2], "id": str(n)} for n in range(40)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(**keys: Any) -> list[str]:
        own = {"parts": {"train": str(file)}, **keys}
        train = data.load(make(**own)).parts["train"]
        return [one.text for one in train if isinstance(one, TextExample)]

    write("first")
    with data.read_once():
        whole = read()
        write("second")
        few = read(max_train_samples=6, sampling="nested")
        assert whole == read()
        assert len(few) == 6 and {*few} < {*whole}
        assert "second" in read(validation_size=0.2)[0], "what decides which rows are read"
        with data.read_once():
            assert "second" in read()[0]
        assert read() == whole
    assert "second" in read()[0]
