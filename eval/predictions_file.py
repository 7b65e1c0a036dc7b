"""Predictions that were made elsewhere, read from a user's file and scored without a model."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from llama_peft.data import Example, broken
from llama_peft.data.labels import label_key
from llama_peft.data.sources.files import read_file
from llama_peft.errors import UserError
from llama_peft.inference.rows import as_written
from llama_peft.inference.unfinished import check_ids, repeated
from llama_peft.recipe import Data, Recipe
from llama_peft.run_folder.ownership import check_evaluation_folder
from llama_peft.run_folder.results import ModelConfig, Results
from llama_peft.system.files import LARGEST, JsonObject, open_regular, read_whole
from llama_peft.system.lock import only_process
from llama_peft.tasks import Side
from llama_peft.tokens.prompts import without_no_answer

from .job import Job, unnamed_folder
from .lines import PredictionLine
from .metrics.columns import Texts, texts
from .metrics.ids import are_same, places
from .metrics.measure import Said
from .predictors.samples import Asked, from_samples, is_sample
from .scoring import Material, about, finish, material

_OWN_NAMES: Mapping[Side, str] = {
    "labels": "label",
    "label_sets": "labels",
    "numbers": "number",
    "answers": "answer",
}
"""What `llama-peft predict` calls a prediction."""
_FIRST_LINE = 1 << 24
"""Bytes that the line of one prediction does not have."""


class Given(NamedTuple):
    """One prediction of a user's file."""

    id: str
    prediction: Said
    raw: str | None = None
    no_answer_probability: float | None = None
    probabilities: list[float] | None = None
    """The probability of each label, in the order of the labels."""


def scores_folder(predictions: Path) -> Path:
    """Return the folder for the scores of a file, if the user names none: it is beside the file."""
    return unnamed_folder(predictions.with_name(f"{predictions.stem}-scores"))


def score_file(job: Job, predictions: Path, no_answer_probabilities: Path | None) -> Results:
    """Score predictions.jsonl, a CSV file with `id` and `prediction`, samples of
    lm-evaluation-harness, or SQuAD's official {id: text} with its {id: probability}.

    Labels may be names or numbers. Raises UserError if a file cannot be read, or if the ids do not
    match the examples one for one.
    """
    check_evaluation_folder(job.output)
    started = time.monotonic()
    found = material(job)
    given = read_predictions(predictions, job.recipe, found.labels, found.examples)
    known = bytearray()
    ids = texts(_ids(given, known))
    silent = known.count(False)
    if no_answer_probabilities is not None:
        given = replace(given, chances=_chances_by_id(no_answer_probabilities, ids))
    elif 0 < silent < len(ids):
        raise UserError(
            f"{predictions}: {silent} of {len(ids)} predictions have no no_answer_probability "
            f"(first: {ids[known.index(False)]}); give it for all predictions or for none"
        )
    lines = _lines(given, ids, found)
    config = ModelConfig(
        model_kind="scored predictions", recipe=job.recipe.name, predictions=str(predictions)
    )
    with only_process(job.output, "evaluating"):
        return finish(job, found, lines, config, started=started)


def _ids(given: "GivenFile", known: bytearray) -> Iterator[str]:
    """Yield the ids. known: gets whether each has a no-answer probability."""
    for one in given:
        known.append(one.no_answer_probability is not None)
        yield one.id


def _lines(given: "GivenFile", ids: Texts, found: Material) -> Iterator[PredictionLine]:
    """Return a line for each prediction. Raises UserError, at once, unless the ids match."""
    asked = texts(example.id for _, example in found.located)
    if not are_same(ids, asked):
        check_ids([*ids], [*asked], str(given.path))
    order = places(asked, ids)
    its = found.located if order is None else map(found.at, map(int, order))
    return (
        PredictionLine(**one._asdict(), **about(example, found.labels)._asdict(), split=part)
        for one, (part, example) in zip(given, its, strict=True)
    )


def read_predictions(
    path: Path, recipe: Recipe, labels: Sequence[str], examples: Sequence[Example] = ()
) -> "GivenFile":
    """Return the predictions of a file. Raises UserError if it cannot be read.

    examples: what the samples of lm-evaluation-harness are matched with.
    """
    is_table = path.suffix.lower() in (".csv", ".tsv")
    values: Iterable[JsonValue] | JsonObject = _read_table(path) if is_table else _read_json(path)
    if isinstance(values, dict):
        values = [{"id": id_, "prediction": text} for id_, text in values.items()]
    if is_sample(next(iter(values), None)):
        asked = Asked(recipe=recipe, labels=labels, examples=examples)
        values = [*from_samples([*values], path, asked)]
    return GivenFile(path=path, recipe=recipe, labels=labels, values=values)


@dataclass(frozen=True, kw_only=True)
class GivenFile:
    """The predictions of a user's file, one after the other. Lines of JSON are read again each time,
    so they are never all in memory.
    """

    path: Path
    recipe: Recipe
    labels: Sequence[str]
    values: Iterable[JsonValue]
    chances: Mapping[str, float] | None = None
    """The no-answer probabilities, if another file holds them."""

    def __iter__(self) -> Iterator[Given]:
        """Yield each prediction. Raises UserError if one cannot be scored."""
        for number, value in enumerate(self.values, start=1):
            one = _given(value, f"{self.path}: prediction {number}", self.recipe, self.labels)
            known = one.no_answer_probability if self.chances is None else self.chances[one.id]
            yield one._replace(no_answer_probability=known)


def _given(value: JsonValue, place: str, recipe: Recipe, labels: Sequence[str]) -> Given:
    """Return one value of a file as a prediction.

    place: the file and the number of the prediction, for messages.
    """
    fields = value if isinstance(value, dict) else {}
    # `llama-peft predict` calls a prediction what it is.
    usual = _OWN_NAMES[recipe.kind.side]
    said = _said(fields.get("prediction", fields.get(usual)), recipe, labels)
    if said is None or "id" not in fields:
        listed = ", ".join(labels)
        wanted = {
            "labels": f"one of the labels {listed}",
            "label_sets": f"a list of some of the labels {listed}",
            "numbers": "a number",
            "answers": "a text",
        }[recipe.kind.side]
        raise UserError(f"{place} is not an object with an id and a prediction that is {wanted}")
    identity, raw = str(fields["id"]), fields.get("raw")
    raw = raw if isinstance(raw, str) else None
    if broken(identity + (said if isinstance(said, str) else "") + (raw or "")):
        raise UserError(
            f"{place} holds an unpaired Unicode surrogate, which cannot be written to a file; "
            "repair the text"
        )
    probability = fields.get("no_answer_probability")
    if probability is None:
        return Given(identity, said, raw, None, _chances(fields, place, labels))
    what = f"no_answer_probability of {place}"
    number = _number(probability, what)
    if not 0 <= number <= 1:
        raise UserError(f"{what} is {number:g}, which is not a number from 0 to 1")
    return Given(identity, said, raw, number)


def _said(value: JsonValue, recipe: Recipe, labels: Sequence[str]) -> Said | None:
    """Return what a prediction says; None if it is not what the task predicts."""
    if recipe.kind.side == "numbers":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return _number(value, "prediction") if is_number else None
    if recipe.kind.side == "label_sets":
        named = [_label(one, labels) for one in value] if isinstance(value, list) else [None]
        found = [one for one in named if isinstance(one, str) and one in labels]
        return found if len(found) == len(named) else None
    said = _label(value, labels) if labels else value
    if not isinstance(said, str):
        return None
    return said if labels else without_no_answer(said, recipe.prompt.no_answer)


def _chances(fields: JsonObject, place: str, labels: Sequence[str]) -> list[float] | None:
    """Return the probabilities of the labels that a prediction holds, if it holds any."""
    values, what = fields.get("probabilities"), f"probabilities of {place}"
    if values is None or not labels:
        return None
    if isinstance(values, dict) and values.keys() == {*labels}:
        values = [values[label] for label in labels]
    found = [_number(one, what) for one in values] if isinstance(values, list) else []
    if len(found) != len(labels) or not all(0 <= one <= 1 for one in found):
        raise UserError(f"{what}: these are not {len(labels)} numbers from 0 to 1, one a label")
    return found


def _label(value: JsonValue, labels: Sequence[str]) -> JsonValue:
    """Return the label that a predicted value means.

    A number means the label with this name or, if no label is a number, the label at this place.
    """
    for label in labels:
        if label_key(value) == label_key(label):
            return label
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text in labels or not isinstance(text, str) or not text.isdecimal() or len(text) > 9:
        return text
    named = any(label.isdecimal() for label in labels)
    return value if named or int(text) >= len(labels) else labels[int(text)]


def _chances_by_id(path: Path, ids: Texts) -> dict[str, float]:
    """Return the no-answer probabilities of a file, which are of these ids."""
    values = _read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: this file must be {{id: probability of no answer}}")
    check_ids(list(values), [*ids], str(path))
    return {id_: _number(values[id_], f"{path}: the value of {id_}") for id_ in ids}


def _number(value: JsonValue, what: str) -> float:
    # An integer can be too large for a float, and a comparison is exact.
    largest = sys.float_info.max
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= largest:
        return float(value)
    raise UserError(f"{what} is {repr(value)[:40]}, which is not a number")


def _unique(pairs: Sequence[tuple[str, JsonValue]]) -> JsonObject:
    """Return a JSON object whose keys occur once. json would keep only the last of two."""
    if twice := repeated(key for key, _ in pairs):
        raise ValueError(f"{twice[0]!r} occurs twice")
    return dict(pairs)


def _read_json(path: Path) -> "JsonObject | Iterable[JsonValue]":
    """Return the value of a JSON file, or the values of a JSONL file, which are read when they are
    asked for.
    """
    if path.suffix == ".jsonl" or _holds_lines(path):
        return _JsonLines(path)
    with _readable(path):
        values = json.loads(read_whole(path).decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(values, dict | list):
        raise UserError(
            f"{path}: this file holds neither {{id: prediction}} nor lines of predictions"
        )
    return values


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise a UserError for a file that cannot be read."""
    try:
        yield
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: this file cannot be read: {error}") from None


def _text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that are not blank."""
    with open_regular(path) as file:
        while raw := file.readline(LARGEST):
            if (line := raw.decode("utf-8")).strip():
                yield line


def _holds_lines(path: Path) -> bool:
    """Whether a file holds an object in its first line, and more lines."""
    with _readable(path), open_regular(path) as file:
        read = iter(lambda: file.readline(_FIRST_LINE), b"")
        lines = [*islice((line for line in read if line.strip()), 2)]
        # A longer first line is cut, perhaps within a character: it is a whole file on one line.
        is_whole = len(lines) > 1 and lines[0].endswith(b"\n")
        return is_whole and _is_object(lines[0].decode("utf-8"))


class _JsonLines:
    """The values of the lines of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[JsonValue]:
        with _readable(self.path):
            for line in _text_lines(self.path):
                yield json.loads(line, object_pairs_hook=_unique)


def _read_table(path: Path) -> list[JsonValue]:
    """Return the rows of a CSV or TSV file as the objects that JSON lines would hold.

    A column `probabilities.NAME` is one of the named values in `probabilities`.
    """
    table = read_file(str(path), Data())
    if "id" not in table.columns:
        raise UserError(
            f"{path}: there is no column id; the columns are: {', '.join(table.columns)}"
        )
    return [_fields({name: str(cell) for name, cell in row.items()}) for row in table.records]


def _fields(row: Mapping[str, str]) -> JsonObject:
    fields: JsonObject = {}
    chances: JsonObject = {}
    for column, cell in row.items():
        name = as_written(column)
        if name.startswith("probabilities."):
            chances[name.removeprefix("probabilities.")] = _value(cell)
        elif name not in ("probabilities", "no_answer_probability"):
            fields[name] = as_written(cell)
        elif cell.strip():
            fields[name] = _value(cell)
    return {**fields, "probabilities": chances} if chances else fields


def _value(cell: str) -> JsonValue:
    """Return the number or the list that a cell writes, or the text itself."""
    try:
        value: JsonValue = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
