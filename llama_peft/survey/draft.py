"""Writes the recipe for a file of data. What it guessed stands behind each key, as a comment."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from llama_peft.data import Dataset, QuestionExample, Table, is_file_name, load
from llama_peft.data.labels import number_key, only
from llama_peft.data.sources.files import read_files
from llama_peft.data.sources.hub import read_hub, split_names
from llama_peft.data.sources.places import FORMATS, files_beside, parts_in
from llama_peft.data.sources.unpack import SUFFIXES
from llama_peft.errors import UserError
from llama_peft.recipe import Data, load_recipe
from llama_peft.recipe.strict_yaml import KeyPath, dump_line
from llama_peft.survey.base import Base, fitting_base
from llama_peft.survey.guess import Guess, guess, label_counts
from llama_peft.system.formatting import counted, spread
from llama_peft.system.terminal import printable

_DELIMITERS, _ENCODINGS = (None, ";", "\t", "|"), ("utf-8", "utf-16", "cp1252")
"""What separates cells, and what encodes letters, in the order in which it is tried."""
_ON_CPU = {"max_train_samples": 4000, "max_eval_samples": 500}
"""Rows that a CPU reads with patience."""
_FEW = 2000
"""Below so many rows, smaller batches give more steps."""
_CHANGES: tuple[Mapping[str, object], ...] = (
    {},
    {"on_bad_rows": "drop"},
    {"stratify": False},
    {"on_bad_rows": "drop", "stratify": False},
)
"""What data may need to be read whole, in the order in which it is tried."""
_LISTED = 12
"""Labels that a comment names, or a prompt."""
_ROW = {True: 2048, False: 1024}
"""Tokens in a row of questions on a GPU, and on a CPU."""

Values = dict[str, object]


def draft(source: str, base: str | None = None) -> str:
    """Return the recipe, as YAML, for a file, or for a data set on the Hub.

    base: the base to train; None for one that fits this machine. Raises UserError if no column can
    be what a task needs, or if the data cannot be read.
    """
    table, read = _read(source)
    found, chosen = guess(table), fitting_base(base)
    data = {"path": source, **read, **_data(table, found, chosen)}
    dtype = {"dtype": "float32"} if chosen.name == "tiny" else {}
    values = {
        "task": found.task,
        "model": {"model_name_or_path": chosen.name, **dtype},
        **({} if chosen.on_gpu else {"quantization": {"load_in_4bit": False}}),
        "lora": {"r": 16},
        "dataset": data,
        **_prompt(table, found),
        **_train(table, found, chosen),
    }
    fitted = _fitted(values, data, _parts(source))
    first = f"# Written by `llama-peft init {source}` for {len(table.records):,} rows."
    lines = [printable(first), *_lines(fitted.values, _comments(table, found, chosen, fitted))]
    return "\n".join([*lines, ""])


def name_of(source: str) -> str:
    """Return the name of data, for the file of its recipe."""
    name = Path(source)
    while name.suffix.lower() in (*FORMATS, *SUFFIXES):
        name = name.with_suffix("")
    return name.name


def _read(source: str) -> tuple[Table, Values]:
    """Return the rows, and the keys of `dataset` that reading them needs."""
    usual, first = Data(), None
    if not is_file_name(source):
        return read_hub(source, "train", usual, None), {}
    for rows in ("refuse", "drop"):
        for encoding in _ENCODINGS:
            for delimiter in _DELIMITERS:
                keys = {"delimiter": delimiter, "encoding": encoding, "on_bad_rows": rows}
                try:
                    table = read_files(source, Data.model_validate(keys))
                except UserError as error:
                    first = first or error
                    continue
                return table, {key: own for key, own in keys.items() if own != getattr(usual, key)}
    assert first is not None, "nothing was read"
    raise first


def _data(table: Table, found: Guess, base: Base) -> Values:
    """Return the keys of `dataset` about the columns and the number of rows."""
    keys: Values = {"columns": found.columns}
    if found.decimal != ".":
        keys["decimal"] = found.decimal
    if not found.single_label:
        keys["single_label"] = False
        if found.separator != ",":
            keys["label_separator"] = found.separator
    if not base.on_gpu and len(table.records) > _ON_CPU["max_train_samples"]:
        keys |= _ON_CPU
    return keys


def _prompt(table: Table, found: Guess) -> Values:
    """Return the section `prompt`: what names the labels, the numbers, or the lack of a passage."""
    text, label = found.columns.get("text"), found.columns.get("label")
    if found.task == "regression":
        return {"prompt": {"verbalizers": _numbers(table, found)}}
    if found.task == "generative_qa" and found.columns["context"] is None:
        return {"prompt": {"instruction": "Answer the question.\n\n"}}
    labels = sorted(label_counts(table, found)) if found.single_label and label else []
    listed = ", ".join(labels)
    if isinstance(text, list) or not 2 <= len(labels) <= _LISTED or {*"{}"} & {*f"{label}{listed}"}:
        return {}
    return {"prompt": {"zero_shot": f"Text: {{text}}\n{label} ({listed}):"}}


def _numbers(table: Table, found: Guess) -> list[str]:
    """Return numbers from the smallest to the largest, with which a base can answer."""
    cells = (row.get(str(found.columns["label"])) for row in table.records)
    numbers = [float(key) for cell in cells if (key := number_key(only(cell), found.decimal))]
    low, high = min(numbers), max(numbers)
    whole = range(round(low), round(high) + 1)
    if 2 <= len(whole) <= _LISTED:
        return [str(one) for one in whole]
    return list(dict.fromkeys(f"{low + (high - low) * step / 5:.3g}" for step in range(6)))


def _train(table: Table, found: Guess, base: Base) -> Values:
    if found.task != "generative_qa":
        return {"train": {"per_device_train_batch_size": 8}} if len(table.records) < _FEW else {}
    row = {"max_length": _ROW[base.on_gpu], "packing": "prefix_tree"}
    return {"train": {**row, "per_device_train_batch_size": 1}}


def _parts(source: str) -> dict[str, str]:
    """Return the parts that the data bring beside the train part, by the recipe's keys."""
    if is_file_name(source):
        return files_beside(source)
    names = split_names(source)
    return parts_in(lambda word: word if word in names else None)


class _Fitted(NamedTuple):
    """A recipe that is valid on its data."""

    values: Values
    dataset: Dataset
    parts: Mapping[str, str]
    """The parts that are not cut from train."""
    unused: str = ""
    """Why parts that the data bring are left out."""


def _fitted(values: Values, data: Values, parts: Mapping[str, str]) -> _Fitted:
    """Return the recipe with what the data need to be read whole.

    Parts that cannot be used are left out: those of benchmarks often have no labels. Raises UserError
    with what is wrong with the recipe before anything was added.
    """
    first: UserError | None = None
    for change in _CHANGES:
        own = {"parts": dict(parts)} if parts else {}
        changed = {**values, "dataset": {**data, **own, **change}}
        try:
            with _unsaid():
                return _Fitted(changed, load(load_recipe(changed)), parts)
        except UserError as error:
            first = first or error
    assert first is not None, "nothing was loaded"
    if not parts:
        raise first
    why = str(first).splitlines()[-1].strip().partition(" (first")[0]
    unused = f"{' and '.join(parts.values())} cannot be used as it is: {why}"
    return _fitted(values, data, {})._replace(unused=unused)


def _shares(parts: Mapping[str, str]) -> str:
    """Return what is cut from train."""
    if "test" in parts:
        return "" if "validation" in parts else "10 % become the validation part"
    rest = "" if "validation" in parts else ", and 10 % of the rest the validation part"
    return f"20 % become the test part{rest}"


@contextmanager
def _unsaid() -> Iterator[None]:
    """Log nothing of the data for a while: what is wrong with them becomes comments."""
    logger = logging.getLogger("llama_peft.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _comments(
    table: Table, found: Guess, base: Base, fitted: _Fitted
) -> Mapping[KeyPath, list[str]]:
    """Return what is said of keys: what was found, and why a guess may be wrong."""
    said: dict[KeyPath, list[str]] = {}
    dataset = fitted.dataset

    def say(path: str, text: str) -> None:
        said.setdefault(tuple(path.split(".")), []).append(text)

    say("model.model_name_or_path", base.why)
    say("model.dtype", "in 16 bits so small a base learns less, and not faster")
    say("quantization.load_in_4bit", "there is no GPU, and a CPU unpacks 4 bits slowly")
    say("dataset.path", _shares(fitted.parts))
    say("dataset.path", fitted.unused)
    for part in fitted.parts:
        say(f"dataset.parts.{part}", "a guess: by its name")
    say("dataset.max_train_samples", "a CPU is slow: remove both to use all rows")
    say("dataset.stratify", "a label has too few rows for each part")
    for kinds in dataset.dropped.values():
        listed = "; ".join(f"{count} with {kind}" for kind, count in kinds.items())
        say("dataset.on_bad_rows", f"rows that cannot be used: {listed}")
    read = next(key for key in ("text", "context", "question") if found.columns.get(key))
    say(f"dataset.columns.{read}", f"{spread(_lengths(dataset))} characters")
    if dataset.labels:
        say("dataset.columns.label", _counted(table, found))
    if found.task == "generative_qa":
        say("task", "it writes answers; extractive_qa finds them in the passage")
        say("dataset.columns.answers", _unanswered(dataset))
        say("train.max_length", "tokens in a row, which holds many questions")
    for key, why in found.doubts.items():
        say(f"dataset.columns.{key}", f"a guess: {why}")
    return said


def _lengths(dataset: Dataset) -> list[int]:
    """Return the letters of each text; of questions, of each passage or question without one."""
    examples = (one for part in dataset.parts.values() for one in part)
    return [
        len((one.context or one.question) if isinstance(one, QuestionExample) else one.text)
        for one in examples
    ]


def _counted(table: Table, found: Guess) -> str:
    counts = label_counts(table, found)
    first = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(_LISTED))
    return f"{counted(len(counts), 'label')}: {first}{', ...' if len(counts) > _LISTED else ''}"


def _unanswered(dataset: Dataset) -> str:
    examples = [one for part in dataset.parts.values() for one in part]
    empty = sum(isinstance(one, QuestionExample) and not one.answers for one in examples)
    return f"{empty:,} of {len(examples):,} questions have none"


def _lines(
    values: Mapping[str, object], said: Mapping[KeyPath, list[str]], above: KeyPath = ()
) -> Iterator[str]:
    """Yield keys as YAML, each with what is said of it as a comment."""
    for key, value in values.items():
        path = (*above, key)
        indent = "  " * len(above)
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, said, path)
            continue
        comment = "; ".join(filter(None, said.get(path, ())))
        line = f"{indent}{key}: {dump_line(value)}"
        yield f"{line:<30}  # {printable(comment)}" if comment else line
