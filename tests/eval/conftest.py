"""Runs that several tests evaluate. A test that changes one puts it back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_peft.recipe import Recipe
from llama_peft.training import fit as training


@pytest.fixture(scope="session")
def span_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("span") / "run"
    keys = {"output_dir": str(folder), "max_steps": 1, "max_length": 300}
    recipe = make_recipe("extractive_qa", make_base(), lora={"r": 4}, train=keys)
    return recipe, training.train(recipe)


@pytest.fixture(scope="session")
def class_run(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("class") / "run"
    recipe = make_recipe(
        "classification", make_base(), bits=4, train={"output_dir": str(folder), "max_steps": 1}
    )
    return recipe, training.train(recipe)
