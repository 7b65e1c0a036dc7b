"""Reads the results that evaluations left in folders: results.json, and the predictions behind it.

A report is made of these files alone. So a folder is refused if they are missing, damaged or
disagree: a number is shown only if the folder's own predictions give it.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from pydantic import ValidationError

from llama_peft.errors import UserError
from llama_peft.run_folder.evaluations import command
from llama_peft.run_folder.layout import PREDICTIONS, RECIPE, RESULTS, TRAINING, TUNED, ZERO_SHOT
from llama_peft.run_folder.results import ModelConfig, Results, Scores, read_results
from llama_peft.system.files import inside, is_file, sum_of
from llama_peft.system.numbers import first_fault
from llama_peft.tasks import MAIN, TASKS, Side

from .lines import Lines, PredictionLine, Told, before_threshold, read_lines
from .metrics.catalogue import INTERVAL_SUFFIX, metrics_of
from .metrics.columns import Column, held
from .metrics.evidence import Evidence, scores_of
from .metrics.ids import check_unique
from .metrics.intervals import Interval, intervals
from .metrics.measure import Said, evidence_of
from .metrics.words.overlap import overlap_evidences


class MainScore(NamedTuple):
    """The score of a task's main metric."""

    metric: str
    value: float | None
    """None if the predictions have none."""
    interval: Interval | None
    beside: str
    """The metric to show beside it."""
    beside_value: float | None


def main_metric(task: str, results: Results) -> MainScore:
    """Return the main metric of a task in results.json, and its score.

    task: a key of `results.results`.
    """
    metric, beside = MAIN[side_of(task, results)]
    scores = results.results[task]
    value, interval, other = (
        _number(scores, metric),
        _interval(scores, metric),
        _number(scores, beside),
    )
    return MainScore(metric, value, interval, beside, other)


def side_of(task: str, results: Results) -> Side:
    """Return what a task predicts. Older results do not name its kind."""
    settings = results.configs[task]
    found = [kind.side for kind in TASKS.values() if kind.name == settings.task]
    return found[0] if found else "labels" if settings.labels else "answers"


def _number(scores: Scores, metric: str) -> float | None:
    value = scores.get(metric)
    return value if isinstance(value, int | float) else None


def _interval(scores: Scores, metric: str) -> Interval | None:
    match scores.get(metric + INTERVAL_SUFFIX):
        case [int() | float() as low, int() | float() as high]:
            return Interval(low, high)
    return None


def task_name(recipe: str, part: str) -> str:
    """The name under which results.json holds the scores of one part of a recipe's data.

    The test part, and data from a file, have the recipe's own name.
    """
    return recipe if part in ("test", "data") else f"{recipe}_{part}"


@dataclass(frozen=True, kw_only=True)
class SystemResults:
    """One system on one part of a task's data."""

    folder: Path
    task: str
    part: str
    labels: tuple[str, ...]
    """Empty for questions and numbers."""
    lines: Sequence[PredictionLine]
    told: Told
    """What the lines say."""
    results: Results

    @property
    def side(self) -> Side:
        return side_of(self.task, self.results)

    @property
    def no_answer(self) -> str:
        """The phrase that its model writes for "no answer"; empty if that is not recorded."""
        return str((self.results.configs[self.task].prompt or {}).get("no_answer", ""))

    @property
    def config(self) -> ModelConfig:
        return self.results.config

    @property
    def seen_in_training(self) -> int | None:
        return (self.config.seen_in_training or {}).get(self.part)

    def score(self, metric: str) -> float | None:
        """The score that is recorded, or else what the predictions give; None if they give none."""
        recorded = self.recorded(metric)
        if recorded is not None or metric not in self._unrecorded:
            return recorded
        return scores_of(self._unrecorded[metric])[metric]

    def recorded(self, metric: str) -> float | None:
        """The recorded score; None if this system has none."""
        return _number(self.results.results[self.task], metric)

    def interval(self, metric: str) -> Interval | None:
        """The interval of a score, from where the score is; None if it has none."""
        if self.recorded(metric) is None and metric in self._unrecorded:
            return intervals(self._unrecorded[metric], self.groups).get(metric)
        return _interval(self.results.results[self.task], metric)

    @property
    def predictions(self) -> Mapping[str, Said]:
        return self.told.predictions

    @property
    def texts(self) -> Mapping[str, str]:
        """The predictions by id, which are one label or one answer."""
        return cast("Mapping[str, str]", self.told.predictions)

    @property
    def gold_labels(self) -> Mapping[str, str]:
        """The right labels by id; empty unless each example has one."""
        found = self.told.golds if self.side == "labels" else {}
        return cast("Mapping[str, str]", found)

    @property
    def gold_lists(self) -> Mapping[str, list[str]]:
        """The right answers, or all right labels, by id; empty for one label and for numbers."""
        found = self.told.golds if self.side in ("answers", "label_sets") else {}
        return cast("Mapping[str, list[str]]", found)

    @property
    def golds(self) -> Column[Said]:
        """The references by id, whatever their kind."""
        return self.told.golds

    @cached_property
    def before(self) -> Column[str]:
        """The answers by id before a threshold removed some."""
        answers = (before_threshold(line, self.no_answer) for line in self.lines)
        return Column(self.told.ids, held(answers))

    @cached_property
    def counted(self) -> str:
        """How many examples there are; of questions also with and without an answer."""
        count = f"{len(self.lines):,} examples"
        if self.side != "answers":
            return count
        has = sum(map(bool, self.gold_lists.values()))
        return f"{count}: {has:,} HasAns, {len(self.lines) - has:,} NoAns"

    @property
    def groups(self) -> Column[str]:
        """The groups by id of the examples that were not drawn alone."""
        return self.told.groups

    @cached_property
    def _unrecorded(self) -> dict[str, Evidence]:
        """The evidence of each metric that the predictions give, though results.json may not."""
        found = (self.evidence, *self.overlap_evidences)
        return {name: evidence for evidence in found for name in scores_of(evidence)}

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence of the task's main metrics."""
        return self.evidence_of(self.predictions)

    @cached_property
    def overlap_evidences(self) -> tuple[Evidence, ...]:
        """The evidence of BLEU, ROUGE and METEOR, which take seconds; only answers have it."""
        found = self.side == "answers" and overlap_evidences(self.texts, self.gold_lists)
        return tuple(found or ())

    def evidence_of(self, predictions: Mapping[str, Said]) -> Evidence:
        """The evidence of the task's main metrics for any predictions of the same examples."""
        return evidence_of(self.side, predictions, self.golds, self.labels)


def result_folders(folder: Path) -> list[Path]:
    """The zero-shot and tuned folders of a run folder, or if it has neither, all with results; any
    other folder itself.
    """
    if (folder / RESULTS).is_file():
        return [folder]
    inner = [folder / name for name in (ZERO_SHOT, TUNED) if inside(folder, name).is_dir()]
    return inner or sorted(path.parent for path in folder.glob(f"*/{RESULTS}")) or [folder]


def read_systems(folder: Path) -> list[SystemResults]:
    """Every task of a results folder. Raises UserError if one of its files cannot be trusted."""
    results = _read_results(folder / RESULTS)
    lines, told = _read_predictions(folder / PREDICTIONS)
    try:
        if results.predictions_sha256 not in (None, sum_of(folder, PREDICTIONS)):
            raise ValueError(f"{PREDICTIONS} is not what was written")
        return [_system(folder, task, results, lines, told) for task in results.results]
    except ValueError as error:
        raise _broken(folder / RESULTS, f"does not fit its predictions ({error})") from error


def _read_results(path: Path) -> Results:
    try:
        return read_results(path)
    except FileNotFoundError:
        raise _broken(path, "is missing") from None
    except OSError as error:
        raise _broken(path, f"cannot be read ({error})") from error
    except ValueError as error:
        raise _broken(path, f"is damaged ({error})") from error


def _system(folder: Path, task: str, results: Results, lines: Lines, told: Told) -> SystemResults:
    parts = [part for part in told.parts if task_name(results.config.recipe, part) == task]
    if not parts or task not in results.configs:
        raise ValueError(f"{task} has no {'predictions' if not parts else 'configs'}")
    if len(parts) < len(told.parts):
        own = np.sort(np.concatenate([told.of_part(part) for part in parts]))
        lines, told = lines.at(own), told.at(own)
    system = SystemResults(
        folder=folder,
        task=task,
        part=lines[0].split,
        labels=tuple(results.configs[task].labels),
        lines=lines,
        told=told,
        results=results,
    )
    labels = system.labels
    if (system.side in ("labels", "label_sets")) != bool(labels):
        raise ValueError(
            f"{task} has {'labels, and' if labels else 'no labels, but'} predicts {system.side}"
        )
    _check_scores(system)
    return system


def _check_scores(system: SystemResults) -> None:
    """Raise ValueError unless scores are numbers, and those that are quick to compute are right."""
    recorded = system.results.results[system.task]
    for metric in metrics_of(system.side):
        value = recorded.get(metric.name, 0)
        if not isinstance(value, int | float):
            raise ValueError(f"{metric.name} of {system.task} is {value}, which is not a number")
    newer = {metric.name for metric in metrics_of(system.side) if metric.may_be_missing}
    for name, value in scores_of(system.evidence).items():
        if name in newer and name not in recorded:
            continue
        found = system.recorded(name)
        if found is None or not abs(found - value) <= 1e-6:
            raise ValueError(
                f"{name} of {system.task} is {found}, but the predictions give {value}"
            )


def _read_predictions(path: Path) -> tuple[Lines, Told]:
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise _broken(path, "is missing") from None
    except OSError as error:
        raise _broken(path, f"cannot be read ({error})") from error
    try:
        told = Told.of(_checked(lines, path))
        check_unique(told.ids, "predictions")
    except ValueError as error:
        raise _broken(path, f"cannot be scored ({error})") from error
    return lines, told


def _checked(lines: Lines, path: Path) -> Iterator[PredictionLine]:
    for number in range(len(lines)):
        try:
            yield lines[number]
        except UnicodeDecodeError as error:
            raise _broken(path, f"cannot be read ({error})") from error
        except ValueError as error:
            raise _broken(path, f"is damaged (line {number + 1}: {_reason(error)})") from error


def _reason(error: ValueError) -> str:
    return first_fault(error, "the line") if isinstance(error, ValidationError) else str(error)


def _broken(path: Path, fault: str) -> UserError:
    return UserError(f"{path} {fault}; make it with: {_command(path.parent)}")


def _command(folder: Path) -> str:
    """The command that makes results again."""
    run = folder.parent
    if folder.name == TUNED or (folder.name == ZERO_SHOT and is_file(run, TRAINING)):
        return command(run, f"{folder.name}/{RESULTS}")
    is_ours = folder.name == ZERO_SHOT and is_file(run, RECIPE)
    task = str(run / RECIPE) if is_ours else "TASK"
    return shlex.join(["llama-eval", "run", "--task", task, "--output", str(folder)])
