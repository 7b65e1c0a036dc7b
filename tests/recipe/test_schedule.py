"""auto becomes a learning rate and a number of epochs that fit the base and the rows, once for each run."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, schedule
from llama_peft.training import fit as training
from tests.support import runs

AUTO = {"learning_rate": "auto", "num_train_epochs": "auto", "max_steps": -1}


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return make_recipe("classification", "tiny", lora={"r": 4}, train=AUTO)


def test_small_bases_learn_faster_and_few_rows_longer(recipe: Recipe) -> None:
    sizes = [None, 10**10, 10**9, 135_000_000, 30_000_000, 8_000_000]
    rates = [schedule.choose(recipe, 100, size)["learning_rate"] for size in sizes]
    assert rates[:3] == [2e-4] * 3 and all(small < large for small, large in pairwise(rates[2:]))
    counts = [10, 600, 2_000, 5_000, 16_000, 10**6]
    epochs = [schedule.choose(recipe, rows, None)["num_train_epochs"] for rows in counts]
    assert epochs == sorted(epochs, reverse=True) and (epochs[0], epochs[-1]) == (8, 3)
    for rows, its in zip(counts, epochs, strict=True):
        assert its == 8 or its * rows / 16 >= schedule.STEPS


def test_what_is_written_stays_as_it_is(recipe: Recipe) -> None:
    written = recipe.with_train({"learning_rate": 0.5, "num_train_epochs": 2.0})
    assert schedule.choose(written, 10, None) == {}


def test_a_run_keeps_what_was_chosen(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train = {**AUTO, "output_dir": str(folder), "per_device_train_batch_size": 24}
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=train)
    training.train(recipe)
    record, kept = runs.record_of(folder), yaml.safe_load((folder / "recipe.yaml").read_text())
    assert record.steps <= 8 and record.chosen["num_train_epochs"] == 8
    assert {key: kept["train"][key] for key in record.chosen} == record.chosen
    assert record.chosen["early_stopping_patience"] == schedule.PATIENCE
    before = (folder / "training.json").read_bytes()
    training.train(recipe)
    assert (folder / "training.json").read_bytes() == before, "it is finished"


@pytest.mark.parametrize("epochs", ["auto", 8.0])
def test_epochs_that_are_auto_end_when_nothing_is_gained(
    epochs: str | float,
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    """Epochs that a user wrote are all made."""
    file = tmp_path / "easy.csv"
    file.write_text("text,label\n" + "good good,yes\nbad bad,no\n" * 32)
    recipe = make_recipe(
        "classification",
        make_base(),
        lora={"r": 4},
        dataset={"path": str(file), "name": None, "parts": {}},
        train={**AUTO, "num_train_epochs": epochs, "output_dir": str(tmp_path / "run"),
               "learning_rate": 1e-2, "per_device_train_batch_size": 4},
    )  # fmt: skip
    record = runs.record_of(training.train(recipe))
    assert record.best_validation_loss is not None and record.best_validation_loss < 0.05
    assert record.epochs is not None
    assert record.epochs < 8 if epochs == "auto" else record.epochs == 8


def test_a_threshold_that_is_written_stays(recipe: Recipe) -> None:
    found = schedule.choose(recipe.with_train({"early_stopping_threshold": 0.05}), 600, None)
    assert found["early_stopping_threshold"] == 0.05


@pytest.mark.parametrize("keys", [{"max_steps": 4}, {"max_steps": 4, "eval_steps": 2}])
def test_a_run_that_chose_no_early_end_continues(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    keys: dict[str, int],
) -> None:
    folder = tmp_path / "run"
    recipe = make_recipe(
        "classification",
        make_base(),
        lora={"r": 4},
        train=AUTO | keys | {"output_dir": str(folder), "per_device_train_batch_size": 8},
    )
    training.train(recipe)
    runs.cut_off(folder)
    record = runs.record_of(training.train(recipe))
    assert record.resumed_at and "early_stopping_patience" not in record.chosen


def test_early_stopping_that_is_written_later_makes_another_run(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """As any other key: it does not silently stay at what was chosen before."""
    train = {**AUTO, "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 24}
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=train)
    training.train(recipe)
    with pytest.raises(UserError, match="early_stopping_patience"):
        training.train(recipe.with_train({"early_stopping_patience": 5}))


def test_only_an_end_of_each_epoch_can_be_the_last(recipe: Recipe) -> None:
    def stops(recipe: Recipe, validates: bool = True) -> bool:
        return "early_stopping_patience" in schedule.choose(recipe, 600, None, validates=validates)

    assert stops(recipe)
    assert not stops(recipe, validates=False)
    for train in ({"eval_steps": 10}, {"max_steps": 10}, {"early_stopping_patience": 5}):
        assert not stops(recipe.with_train(train))
