"""From a recipe to examples in parts: train, validation, test and, if there is one, official.

Parts that the recipe names or that are given from Python are taken as they are. Test and validation
are cut from train if they are missing. Training and evaluation both use this file, so they always
have the same split.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from llama_peft.data import splits
from llama_peft.data.examples import (
    Example,
    FieldsExample,
    Inputs,
    QuestionExample,
    TextExample,
    to_examples,
    to_inputs,
    without_bad_rows,
)
from llama_peft.data.formats import Table
from llama_peft.data.labels import (
    Label,
    check_decimals,
    check_hidden,
    check_labels,
    check_scale,
    check_weights,
    has_names,
    label_names,
    means_positions,
)
from llama_peft.data.sources.files import read_lines, read_stdin
from llama_peft.data.sources.parts import PARTS, places_of, read_part
from llama_peft.data.sources.python import Rows
from llama_peft.data.sources.read import read_any
from llama_peft.errors import UserError
from llama_peft.recipe import GIVEN, Recipe
from llama_peft.system.sequences.views import Chosen

LINES = ".txt"
"""The end of the names of files with one text a line."""
log = logging.getLogger(__name__)

TRAINED_ON = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples by part, and the names of labels 0, 1, ..., of which questions have none."""

    labels: tuple[str, ...]
    parts: dict[str, Sequence[Example]]
    label_positions: bool = False
    """Whether the recipe or the source gives the names of the labels, so that the numbers 0, 1, ...
    in data mean them by their order. False if the names were found in the cells.
    """
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    """By part as it was read: how many rows were dropped, by what was wrong with them."""
    sources: dict[str, str] = field(default_factory=dict, compare=False)
    """Where each part was read from, for messages."""


Read = dict[str, tuple[Dataset, Mapping[str, Rows]]]
"""What was read, by all that decides it, with the rows that were given."""
_read: ContextVar[Read | None] = ContextVar("read", default=None)
"""What was read since `read_once` began."""


@contextmanager
def read_once() -> Iterator[None]:
    """Read the same data only once until the end, also if a file changes meanwhile.

    So the rungs of a ladder are measured on the same rows, and none waits for a million of them again.
    """
    before = _read.set({})
    try:
        yield
    finally:
        _read.reset(before)


def load(recipe: Recipe, given: Mapping[str, Rows] | None = None) -> Dataset:
    """Return the examples of every part. Raises UserError with everything that is wrong.

    given: rows from Python by part. They replace what the recipe says about that part.
    """
    known, given = _read.get(), given or {}
    if known is None:
        return _sampled(_whole(recipe, given), recipe)
    key = _what_decides(recipe, given)
    if key not in known:
        known[key] = whole = _whole(recipe, given), given
        # An evaluation of a run names its labels and fields.
        known[_what_decides(settled(recipe, whole[0]), given)] = whole
    return _sampled(known[key][0], recipe)


def _sampled(found: Dataset, recipe: Recipe) -> Dataset:
    """Return the samples of all examples that a recipe asks for. Raises UserError if they teach nothing."""
    parts = {part: _sample(its, part, recipe) for part, its in found.parts.items()}
    if recipe.kind.has_labels:
        labels, sources = found.labels, found.sources
        check_labels(_labels(parts["train"]), labels, sources["train"], recipe)
        check_scale(_labels(parts["train"]), sources["train"])
        for part in PARTS[1:]:
            check_hidden(_labels(parts.get(part, [])), labels, sources[part], recipe)
    return replace(found, parts=parts)


def _what_decides(recipe: Recipe, given: Mapping[str, Rows]) -> str:
    """Return all that the examples depend on, before a sample of them is drawn."""
    samples = {"max_train_samples", "max_eval_samples", "sampling"}
    if recipe.dataset.streaming:  # then only as many rows are fetched
        samples = set()
    weights = recipe.train.class_weights, recipe.train.pos_weight
    read = [recipe.dataset.model_dump(exclude=samples), recipe.prompt.model_dump(), weights]
    return repr((recipe.kind.name, *read, {part: id(rows) for part, rows in given.items()}))


def _whole(recipe: Recipe, given: Mapping[str, Rows]) -> Dataset:
    """Return the examples of every part, all of them."""
    places = places_of(recipe, given)
    train = read_part(recipe, "train", places["train"])
    recipe, train, labels = _labelled(recipe, train)
    check_weights(recipe, labels)
    check_decimals(train, recipe)
    tables = {"train": train}
    for part in PARTS[1:]:
        if part in places:
            table = read_part(recipe, part, places[part])
            tables[part] = without_bad_rows(table, recipe, part, labels)
    parts: dict[str, Sequence[Example]] = {
        part: to_examples(table, recipe, part, labels) for part, table in tables.items()
    }
    _check_ids(parts)
    _check_fields(parts)
    if "test" not in parts:
        _cut(parts, "test", recipe.dataset.test_size, recipe, labels)
    if "validation" not in parts:
        _cut(parts, "validation", recipe.dataset.validation_size, recipe, labels)
    return Dataset(
        labels=labels,
        parts={part: parts[part] for part in PARTS if part in parts},
        label_positions=means_positions(recipe),
        dropped=_dropped(tables),
        sources={part: tables.get(part, train).source for part in PARTS},
    )


def _dropped(tables: Mapping[str, Table]) -> dict[str, dict[str, int]]:
    return {
        part: {kind: len(places) for kind, places in table.dropped.items()}
        for part, table in tables.items()
        if table.dropped
    }


def mark_given(recipe: Recipe, parts: Iterable[str]) -> Recipe:
    """Return the recipe that records which parts were given from Python, for its run folder."""
    marked = recipe.dataset.parts.model_copy(update=dict.fromkeys(parts, GIVEN))
    dataset = recipe.dataset.model_copy(update={"parts": marked})
    return recipe.model_copy(update={"dataset": dataset})


def settled(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe with what its data settle, for its run folder: the labels, whether numbers mean
    them by their order, and the fields of texts that have several.
    """
    if dataset.labels:
        known = {"labels": list(dataset.labels), "label_positions": dataset.label_positions}
        recipe = recipe.changed(dataset=known)
    return with_fields(recipe, dataset)


def with_fields(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe whose prompt names the fields of its texts, if they have several."""
    fields = _fields(chain.from_iterable(dataset.parts.values()))
    if not fields:
        return recipe
    prompt = recipe.prompt.of_fields(fields, recipe.kind.side == "label_sets")
    return recipe.model_copy(update={"prompt": prompt})


def _fields(examples: Iterable[Example]) -> list[str]:
    """Return the names of the columns that make up a text, if there are several."""
    first = next(iter(examples), None)
    return list(first.values) if isinstance(first, FieldsExample) else []


def load_file(
    recipe: Recipe,
    source: "str | Path | Rows",
    split: str | None = None,
    given: Mapping[str, Rows] | None = None,
) -> Dataset:
    """Return all rows of one source as the part `data`, read with the recipe's columns and labels.

    Nothing is cut.

    source: a file, the name of a Hub data set, or rows from Python.
    split: the split of a Hub data set. The default is test, or the recipe's test part if the data
        set is its own.
    given: rows from Python that the recipe was trained on, as in `load`.
    """
    table, part = read_any(source, recipe.dataset, split)
    recipe, labels = _known(recipe, given or {})
    recipe = _ungrouped(recipe)
    table = without_bad_rows(table, recipe, part, labels)
    examples = to_examples(table, recipe, part, labels)
    if recipe.kind.has_labels:
        check_hidden(_labels(examples), labels, table.source, recipe)
    return Dataset(labels=labels, parts={"data": examples}, dropped=_dropped({"data": table}))


def load_inputs(recipe: Recipe, source: str, split: str | None = None) -> Inputs:
    """Return all rows of one source as what a model reads. Labels and answers may be missing.

    Every row gets a reply, so none is dropped.

    source: a table, a file of lines, "-" for a table on standard input, or the name of a Hub data set.
    split: as in `load_file`.
    """
    strict = recipe.dataset.model_copy(update={"on_bad_rows": "refuse"})
    recipe = recipe.model_copy(update={"dataset": strict})
    if source == "-":
        table, part = read_stdin(recipe.dataset), "stdin"
    elif source.endswith(LINES):
        table, part = _lines(recipe, source), Path(source).stem
    else:
        table, part = read_any(source, recipe.dataset, split)
    inputs = to_inputs(table, _ungrouped(recipe), part)
    if (fields := _fields(inputs.examples)) and not recipe.prompt.fields:
        raise UserError(
            f"{table.source}: this run reads one text, but the data have {', '.join(fields)} of "
            "dataset.columns.text: keep one of them"
        )
    return inputs


def _lines(recipe: Recipe, source: str) -> Table:
    """Return the rows of a file with one text a line."""
    if recipe.prompt.fields or (not recipe.kind.has_labels and recipe.dataset.columns.context):
        needed = ", ".join(recipe.prompt.fields) or "question and passage"
        raise UserError(
            f"{source}: a line is one text, and this run reads {needed}: name a file with these columns"
        )
    key = "text" if recipe.kind.has_labels else "question"
    return read_lines(source, recipe.dataset, recipe.dataset.columns.names(key)[0])


def _ungrouped(recipe: Recipe) -> Recipe:
    """Return a recipe that needs no groups, because nothing is cut."""
    ungrouped = recipe.dataset.model_copy(update={"group_by": None})
    return recipe.model_copy(update={"dataset": ungrouped})


def known_labels(recipe: Recipe, given: Mapping[str, Rows] | None = None) -> tuple[str, ...]:
    """Return the names of labels 0, 1, ...: the recipe's, or those of its train part.

    Questions have none. given: as in `load`.
    """
    return _known(recipe, given or {})[1]


def _known(recipe: Recipe, given: Mapping[str, Rows]) -> tuple[Recipe, tuple[str, ...]]:
    if not recipe.kind.names_labels or recipe.dataset.labels is not None:
        return recipe, tuple(recipe.dataset.labels or ())
    train = read_part(recipe, "train", places_of(recipe, given)["train"])
    recipe, _, labels = _labelled(recipe, train)
    return recipe, labels


def _labelled(recipe: Recipe, train: Table) -> tuple[Recipe, Table, tuple[str, ...]]:
    """Return the names of labels 0, 1, ..., and a recipe that gives them if the source does.

    The table is returned without rows that are dropped, whose labels do not count.

    Whole numbers in other files are then positions among these names, and are not names themselves.
    """
    labels = label_names(train, recipe)
    if labels and has_names(train, recipe):
        named = recipe.dataset.model_copy(update={"labels": list(labels)})
        recipe = recipe.model_copy(update={"dataset": named})
    kept = without_bad_rows(train, recipe, "train", labels)
    return recipe, kept, labels if kept is train else label_names(kept, recipe)


def _check_ids(parts: Mapping[str, Sequence[Example]]) -> None:
    """Raise UserError if an id is in two parts, because predictions are matched by id."""
    import numpy

    every = chain.from_iterable(parts.values())
    hashes = numpy.fromiter((hash(example.id) for example in every), numpy.int64)
    if len(numpy.unique(hashes)) == len(hashes):
        return
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
            f"{len(twice)} ids are in two parts (first: {first}, in {one} and {other}): "
            "make them unique, or set dataset.columns.id: null to number the rows"
        )


def _check_fields(parts: Mapping[str, Sequence[Example]]) -> None:
    """Raise UserError if a text has several columns in one part and one column in another."""
    several = {part: fields for part, examples in parts.items() if (fields := _fields(examples))}
    for part, examples in parts.items():
        if several and examples and part not in several:
            other, fields = next(iter(several.items()))
            raise UserError(
                f"dataset.columns.text: the {other} part has {', '.join(fields)}, but the {part} part "
                "has only one of them: name columns that every part has"
            )


def _cut(
    parts: dict[str, Sequence[Example]],
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
    # Sets of labels and numbers are not stratified.
    names = [labels[label] for label in _labels(train) if isinstance(label, int)]
    cut = splits.cut(
        len(train),
        share,
        recipe.dataset.seed,
        labels=names if names and recipe.dataset.stratify else None,
        groups=groups,
        part=part,
    )
    parts["train"] = Chosen(train, cut.kept)
    parts[part] = Chosen(train, cut.taken)


def _groups(examples: Sequence[Example], recipe: Recipe) -> list[int] | None:
    """Return the group of each example: questions on one passage, and rows equal in `group_by`.

    Without passages, rows with one question are a group.
    """
    if not examples:
        return None
    keys = []
    if isinstance(examples[0], QuestionExample):
        keys.append([_key(one.context or one.question) for one in _questions(examples)])
    if recipe.dataset.group_by in ("title", "group"):
        keys.append([getattr(example, recipe.dataset.group_by) for example in examples])
    return splits.components(*keys) if keys else None


def _questions(examples: Iterable[Example]) -> Iterator[QuestionExample]:
    return (example for example in examples if isinstance(example, QuestionExample))


def _key(text: str) -> bytes:
    """Return a short sum of a long text, to compare it."""
    return blake2b(text.encode(), digest_size=16).digest()


def _sample(examples: Sequence[Example], part: str, recipe: Recipe) -> Sequence[Example]:
    data = recipe.dataset
    size = data.max_train_samples if part == "train" else data.max_eval_samples
    if data.sampling == "nested" and size is not None:
        return Chosen(examples, sorted(_nested(examples, recipe)[:size]))
    if size is None or size >= len(examples):
        return examples
    return Chosen(examples, splits.sample(len(examples), size, data.seed, part))


def _nested(examples: Sequence[Example], recipe: Recipe) -> list[int]:
    """Return all positions so that each beginning is a sample. Sets of labels and numbers are not
    stratified.
    """
    kinds = [label if isinstance(label, int) else None for label in _labels(examples)]
    return splits.nested(kinds, _groups(examples, recipe), recipe.dataset.seed)


def _labels(examples: Sequence[Example]) -> list[Label]:
    return [example.label for example in examples if isinstance(example, TextExample)]
