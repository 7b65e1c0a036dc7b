"""A finished run that stays loaded, and its replies to texts and questions from anywhere."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llama_peft.data import Example, FieldsExample, QuestionExample, TextExample, literal
from llama_peft.errors import UserError
from llama_peft.inference.predict import Output, Prediction, decided, honest, predict
from llama_peft.run_folder.fetch import run_folder
from llama_peft.run_folder.run import Run, open_run
from llama_peft.run_folder.threshold import UNFITTED, Threshold, run_threshold
from llama_peft.run_folder.weights import TunedModel, load_tuned

if TYPE_CHECKING:
    import datasets
    import pandas

log = logging.getLogger(__name__)

Question = Mapping[str, str] | tuple[str, str]
"""{"question": ..., "context": ...}, or (question, context)."""
Inputs: TypeAlias = "Sequence[str] | Sequence[Question] | pandas.DataFrame | datasets.Dataset"
"""Texts or questions: a list, or a table with the columns that the run's recipe names."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a run says of one text or question."""

    prediction: Output
    """A label, several labels, a number, or an answer; "" for no answer."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Of each label; empty for questions."""
    no_answer_probability: float | None = None
    """None for texts."""
    start: int | None = None
    """The first character of the answer in its passage, if the answer is a piece of it."""

    def as_dict(self) -> dict[str, Output]:
        """The reply as one flat row, for a table or for JSON."""
        row: dict[str, Output] = {"prediction": self.prediction, **self.probabilities}
        if self.no_answer_probability is not None:
            row["no_answer_probability"] = self.no_answer_probability
        return row


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A finished run with its model in memory."""

    run: Run
    tuned: TunedModel
    threshold: Threshold | None
    """What its evaluation fitted on validation; None if nothing was fitted."""

    def predict(self, inputs: "Inputs") -> list[Reply]:
        """One reply for each input, in the order given. Raises UserError if an input is not what
        the run was trained on.
        """
        examples = list(examples_of(self.run, inputs))
        batches = predict(self.tuned, examples)
        found = {one.id: self.reply(one) for batch in batches for one in batch}
        return [found[example.id] for example in examples]

    def reply(self, found: Prediction) -> Reply:
        """What the run says of an example that its model has predicted."""
        probabilities = honest(found, self.threshold)
        chances = zip(self.run.labels, probabilities or (), strict=bool(probabilities))
        said = decided(found, self.threshold, self.run.labels)
        return Reply(
            prediction=said,
            probabilities=dict(chances),
            no_answer_probability=found.no_answer_probability,
            start=found.start if said else None,
        )


_in_memory: dict[tuple[Path, str], TunedModel] = {}
"""The model that was loaded last, by its run folder and the record of its training."""


def load_run(name: str | Path, base: str | None = None) -> LoadedRun:
    """Load a finished run by its folder, or by the Hub's user/repo[@revision].

    base: another name of its base, if that is a folder of another machine.

    The last model stays in memory: loading it again costs nothing unless it was trained again in
    between.
    """
    if not isinstance(name, str | Path):
        raise UserError(f"a run is named by its folder or its Hub name, not by {_shown(name)}")
    return load(open_run(run_folder(name), base))


def load(run: Run) -> LoadedRun:
    """Load the model of an opened run, and the threshold that its evaluation fitted."""
    key = run.folder.resolve(), run.record.model_dump_json()
    if key not in _in_memory:
        _in_memory.clear()
        _in_memory[key] = load_tuned(run)
    return LoadedRun(run=run, tuned=_in_memory[key], threshold=_threshold(run))


def _threshold(run: Run) -> Threshold | None:
    fitted = run_threshold(run)
    if fitted is None and run.recipe.fits_threshold:
        what = "it gives labels above a" if run.labels else "it answers up to a no-answer"
        log.warning(
            "%s: no threshold was fitted for this run, so %s probability of %s; "
            "to fit one: llama-eval run --model %s",
            *(run.folder, what, UNFITTED, run.folder),
        )
    return fitted


def examples_of(run: Run, inputs: object) -> Iterator[Example]:
    """Yield the inputs as examples of the task, numbered. Raises UserError for one that is not what the run
    was trained on."""
    has_labels = run.recipe.kind.has_labels
    wanted = "a list of texts" if has_labels else "a list of questions"
    if isinstance(inputs, str | Mapping) or not isinstance(inputs, Iterable):
        raise UserError(f"{run.folder}: predict takes {wanted}, not one {type(inputs).__name__}")
    read = _text if has_labels else _question
    for number, value in enumerate(_rows(inputs)):
        yield read(run, str(number), value)


def _rows(inputs: Iterable[object]) -> Iterable[object]:
    """The rows of a table as dicts; of a list its items."""
    to_dict = getattr(inputs, "to_dict", None)  # pandas iterates over the names of columns
    if to_dict is not None and hasattr(inputs, "iloc"):
        rows: list[object] = to_dict("records") if hasattr(inputs, "columns") else list(inputs)
        return rows
    return inputs


def _text(run: Run, number: str, value: object) -> Example:
    if fields := run.recipe.prompt.fields:
        return _of_fields(run, number, value, fields)
    if isinstance(value, Mapping):
        value = _cell(run, value, "text")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{run.folder}: input {number} is not a text but {_shown(value)}")
    return TextExample(id=number, text=value, label=0)


def _of_fields(run: Run, number: str, value: object, fields: Sequence[str]) -> Example:
    """A text of several fields: as named texts, in the order of the fields, or as JSON of these."""
    given = literal(value) if isinstance(value, str) else value
    if isinstance(given, list | tuple) and len(given) == len(fields):
        given = dict(zip(fields, given, strict=True))
    cells = [given.get(name) for name in fields] if isinstance(given, Mapping) else []
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if len(texts) < len(fields):
        wanted = json.dumps(dict.fromkeys(fields, "..."), ensure_ascii=False)
        raise UserError(f"{run.folder}: input {number} is {_shown(value)}, and not {wanted}")
    return FieldsExample.of(dict(zip(fields, texts, strict=True)), id=number, label=0)


def _question(run: Run, number: str, value: object) -> Example:
    has_passage = bool(run.recipe.dataset.columns.context)
    if isinstance(value, Mapping):
        question = _cell(run, value, "question")
        context = _cell(run, value, "context") if has_passage else ""
    elif not has_passage:
        question, context = value, ""
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        question, context = value
    else:
        raise UserError(
            f'{run.folder}: input {number} is {_shown(value)}; a question needs its passage: {{"question": ..., "context": ...}}'
        )
    for name, text in (("question", question), ("context", context)):
        is_needed = name == "question" or has_passage
        if not isinstance(text, str) or (is_needed and not text.strip()):
            raise UserError(f"{run.folder}: the {name} of input {number} is not a text")
    return QuestionExample(id=number, context=str(context), question=str(question), answers=())


def _cell(run: Run, row: Mapping[str, object], key: str) -> object:
    """The cell of a row under the first of the recipe's column names that the row has."""
    names = run.recipe.dataset.columns.names(key)
    return next((row[name] for name in (*names, key) if name in row), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
