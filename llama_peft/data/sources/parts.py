"""Where each part of a recipe's data is, and its rows."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path

from llama_peft.data.formats import Table
from llama_peft.data.sources.files import read_files
from llama_peft.data.sources.hub import read_hub
from llama_peft.data.sources.places import is_file_name
from llama_peft.data.sources.python import Rows, read_rows
from llama_peft.data.sources.read import read_tiny
from llama_peft.errors import UserError
from llama_peft.recipe import GIVEN, Recipe

PARTS = ("train", "validation", "test", "official")


def places_of(recipe: Recipe, given: Mapping[str, Rows]) -> "dict[str, str | Rows]":
    """Return the rows or the place of each part. A `path` that is a file means parts.train."""
    data = recipe.dataset
    places: dict[str, str | Rows] = {**data.parts.given()}
    if data.path is not None and is_file_name(data.path) and places["train"] != GIVEN:
        if data.parts.train != "train" and "train" not in given:
            raise UserError(
                f"dataset.path {data.path} is a file, and so is dataset.parts.train: keep one"
            )
        places["train"] = data.path
    for part, rows in given.items():
        if part not in PARTS:
            raise UserError(f"given rows: there is no part {part}: use {', '.join(PARTS)}")
        if isinstance(rows, str | Path):
            raise UserError(f"given rows: {part} is a file: set dataset.parts.{part}={rows}")
        places[part] = rows
    return places


def read_part(recipe: Recipe, part: str, place: "str | Rows") -> Table:
    data = recipe.dataset
    if not isinstance(place, str):
        return read_rows(place, data, f"the given {part} part")
    if place == GIVEN:
        raise UserError(
            f"dataset.parts.{part}: its rows were given from Python: give them again, "
            f"or name a file: dataset.parts.{part}=FILE"
        )
    if data.path == "tiny":
        return read_tiny(data.name or "", part, int(place), data.seed)
    if data.path is None or is_file_name(data.path):
        if data.streaming:
            raise UserError(
                f"dataset.streaming: {place} is not a data set on the Hub: remove this key"
            )
        return read_files(place, data)
    return read_hub(data.path, place, data, data.name, limit=_limit(recipe, part))


def _limit(recipe: Recipe, part: str) -> int | None:
    """Return how many rows of a part are fetched; None means all.

    They are as many as the recipe asks for, and those that are cut from train before its sample.
    """
    data = recipe.dataset
    if not data.streaming:
        return None
    if part != "train":
        return data.max_eval_samples
    wanted = data.max_train_samples
    for cut, size in (("validation", data.validation_size), ("test", data.test_size)):
        if wanted is not None and getattr(data.parts, cut) is None and size:
            wanted = ceil((wanted + 1) / (1 - size))
    return wanted
