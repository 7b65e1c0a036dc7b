"""Predictions of a finished run: one at a time or in batches, with shared prefixes or without, the same ones."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from llama_peft import data
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction, predict
from llama_peft.recipe import Recipe
from llama_peft.run_folder.weights import TunedModel
from llama_peft.training import fit as training
from tests.support import runs


def by_id(batches: Iterable[list[Prediction]]) -> dict[str, tuple[str, str]]:
    return {p.id: (p.prediction, p.raw) for p in chain.from_iterable(batches)}


Trained = Callable[..., TunedModel]


@pytest.fixture(scope="module")
def trained(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """Loads a run of a task, which is trained once; keyword arguments are keys of eval."""

    @cache
    def run(task: str) -> Path:
        keys = {"output_dir": str(tmp_path_factory.mktemp(task) / "run"), "max_steps": 1}
        few = {"max_new_tokens": 4}
        recipe = make_recipe(task, make_base(), lora={"r": 2}, train=keys, eval=few)
        return training.train(recipe)

    def load(task: str, **keys: Any) -> TunedModel:
        tuned = runs.load(run(task))
        changed = tuned.recipe.eval.model_copy(update=keys)
        return replace(tuned, recipe=tuned.recipe.model_copy(update={"eval": changed}))

    return load


@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_the_batch_changes_no_prediction(trained: Trained, task: str) -> None:
    """This is why a batch can be halved, and why one text gets what it gets in a test set."""
    tuned = trained(task)
    examples = data.load(tuned.recipe).parts["test"]
    many = by_id(predict(tuned, examples, 32))
    assert by_id(predict(tuned, examples, 1)) == many
    for example in examples[:4]:
        assert by_id(predict(tuned, [example])) == {example.id: many[example.id]}
    if task == "generative_qa":
        one_by_one = trained(task, decoding="plain")
        assert by_id(predict(one_by_one, examples, 32)) == many, "shared prefixes change nothing"


def test_what_is_computed_together_comes_together(trained: Trained) -> None:
    tuned = trained("classification")
    examples = data.load(tuned.recipe).parts["test"]
    batches = list(predict(tuned, examples, 6))
    assert [len(batch) for batch in batches] == [6, 6, 4]
    assert list(predict(tuned, [])) == []


def spoil(tuned: TunedModel, after: int, value: float, part: slice) -> None:
    """Let the model give `value` in a part of its scores, after a number of right forward passes."""
    passes = 0

    def change(module: object, inputs: object, output: Any) -> Any:
        nonlocal passes
        passes += 1
        for name in ("logits", "start_logits", "end_logits"):
            if passes > after and name in output:
                output[name] = output[name].clone()
                output[name][..., part] = value
        return output

    tuned.model.get_base_model().register_forward_hook(change)


@pytest.mark.parametrize("decoding", ["prefix_tree", "plain"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("task", ["classification", "extractive_qa", "generative_qa"])
def test_scores_that_are_no_numbers_give_no_prediction(
    trained: Trained, task: str, value: float, decoding: str
) -> None:
    """A model that overflows would answer with its first label, token or span."""
    tuned = trained(task, decoding=decoding)
    examples = data.load(tuned.recipe).parts["test"][:2]
    one, every = slice(0, 1), slice(None)
    lowest = value == -math.inf and task == "generative_qa"  # one token that is never written
    spoil(tuned, 0, value, every if lowest or task == "extractive_qa" else one)
    with pytest.raises(UserError, match=r"-test-\S+: the model's scores are not numbers"):
        list(predict(tuned, examples))


@pytest.mark.parametrize("decoding", ["prefix_tree", "plain"])
def test_an_overflow_in_the_middle_of_an_answer_is_noticed(trained: Trained, decoding: str) -> None:
    tuned = trained("generative_qa", decoding=decoding)
    spoil(tuned, 2, math.nan, slice(None))
    with pytest.raises(UserError, match=r"-test-\S+: the model's scores are not numbers"):
        list(predict(tuned, data.load(tuned.recipe).parts["test"][:1]))


def test_a_base_too_large_for_float16_is_named_in_one_line(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    base = make_base()
    recipe = make_recipe("classification", base, lora={"r": 2}, train=keys)
    recipe = recipe.changed(model={"dtype": "float16"})
    tuned = runs.load(training.train(recipe))
    for layer in tuned.model.get_base_model().model.layers:
        layer.mlp.down_proj.weight.data.fill_(6e4)
        layer.mlp.up_proj.weight.data.fill_(6e4)
    with pytest.raises(UserError, match=r"model\.dtype is too narrow"):
        list(predict(tuned, data.load(recipe).parts["test"]))
