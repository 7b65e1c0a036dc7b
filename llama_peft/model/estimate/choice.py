"""What `auto` becomes: the largest batch that fits, without checkpointing if any batch does."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from llama_peft.recipe import Recipe

MARGIN = 0.1
"""Of the free memory that is left over: what no formula sees, such as gaps between tensors."""


class Choice(NamedTuple):
    """A recipe without `auto`, and what was set."""

    recipe: Recipe
    set: dict[str, int | bool]
    """By key of `train`; empty if nothing was auto."""


def choose(recipe: Recipe, needed: Callable[[Recipe], int], free: int) -> Choice:
    """Return the recipe with the first choice that fits into `free` bytes, or with the smallest one.

    Checkpointing takes longer than small batches, so it comes after all of these.
    needed: the bytes that a recipe without auto takes.
    """
    offered = list(_offers(recipe))
    fits = (one for one in offered if needed(one.recipe) <= (1 - MARGIN) * free)
    return offered[0] if len(offered) == 1 else next(fits, offered[-1])


def _offers(recipe: Recipe) -> Iterator[Choice]:
    """Yield every choice, the fastest first. Each has as many rows in an optimizer step."""
    train, rows = recipe.train, recipe.train.gradient_accumulation_steps
    again: list[bool] = [False, True]
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    if train.activation_checkpointing != "auto":
        again = [train.activation_checkpointing]
    elif recipe.lora is None:
        again = [False]
    for checkpointed, size in product(again, sizes if _is_auto(recipe) else [0]):
        found: dict[str, int | bool] = {}
        if train.activation_checkpointing == "auto":
            found["activation_checkpointing"] = checkpointed
        if size:
            found["per_device_train_batch_size"] = size
            found["gradient_accumulation_steps"] = rows // size
        yield Choice(recipe.with_train(found), found)


def _is_auto(recipe: Recipe) -> bool:
    return recipe.train.per_device_train_batch_size == "auto"
