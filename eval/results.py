"""Reads what an evaluation left in a folder: results.json, and the predictions behind its numbers.

A report stands on these files alone, so a folder is refused when they are missing, damaged, or
disagree: numbers that its own predictions do not give are not printed.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llama_peft.errors import UserError
from llama_peft.system.files import check_sum, sha256

from .metrics.bootstrap import Evidence, point
from .metrics.classification import classification_evidence
from .metrics.ids import check_unique
from .metrics.names import INTERVAL_SUFFIX
from .metrics.overlap import overlap_evidence
from .metrics.squad_v2 import squad_evidence

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
ZERO_SHOT, TUNED = "zero-shot", "tuned"
_OWN_PART = ("test", "data")
"""Parts that the harness files under the recipe's own name; others are `<recipe>_<part>`."""


class _Open(BaseModel):
    """More keys than these may be there."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", protected_namespaces=())


class Line(_Open):
    """One example of predictions.jsonl."""

    id: str
    prediction: str
    gold: str | list[str]
    split: str
    text: str = ""
    """The sentence or question, where the harness keeps it."""


class Training(_Open):
    """What the training of a tuned model took."""

    wall_seconds: float | None = None
    peak_memory_bytes: int | None = None


class Config(_Open):
    """The model of a results.json."""

    recipe: str
    model_kind: str
    model: str | None = None
    parameters: dict[str, int] = {}
    training: Training = Training()
    seen_in_training: dict[str, int] | None = None
    """Of each part, examples that read the same as one that the model was trained on; None where that is not known."""


class Settings(_Open):
    """How one task was measured."""

    labels: list[str]


class Results(_Open):
    """The part of results.json that a report needs."""

    results: dict[str, dict[str, Any]]
    configs: dict[str, Settings]
    config: Config
    versions: dict[str, str] = {}
    wall_seconds: float | None = None
    peak_memory_bytes: int | None = None
    predictions_sha256: str | None = None
    """None in results of other tools, which have no sum of their own either."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One system on one part of a task's data."""

    folder: Path
    task: str
    part: str
    labels: tuple[str, ...]
    """Empty for question answering."""
    lines: list[Line]
    results: Results

    @property
    def scores(self) -> dict[str, Any]:
        return self.results.results[self.task]

    @property
    def config(self) -> Config:
        return self.results.config

    @property
    def seen_in_training(self) -> int | None:
        return (self.config.seen_in_training or {}).get(self.part)

    @cached_property
    def predictions(self) -> dict[str, str]:
        return {line.id: line.prediction for line in self.lines}

    @cached_property
    def golds(self) -> dict[str, Any]:
        return {line.id: line.gold for line in self.lines}

    @cached_property
    def evidence(self) -> Evidence:
        """What intervals and paired tests of the task's main metrics need."""
        return evidence_of(self.predictions, self.golds, self.labels)

    @cached_property
    def overlap(self) -> Evidence | None:
        """The same of BLEU, ROUGE and METEOR, which take seconds; None for labels."""
        return None if self.labels else overlap_evidence(self.predictions, self.golds)


def evidence_of(
    predictions: dict[str, str], golds: dict[str, Any], labels: tuple[str, ...]
) -> Evidence:
    """Of labels when there are any, else of answers."""
    if labels:
        return classification_evidence(predictions, golds, labels)
    return squad_evidence(predictions, golds)


def result_folders(folder: Path) -> list[Path]:
    """The folder itself, or those of a run folder."""
    inner = [path for name in (ZERO_SHOT, TUNED) if (path := folder / name).is_dir()]
    return inner if inner and not (folder / RESULTS).is_file() else [folder]


def read(folder: Path) -> list[Measured]:
    """Every task of a results folder. Raises UserError when a file of it cannot be trusted."""
    text = _text(folder / RESULTS)
    try:
        results = Results.model_validate_json(text)
        if "sum" in (said := json.loads(text)):
            check_sum(said)
        if not results.results:
            raise ValueError("no task in it")
    except ValueError as error:
        raise _broken(folder / RESULTS, f"is damaged ({_reason(error)})") from error
    lines = _read_predictions(folder / PREDICTIONS)
    try:
        if results.predictions_sha256 not in (None, sha256(folder / PREDICTIONS)):
            raise ValueError(f"{PREDICTIONS} is not what was written")
        return [_measured(folder, task, results, lines) for task in results.results]
    except ValueError as error:
        raise _broken(folder / RESULTS, f"does not fit its predictions ({error})") from error


def _measured(folder: Path, task: str, results: Results, lines: list[Line]) -> Measured:
    suffix = task.removeprefix(results.config.recipe).lstrip("_")
    parts = [suffix] if suffix else _OWN_PART
    own = [line for line in lines if line.split in parts]
    if not own or task not in results.configs:
        raise ValueError(f"{task} has no {'predictions' if not own else 'configs'}")
    labels = tuple(results.configs[task].labels)
    if any(isinstance(line.gold, str) != bool(labels) for line in own):
        raise ValueError(f"golds of {task} are no {'labels' if labels else 'lists of answers'}")
    one = Measured(
        folder=folder, task=task, part=own[0].split, labels=labels, lines=own, results=results
    )
    for name, value in point(one.evidence).items():
        recorded = one.scores.get(name)
        if not isinstance(recorded, int | float) or not abs(recorded - value) <= 1e-6:
            raise ValueError(f"{name} of {task} is {recorded}, they give {value}")
    for name, bounds in one.scores.items():
        if name.endswith(INTERVAL_SUFFIX) and not _is_interval(bounds):
            raise ValueError(f"{name} of {task} is {bounds}")
    return one


def _is_interval(bounds: object) -> bool:
    return (
        isinstance(bounds, list)
        and len(bounds) == 2
        and all(isinstance(bound, int | float) and isfinite(bound) for bound in bounds)
        and bounds[0] <= bounds[1]
    )


def _read_predictions(path: Path) -> list[Line]:
    lines: list[Line] = []
    for number, text in enumerate(_lines(_text(path)), start=1):
        try:
            lines.append(Line.model_validate_json(text))
        except ValueError as error:
            raise _broken(path, f"is damaged (line {number}: {_reason(error)})") from error
    try:
        check_unique([line.id for line in lines], "predictions")
    except ValueError as error:
        raise _broken(path, f"cannot be scored ({error})") from error
    return lines


def _lines(text: str) -> list[str]:
    """Split at line feeds only: answers may hold other line separators, which JSON leaves as is."""
    return [line for line in text.split("\n") if line]


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise _broken(path, "is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, f"cannot be read ({error})") from error


def _broken(path: Path, fault: str) -> UserError:
    folder = path.parent
    if folder.name == TUNED:
        command = f"llama-eval run --model {folder.parent} --output {folder}"
    else:
        command = f"llama-eval run --task TASK --output {folder}"
    return UserError(f"{path} {fault}; make it with: {command}")
