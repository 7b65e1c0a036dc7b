"""From a recipe to examples in parts: train, validation, test and, where there is one, official.

Parts that the recipe names are taken as they are; test and validation are cut from train only where
they are not named. Training and evaluation both come here, so they cannot disagree on a split.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from llama_peft.data import sources, splits
from llama_peft.data.examples import (
    Example,
    QuestionExample,
    TextExample,
    label_names,
    to_examples,
)
from llama_peft.data.sources import Table, is_file_name
from llama_peft.errors import UserError
from llama_peft.recipe import Data, Recipe

PARTS = ("train", "validation", "test", "official")
TRAINED_ON = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples by part, and the names of labels 0, 1, ... (none for questions)."""

    labels: tuple[str, ...]
    parts: dict[str, list[Example]]


def load(recipe: Recipe) -> Dataset:
    """Every part that the recipe asks for; raises UserError with all that is wrong."""
    places = _places(recipe)
    train = _read(recipe, "train", places["train"])
    labels = label_names(train, recipe)
    parts = {"train": list(to_examples(train, recipe, "train", labels))}
    for part in PARTS[1:]:
        if part in places:
            table = _read(recipe, part, places[part])
            parts[part] = list(to_examples(table, recipe, part, labels))
    _check_ids(parts)
    if "test" not in parts:
        _cut(parts, "test", recipe.dataset.test_size, recipe, labels)
    if "validation" not in parts:
        _cut(parts, "validation", recipe.dataset.validation_size, recipe, labels)
    parts = {part: _sample(parts[part], part, recipe) for part in PARTS if part in parts}
    if recipe.kind.has_labels:
        _check_labels(parts["train"], labels, train.source, recipe)
    return Dataset(labels=labels, parts=parts)


def load_file(recipe: Recipe, source: str, split: str | None = None) -> list[Example]:
    """All rows of a file, or of a split of a Hub data set, with the recipe's columns and labels.

    split: by default test, or in the recipe's own data set what it calls test. Nothing is cut here, so nothing is grouped.
    """
    own, is_own = recipe.dataset, source == recipe.dataset.path
    if is_file_name(source):
        table, part = sources.read_file(source, own), Path(source).stem
    else:
        part = str(split or (own.parts.test if is_own else None) or "test")
        table = _read_split(source, part, own, own.name if is_own else None)
    ungrouped = own.model_copy(update={"group_by": None})
    labels = known_labels(recipe)
    return list(to_examples(table, recipe.model_copy(update={"dataset": ungrouped}), part, labels))


def _read_split(source: str, split: str, data: Data, name: str | None) -> Table:
    try:
        return sources.read_hub(source, split, data, name)
    except UserError as error:  # what is measured whole has no dataset.parts
        raise UserError(str(error).replace("set dataset.parts", "name one with --split")) from None


def known_labels(recipe: Recipe) -> tuple[str, ...]:
    """The names of labels 0, 1, ...: the recipe's, or those of its train part; none for questions."""
    if not recipe.kind.has_labels:
        return ()
    if recipe.dataset.labels is not None:
        return tuple(recipe.dataset.labels)
    return label_names(_read(recipe, "train", _places(recipe)["train"]), recipe)


def split_ids(dataset: Dataset) -> dict[str, list[str]]:
    """The ids of each part, as a run folder's split.json holds them."""
    return {part: [example.id for example in rows] for part, rows in dataset.parts.items()}


SPLIT_SUM = "split_sha256"
"""Stands in training.json of a pushed run for its split.json, whose ids the data give again."""


def split_text(dataset: Dataset) -> str:
    """What split.json holds."""
    return json.dumps(split_ids(dataset), ensure_ascii=False)


def split_sum(dataset: Dataset) -> str:
    """The sha256 of what split.json holds."""
    return hashlib.sha256(split_text(dataset).encode()).hexdigest()


RECORD = "data.sha256"
"""A run's record of its data: the sum of every example, then of what each one asks that the run was trained on."""


def record_text(dataset: Dataset) -> str:
    """What a run's record holds."""
    return "\n".join([content_sum(dataset), *sorted(asked_sums(dataset)), ""])


def asked_sums(dataset: Dataset) -> set[str]:
    """Sums of what a training on these data learns from and is chosen by."""
    return {asked_sum(example) for part in TRAINED_ON for example in dataset.parts.get(part, ())}


def asked_sum(example: Example) -> str:
    """A short sum of what an example asks, whatever its id, its case and its spaces: the same text is the same sum."""
    plain = [_plain(text) for text in example.asked]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)  # many questions on one passage
def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def content_sum(dataset: Dataset) -> str:
    """A digest of every example: ids alone do not tell that a text or a label behind them has changed."""
    digest = hashlib.sha256()
    for part, examples in dataset.parts.items():
        for example in examples:
            digest.update(json.dumps([part, asdict(example)], ensure_ascii=True).encode())
    return digest.hexdigest()


def _places(recipe: Recipe) -> dict[str, str]:
    """Where each given part is; a `path` that is a file is parts.train in short."""
    data = recipe.dataset
    places = data.parts.given()
    if data.path is not None and is_file_name(data.path):
        if data.parts.train != "train":
            raise UserError(
                f"dataset.path {data.path} is a file, and so is dataset.parts.train: keep one"
            )
        places["train"] = data.path
    return places


def _read(recipe: Recipe, part: str, place: str) -> Table:
    data = recipe.dataset
    if data.path == "tiny":
        return sources.read_tiny(data.name or "", part, int(place), data.seed)
    if data.path is None or is_file_name(data.path):
        return sources.read_file(place, data)
    return sources.read_hub(data.path, place, data, data.name)


def _check_ids(parts: dict[str, list[Example]]) -> None:
    """An id names one example, whichever part it is in: predictions are matched by id."""
    seen: dict[str, str] = {}
    twice = []
    for part, examples in parts.items():
        for example in examples:
            other = seen.setdefault(example.id, part)
            if other != part:
                twice.append((example.id, other, part))
    if twice:
        first, one, other = twice[0]
        raise UserError(
            f"{len(twice)} ids stand in two parts (first: {first}, in {one} and {other}): "
            "make them unique, or set dataset.columns.id: null to number the rows"
        )


def _cut(
    parts: dict[str, list[Example]],
    part: str,
    share: float,
    recipe: Recipe,
    labels: Sequence[str],
) -> None:
    """Move a share of train into a new part."""
    if share == 0:
        return
    train = parts["train"]
    groups = _groups(train, recipe)
    names = [labels[example.label] for example in train if isinstance(example, TextExample)]
    cut = splits.cut(
        len(train),
        share,
        recipe.dataset.seed,
        labels=names if names and recipe.dataset.stratify else None,
        groups=groups,
        what=part,
    )
    parts["train"] = [train[row] for row in cut.kept]
    parts[part] = [train[row] for row in cut.taken]


def _groups(examples: Sequence[Example], recipe: Recipe) -> list[int] | None:
    """What must not be torn apart: questions on one passage, and rows equal in `group_by`."""
    contexts = [example.context for example in examples if isinstance(example, QuestionExample)]
    keys = [contexts] if contexts else []
    if recipe.dataset.group_by in ("title", "group"):
        keys.append([getattr(example, recipe.dataset.group_by) for example in examples])
    return splits.components(*keys) if keys else None


def _sample(examples: list[Example], part: str, recipe: Recipe) -> list[Example]:
    data = recipe.dataset
    size = data.max_train_samples if part == "train" else data.max_eval_samples
    return [examples[row] for row in splits.sample(len(examples), size, data.seed, part)]


def _check_labels(
    train: Sequence[Example], labels: Sequence[str], source: str, recipe: Recipe
) -> None:
    used = {example.label for example in train if isinstance(example, TextExample)}
    if len(used) < 2:
        raise UserError(
            f"{source}: all {len(train)} rows to train on have one label "
            f"({labels[used.pop()]}): there is nothing to learn"
        )
    verbalizers = recipe.prompt.verbalizers
    if verbalizers is not None and len(verbalizers) != len(labels):
        raise UserError(
            f"prompt.verbalizers: {len(verbalizers)} for the {len(labels)} labels of {source} "
            f"({', '.join(labels[:10])})"
        )
