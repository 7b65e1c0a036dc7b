"""What a loss curve says about a training that learned too little, and what to try."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.ladder.causes import cause_of
from llama_peft.recipe import dump_recipe
from tests.support.small import make_recipe

EVEN = {"1": "good", "2": "bad"}


def run_with(
    folder: Path, losses: Sequence[float], validation: Sequence[float] = (), **train: Any
) -> Path:
    """A run folder with a recipe and a loss curve; a validation follows each fifth of the steps."""
    recipe = make_recipe("classification", "tiny", lora={"r": 2}, train={"max_steps": -1, **train})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    lines = [
        {"loss": loss, "step": 10 * n, "epoch": n / 10} for n, loss in enumerate(losses, start=1)
    ]
    lines += [
        {"eval_loss": loss, "step": 10 * n, "epoch": float(n)}
        for n, loss in enumerate(validation, start=1)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def cause(run: Path, labels: dict[str, str] = EVEN) -> tuple[str, str] | None:
    system: Any = SimpleNamespace(gold_labels=labels)
    return cause_of(run, system)


def test_a_loss_that_has_reached_zero_is_no_cause(tmp_path: Path) -> None:
    assert cause(run_with(tmp_path, [1.0 / 10**n for n in range(15)])) is None


@pytest.mark.parametrize(
    ("losses", "validation", "train", "override"),
    [
        ([1.0 - 0.05 * n for n in range(15)], [], {"num_train_epochs": 3.0}, "num_train_epochs=6"),
        ([1.0 - 0.05 * n for n in range(15)], [], {"max_steps": 150}, "max_steps=300"),
        ([1.0, 0.9], [], {"num_train_epochs": 1.0}, "num_train_epochs=4"),  # hardly any step
        ([0.1] * 15, [0.5, 0.4, 0.6], {"num_train_epochs": 3.0}, "num_train_epochs=2"),
    ],
)
def test_the_curve_names_the_override_to_try(
    tmp_path: Path,
    losses: list[float],
    validation: list[float],
    train: dict[str, Any],
    override: str,
) -> None:
    found = cause(run_with(tmp_path, losses, validation, **train))
    assert found is not None
    assert found[1] == f"train.{override}"


def test_one_epoch_is_one(tmp_path: Path) -> None:
    found = cause(run_with(tmp_path, [0.1] * 15, [0.4, 0.6], num_train_epochs=2.0))
    assert found == (
        "the loss on validation rose again after 1 epoch",
        "train.num_train_epochs=1",
    )


def test_a_curve_that_has_come_to_rest_names_nothing(tmp_path: Path) -> None:
    assert cause(run_with(tmp_path, [0.1] * 15, [0.3, 0.3])) is None


def test_very_uneven_labels_are_named_unless_the_loss_weighs_them(tmp_path: Path) -> None:
    uneven = {str(n): "good" if n % 10 else "bad" for n in range(40)}
    found = cause(run_with(tmp_path, [0.1] * 15), uneven)
    assert found is not None
    assert found[1] == "train.class_weights=balanced"
    assert cause(run_with(tmp_path, [0.1] * 15, class_weights="balanced"), uneven) is None
