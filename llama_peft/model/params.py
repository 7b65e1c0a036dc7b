"""What `llama-peft params` reports: the counts of a recipe or a model, without torch."""

from collections.abc import Callable
from typing import get_args

from llama_peft.errors import UserError
from llama_peft.model import counts
from llama_peft.model.counts import TextConfig
from llama_peft.model.hub import read_config
from llama_peft.recipe import Recipe, is_recipe_name, load_recipe
from llama_peft.tasks import TASKS, NamedTask

Report = dict[str, int | str]


def report(
    recipe_or_model: str,
    overrides: list[str],
    labels_of: Callable[[Recipe], int | None] = lambda recipe: len(recipe.dataset.labels or ()),
) -> Report:
    """Return numbers of parameters by name.

    labels_of: returns the number of labels of a recipe; None or 0 if it is not known.

    These are the base, the base with each head, and what 4-bit loading packs; for a recipe also its
    adapter and what it trains.
    """
    if not is_recipe_name(recipe_or_model):
        if overrides:
            raise UserError(
                f"{recipe_or_model} is a model and has no keys: give overrides with a recipe"
            )
        return _of_model(recipe_or_model, _shapes(recipe_or_model))
    recipe = load_recipe(recipe_or_model, overrides)
    name = recipe.model.model_name_or_path
    c = _shapes(name, recipe.model.revision)
    return {**_of_model(name, c), **_of_recipe(recipe, c, labels_of(recipe))}


def _shapes(name: str, revision: str = "main") -> TextConfig:
    config = read_config(name, revision)
    try:
        return counts.text_config(config)
    except counts.UncountedFamily as error:
        known = ", ".join(counts.FAMILIES)
        raise UserError(f"{name}: {error}: use a model of one of the types {known}") from None
    except counts.BadConfig as error:
        raise UserError(f"{name}: {error}") from None


def _of_model(name: str, c: TextConfig) -> Report:
    base = counts.count_text(c)
    heads = [name for name in get_args(NamedTask) if TASKS[name].head]
    return {
        "model": name,
        "base": base.base,
        **{task: counts.count_text(c, task).total for task in heads},
        "quantized_in_4bit": base.quantized,
    }


def _of_recipe(recipe: Recipe, c: TextConfig, named: int | None) -> Report:
    try:
        loaded = counts.cut(c, recipe.head.layer)
    except counts.BadConfig as error:
        raise UserError(f"{recipe.model.model_name_or_path}: {error}") from None
    counted = counts.count_text(loaded, recipe.kind.name, named or 2, recipe.lora)
    labels: Report = {
        "labels": named or "2, assumed: dataset.labels names none, and the data are not here"
    }
    return {
        "task": recipe.task,
        **(labels if recipe.kind.names_labels else {}),
        "head": counted.head,
        "adapter": counted.adapter,
        "trainable": counted.trainable,
        "total": counted.total,
    }
