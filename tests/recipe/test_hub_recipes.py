"""The recipes on data sets of the Hub walk end to end on folders of the same form, with rows made up here."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value

from eval import harness
from eval.job import make_job
from llama_peft.recipe import load_recipe
from llama_peft.run_folder.run import open_run
from llama_peft.training.fit import train
from tests.support.eval.jobs import lines_of

TEXT, INDEX = Value("string"), Value("int32")
INFERENCE = ClassLabel(names=["entailment", "neutral", "contradiction"])
EMOTIONS = ClassLabel(names=["admiration", "anger", "joy", "neutral"])
INTENTS = ClassLabel(names=["activate_my_card", "age_limit", "reverted_card_payment?"])
"""Columns as the data sets have them; of the names of emotions and intents, only a few."""
FORMS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "mnli": (
        {"premise": TEXT, "hypothesis": TEXT, "label": INFERENCE, "idx": INDEX},
        ["train", "validation_matched", "validation_mismatched"],
    ),
    "boolq": (
        {"question": TEXT, "answer": Value("bool"), "passage": TEXT},
        ["train", "validation"],
    ),
    "go-emotions": (
        {"text": TEXT, "labels": List(EMOTIONS), "id": TEXT},
        ["train", "validation", "test"],
    ),
    "stsb": (
        {"sentence1": TEXT, "sentence2": TEXT, "label": Value("float32"), "idx": INDEX},
        ["train", "validation"],
    ),
    "banking77": ({"text": TEXT, "label": INTENTS}, ["train", "test"]),
}
UNLABELLED = {"mnli": ["test_matched", "test_mismatched"], "stsb": ["test"]}
"""Splits whose labels are -1, which is a number too: no recipe may read them."""
ROWS = {"train": 30}
"""Rows of a split; all others have 6."""


def cell(name: str, feature: Any, row: int) -> object:
    """A made-up cell of a column."""
    if isinstance(feature, ClassLabel):
        return row % feature.num_classes
    if isinstance(feature, List):
        return [[0], [1, 2], [], [3], [0, 2]][row % 5]
    if feature.dtype == "string":
        return "t1_x" if name == "id" else f"The {name} of row {row} is about a boat on a lake"
    if feature.dtype == "bool":
        return row % 3 > 0
    return row if name == "idx" else row % 11 / 2


def hub_folder(folder: Path, recipe: str, config: str | None) -> Path:
    """Save a data set as its repository on the Hub is: Parquet files, and the card that lists them."""
    columns, splits = FORMS[recipe]
    for split in [*splits, *UNLABELLED.get(recipe, [])]:
        rows = [
            {name: cell(name, feature, row) for name, feature in columns.items()}
            for row in range(ROWS.get(split, 6))
        ]
        if split in UNLABELLED.get(recipe, []):
            rows = [row | {"label": -1} for row in rows]
        (folder / "data").mkdir(exist_ok=True)
        made = Dataset.from_list(rows, features=Features(columns))
        made.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    files = [
        {"split": split, "path": f"data/{split}-*"}
        for split in [*splits, *UNLABELLED.get(recipe, [])]
    ]
    # If there are several configurations, a recipe must name its own.
    configs = [config, "another"] if config else ["default"]
    card = {"configs": [{"config_name": each, "data_files": files} for each in configs]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_recipes_walk_end_to_end_in_4bit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Train, then evaluate zero-shot and tuned: the recipe as it is but for base, place and steps."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    data = hub_folder(tmp_path / "hub", name, load_recipe(name).dataset.name)
    run = tmp_path / "run"
    overrides = [
        f"model.model_name_or_path={base}",
        f"dataset.path={data}",
        "dataset.validation_size=0.2",
        "train.max_steps=1",
        "train.eval_steps=1",
        "train.use_cpu=true",
        f"train.output_dir={run}",
    ]
    recipe = load_recipe(name, overrides)
    assert recipe.quantization.load_in_4bit
    assert not {*recipe.dataset.parts.given().values()} & {*UNLABELLED.get(name, [])}
    train(recipe)
    zero = harness.run(make_job(name, output=tmp_path / "zero", overrides=overrides))
    tuned = harness.run(make_job(model=str(run), output=tmp_path / "tuned"))
    assert zero.results.keys() == tuned.results.keys()
    measured = [part for part in recipe.eval.splits if part != "validation"]
    assert len(zero.results) == len(measured)
    assert len(lines_of(tmp_path / "tuned")) == 6 * len(measured)
    labels = open_run(run).labels
    feature = FORMS[name][0].get("label") or FORMS[name][0].get("labels")
    names = getattr(getattr(feature, "feature", feature), "names", None)
    assert list(labels) == (names or {"boolq": ["false", "true"], "stsb": []}[name])
