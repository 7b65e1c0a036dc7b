"""Predictions of a finished run: one at a time or in batches, with shared prefixes or without, the same ones."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from llama_peft import data
from llama_peft.inference.predict import Prediction, predict
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from tests.support import runs


def by_id(batches: Iterable[list[Prediction]]) -> dict[str, tuple[str, str]]:
    return {p.id: (p.prediction, p.raw) for p in chain.from_iterable(batches)}


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_the_batch_changes_no_prediction(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], task: str, tmp_path: Path
) -> None:
    """This is why a batch can be halved, and why one text gets what it gets in a test set."""
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe = make_recipe(task, make_base(), lora={"r": 2}, train=keys, eval={"max_new_tokens": 4})
    tuned = runs.load(training.train(recipe))
    examples = data.load(recipe).parts["test"]
    many = by_id(predict(tuned, examples, 32))
    assert by_id(predict(tuned, examples, 1)) == many
    for example in examples[:4]:
        assert by_id(predict(tuned, [example])) == {example.id: many[example.id]}
    if task == "generative_qa":
        plain = recipe.eval.model_copy(update={"decoding": "plain"})
        one_by_one = replace(tuned, recipe=recipe.model_copy(update={"eval": plain}))
        assert by_id(predict(one_by_one, examples, 32)) == many, "shared prefixes change nothing"


def test_what_is_computed_together_comes_together(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe = make_recipe("classification", make_base(), train=keys)
    tuned = runs.load(training.train(recipe))
    examples = data.load(recipe).parts["test"]
    batches = list(predict(tuned, examples, 6))
    assert [len(batch) for batch in batches] == [6, 6, 4]
    assert list(predict(tuned, [])) == []
