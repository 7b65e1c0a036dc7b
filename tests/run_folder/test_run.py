"""What a run's own recipe says of its labels, long after the training."""

import re
from pathlib import Path

import pytest

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.layout import RECIPE
from llama_peft.run_folder.run import recipe_of
from tests.support.tables import make, to_parquet, write

ROWS = [{"text": f"t{n}", "label": ["spam", "ham"][n % 2]} for n in range(4)]
NUMBERS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


def on(file: Path, **dataset: object) -> Recipe:
    return make(parts={"train": str(file), "test": str(file)}, validation_size=0.0, **dataset)


def keep(run: Path, recipe: Recipe) -> Path:
    """Write the recipe of a run, as a training does."""
    run.mkdir(exist_ok=True)
    write(run / RECIPE, dump_recipe(data.settled(recipe, data.load(recipe))))
    return run


def read(run: Path, file: Path, *overrides: str) -> list[object]:
    dataset = data.load_file(recipe_of(run, overrides), str(file))
    return [dataset.labels[e.label] for e in dataset.parts["data"]]  # type: ignore[union-attr, index]


@pytest.mark.parametrize("form", [".json", ".parquet"])
def test_numbers_mean_only_labels_that_the_recipe_gave(tmp_path: Path, form: str) -> None:
    train = on(write(tmp_path / "train.json", ROWS))
    numbers = write(tmp_path / f"n{form}", NUMBERS if form == ".json" else to_parquet(NUMBERS))
    named = keep(tmp_path / "named", on(tmp_path / "train.json", labels=["spam", "ham"]))
    assert read(named, numbers) == ["spam", "ham"]
    found = keep(tmp_path / "found", train)
    with pytest.raises(UserError) as caught:
        read(found, numbers)
    assert (
        "2 rows: label is not one of ham, spam, and nothing says that 0 is ham, 1 is spam: if that "
        "is so, set dataset.label_positions: true (first: row 1: 0; row 2: 1)"
    ) in str(caught.value)
    assert read(found, numbers, "dataset.label_positions=true") == ["ham", "spam"]
    assert read(found, tmp_path / "train.json") == ["spam", "ham"] * 2


def test_a_run_that_does_not_say_where_its_labels_are_from(tmp_path: Path) -> None:
    """Recipes of version 0.1.0 name all labels, given or found."""
    old = keep(tmp_path / "old", on(write(tmp_path / "train.json", ROWS)))
    text = (old / RECIPE).read_text()
    write(old / RECIPE, re.sub("  label_positions: .*\n", "", text))
    numbers = write(tmp_path / "n.json", NUMBERS)
    with pytest.raises(UserError, match=r"if that is so, set dataset\.label_positions: true"):
        read(old, numbers)
    assert read(old, numbers, "dataset.label_positions=true") == ["ham", "spam"]


def test_classes_of_another_file_are_not_renamed_to_found_labels(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    datasets.Dataset.from_list(NUMBERS, features=features).to_parquet(tmp_path / "n.parquet")
    found = keep(tmp_path / "found", on(write(tmp_path / "train.json", ROWS)))
    with pytest.raises(
        UserError, match=r'2 rows: label is not one of ham, spam \(first: row 1: "no"'
    ):
        read(found, tmp_path / "n.parquet")
    named = keep(tmp_path / "named", on(tmp_path / "n.parquet"))
    assert read(named, write(tmp_path / "n.json", NUMBERS)) == ["no", "yes"]
