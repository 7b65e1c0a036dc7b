"""Any number of labels a row, and numbers: every usual form gives the same rows, and what cannot be read is refused."""

from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.data import TextExample
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.small import make_recipe

SETS = [["a", "b"], [], ["b"], ["c", "a"], ["c"]]
FORMS: dict[str, list[object]] = {
    "lists": [*SETS],
    "json": ['["a", "b"]', "[]", '["b"]', '["c", "a"]', '["c"]'],
    "python": ["['a', 'b']", "[]", "('b',)", "['c', 'a']", "['c']"],
    "separated": ["a, b", "", "b", "c,a", "c"],
}


def recipe_of(task: str = "classification", **dataset: Any) -> Recipe:
    own = {"path": None, "name": None, "test_size": 0.2, "validation_size": 0.0}
    prompt = {"verbalizers": ["0", "1"]} if task == "regression" else {}
    parts = {"train": "given", "test": None, "validation": None}
    return make_recipe(task, "tiny", dataset={**own, "parts": parts, **dataset}, prompt=prompt)


def read(recipe: Recipe, rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[object]]:
    dataset = data.load(recipe, {"train": rows, "test": rows[:1]} if rows else {})
    examples = [one for one in dataset.parts["train"] if isinstance(one, TextExample)]
    return dataset.labels, [one.label for one in examples]


def rows_of(labels: list[object]) -> list[dict[str, Any]]:
    return [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]


def refusal(recipe: Recipe, rows: list[dict[str, Any]]) -> str:
    with pytest.raises(UserError) as caught:
        read(recipe, rows)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_list(form: str) -> None:
    recipe = recipe_of(single_label=False)
    expected = ("a", "b", "c"), [(0, 1), (), (1,), (0, 2), (2,)]
    assert read(recipe, rows_of(FORMS[form])) == expected


@pytest.mark.parametrize(
    ("one", "zero"), [(1, 0), ("1", "0"), (1.0, 0.0), (True, False), ("TRUE", "false")]
)
def test_a_column_for_each_label(one: object, zero: object) -> None:
    rows = [
        {"text": f"t{n}"} | {label: one if label in its else zero for label in "abc"}
        for n, its in enumerate(SETS)
    ]
    recipe = recipe_of(single_label=False, columns={"label": ["c", "a", "b"]})
    assert read(recipe, rows) == (("c", "a", "b"), [(1, 2), (), (2,), (0, 1), (0,)])
    named = recipe_of(
        single_label=False, columns={"label": ["c", "a", "b"]}, labels=["C", "A", "B"]
    )
    assert read(named, rows)[0] == ("C", "A", "B")
    missing = [{key: cell for key, cell in row.items() if key != "a"} for row in rows]
    assert "no column named a, which dataset.columns.label lists as a label" in refusal(
        recipe, missing
    )
    rows[3]["b"] = 2
    assert "1 row: the label b is neither 0 nor 1 (first: row 4: 2)" in refusal(recipe, rows)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (None, "empty label"),
        ("a,,b", "empty label"),
        ("['a' 'b']", "label is not a list in JSON or Python"),
        ("[a, b]", "label is not a list in JSON or Python"),
        (["a", "z"], "label is not one of a, b, c"),
    ],
)
def test_what_is_no_set_of_labels(cell: object, why: str) -> None:
    recipe = recipe_of(single_label=False, labels=["a", "b", "c"])
    assert f"1 row: {why} (first: row 6" in refusal(recipe, rows_of([*SETS, cell]))


def test_names_of_a_hub_data_set_and_of_its_file(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"])),
        }
    )
    rows = datasets.Dataset.from_list(rows_of([[0, 2], [], [1]]), features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    recipe = recipe_of(single_label=False)
    own = data.load(recipe, {"train": rows, "test": rows})
    file = recipe_of(
        single_label=False,
        parts={"train": str(tmp_path / "a.parquet"), "test": str(tmp_path / "a.parquet")},
    )
    for dataset in (own, data.load(file)):
        assert dataset.labels == ("x", "y", "z")
        assert [one.label for one in dataset.parts["train"]] == [(0, 2), (), (1,)]  # type: ignore[union-attr]


def test_numbers() -> None:
    recipe = recipe_of("regression")
    cells: list[object] = [1, 2.5, "3.25", " -1e-3 ", ".5", "+4"]
    assert read(recipe, rows_of(cells)) == ((), [1.0, 2.5, 3.25, -0.001, 0.5, 4.0])
    for cell, why in (
        (None, "empty label"),
        ("", "empty label"),
        ("good", "label is not a number"),
        (True, "label is not a number"),
        ("nan", "label is not a number"),
        ("1e400", "label is not a number"),
    ):
        assert f"1 row: {why} (first: row 3" in refusal(recipe, rows_of([1.0, 2.0, cell]))


def test_numbers_with_a_decimal_comma() -> None:
    cells: list[object] = ["4,5", "3", 2.5, "-0,25", [1]]
    recipe = recipe_of("regression", decimal=",")
    assert read(recipe, rows_of(cells)) == ((), [4.5, 3.0, 2.5, -0.25, 1.0])
    assert "1 row: label is not a number: remove the thousands separators (first: row 3" in refusal(
        recipe, rows_of(["4,5", "1,0", "1.250,5"])
    )
    assert "set dataset.decimal: ','" in refusal(recipe_of("regression"), rows_of(["4,5", "1,0"]))


def test_thousands_are_not_fractions(caplog: pytest.LogCaptureFixture) -> None:
    refused = refusal(recipe_of("regression"), rows_of(["1,200", "900", "-23,450", "1,234,567.5"]))
    assert "3 rows: label is not a number: remove the thousands separators" in refused
    recipe = recipe_of("regression", decimal=",")
    with caplog.at_level("WARNING"):
        read(recipe, rows_of(["1,200", "0,125", "1,25", "3"]))
        assert not caplog.messages
        read(recipe, rows_of(["900", "3,250", "1,200"]))
    assert (
        "each comma in label stands before three digits, and 3,250 is read as 3.250"
        in (caplog.messages[0])
    )


@pytest.mark.parametrize(
    "cell", ["['a' 'b']", "[['a' 'b']]", "[1 2]", " [ 1.  2.5\n 3.]", "[True False]"]
)
@pytest.mark.parametrize("single", [True, False])
def test_a_list_as_numpy_writes_it_is_not_one_label(cell: str, single: bool) -> None:
    refused = refusal(recipe_of(single_label=single), rows_of(["['a']", "[1]", "b", cell]))
    assert "1 row: label " in refused and "(first: row 4" in refused


@pytest.mark.parametrize("single", [True, False])
def test_a_label_that_looks_like_a_list_is_that_label(single: bool) -> None:
    recipe = recipe_of(single_label=single, labels=["[1]", "[0]"])
    numbers: list[object] = [0, 1, 1] if single else [(0,), (1,), (1,)]
    assert read(recipe, rows_of(["[1]", "[0]", " [0]"])) == (("[1]", "[0]"), numbers)
    spaced = recipe_of(labels=["[1 2]", "(a)", "[spam] mail"])
    assert read(spaced, rows_of(["[1 2]", "(a)", "[spam] mail"]))[1] == [0, 1, 2]


@pytest.mark.parametrize("form", [["a"], ("a",), '["a"]', "['a']", {"choices": ["a"]}])
def test_a_list_of_one_is_a_label(form: object) -> None:
    """Annotation tools export a single choice so."""
    assert read(recipe_of(), rows_of([form, "b", form])) == (("a", "b"), [0, 1, 0])
    assert "set dataset.single_label: false" in refusal(
        recipe_of(), rows_of([form, "b", ["a", "b"]])
    )


def test_choices_of_label_studio_are_a_list() -> None:
    cells: list[object] = [{"choices": ["a", "c"]}, "b", '{"choices": ["c"]}', {"choices": []}]
    assert read(recipe_of(single_label=False), rows_of(cells)) == (
        ("a", "b", "c"),
        [(0, 2), (1,), (2,), ()],
    )


def test_nothing_to_learn() -> None:
    assert "have one label (a)" in refusal(
        recipe_of(single_label=False, labels=["a", "b"]), rows_of([["a"]] * 3)
    )
    assert "there is only one label (a)" in refusal(
        recipe_of(single_label=False), rows_of([["a"], []])
    )
    assert "have one label (2.5)" in refusal(recipe_of("regression"), rows_of([2.5] * 3))


@pytest.mark.parametrize("single", [True, False])
def test_weights_are_given_to_labels_that_are_there(single: bool) -> None:
    """Names are compared as labels are: 1 and 1.0 are the same."""
    key = "class_weights" if single else "pos_weight"
    rows = rows_of(["1", "2", "1", "2", "31"])

    def weighted(weights: dict[str, float]) -> Recipe:
        recipe = recipe_of(single_label=single)
        train = recipe.train.model_copy(update={key: weights})
        return recipe.model_copy(update={"train": train})

    assert read(weighted({"1.0": 2.0, "31": 5.0}), rows)[0] == ("1", "2", "31")
    assert f"train.{key}: 30 is not a label; did you mean 31?" in refusal(weighted({"30": 1}), rows)
    assert "1.0 is there twice" in refusal(weighted({"1": 1, "1.0": 2}), rows)


def test_numbers_that_are_far_apart_are_hard_to_learn(caplog: pytest.LogCaptureFixture) -> None:
    recipe = recipe_of("regression")
    with caplog.at_level("WARNING"):
        read(recipe, rows_of([float(n) for n in range(10)]))
        assert not caplog.messages
        read(recipe, rows_of([100.0 * n for n in range(10)]))
    (message,) = caplog.messages
    assert "a standard deviation of 287.2" in message and "for example by 100, so that" in message


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_hidden_labels_of_a_test_part(task: str, caplog: pytest.LogCaptureFixture) -> None:
    """GLUE's test parts have -1 in every row."""
    recipe, train = recipe_of(task), rows_of([n % 2 for n in range(20)])
    hidden = rows_of([-1] * 20)
    with pytest.raises(UserError, match="hidden test parts of ") as caught:
        data.load(recipe, {"train": train, "test": hidden})
    assert str(caught.value).count("GLUE") == 1
    known = recipe_of(task, labels=["0", "1"] if task == "classification" else None)
    with pytest.raises(UserError, match="GLUE"):
        data.load_file(known, hidden)
    with caplog.at_level("WARNING"):
        data.load(recipe, {"train": train, "test": rows_of([1] * 19)})
        assert not caplog.messages
        data.load(recipe, {"train": train, "test": rows_of([1] * 20)})
    (message,) = caplog.messages
    assert "all 20 rows have one label (1): hidden test parts of benchmarks look so" in message
