"""Systems side by side: one table for each kind of task and part of its data.

The other systems of a table are compared with its first one, if both have the same examples. Cells
are text already; `text` and `page` only lay them out.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from llama_peft.system.formatting import duration, interval, memory, number, p_value

from ..metrics.catalogue import Metric, metrics_of
from ..metrics.evidence import scores_of
from ..metrics.ids import are_same, matched
from ..metrics.intervals import Difference, paired
from ..metrics.measure import Said
from ..metrics.words.overlap import bleu_signature
from ..results import SystemResults
from .beside import systems_in, what_differs

COST_COLUMNS = ("trainable", "train time", "train memory", "eval time", "eval memory")

_UNEVEN = 3
"""How much more common than the rarest label another one is if labels are called uneven."""


class Cell(NamedTuple):
    """A number as text, and its interval if it has one."""

    text: str = ""
    interval: str = ""


class Row(NamedTuple):
    """A line of a table; `is_detail` marks one that belongs to the system above it."""

    name: str
    cells: tuple[Cell, ...]
    is_detail: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows are systems; columns are metrics, then costs."""

    title: str
    columns: tuple[str, ...]
    costs_from: int
    """The index of the first column that is a cost."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    corner: str = "system"
    """What the rows are."""


def compare(folders: Sequence[Path], against: str | None = None) -> list[Table]:
    """The tables of the results in these folders, as `beside.systems_in` puts them together.

    Raises UserError if a folder's results are missing or cannot be trusted.
    """
    tables = []
    for systems, notes in systems_in(folders, against):
        one = table(systems)
        tables.append(replace(one, notes=(*one.notes, *notes, *what_differs(systems))))
    return tables


def table(systems: Sequence[SystemResults]) -> Table:
    """One table, in which the other systems are compared with the first."""
    first, names = systems[0], system_names(systems)
    metrics = shown_metrics(systems)
    costs = [_costs(system) for system in systems]
    cost_columns = [name for name in COST_COLUMNS if any(name in known for known in costs)]
    blank = [Cell()] * len(cost_columns)
    rows: list[Row] = []
    for system, name, known in zip(systems, names, costs, strict=True):
        cells = [_score(system, metric) for metric in metrics]
        rows.append(Row(name, (*cells, *(Cell(known.get(column, "")) for column in cost_columns))))
        if system is not first and not why_not_comparable(first, system):
            details = _difference_rows(differences(first, system), metrics)
            rows += [Row(name, (*cells, *blank), is_detail=True) for name, cells in details]
    if constant := _constant_system(first, metrics):
        rows.append(Row(constant.name, (*constant.cells, *blank)))
    return Table(
        title=_title(systems),
        columns=(*(_header(first, metric) for metric in metrics), *cost_columns),
        costs_from=len(metrics),
        rows=tuple(rows),
        notes=tuple(_notes(systems, names, any(row.is_detail for row in rows))),
    )


def differences(first: SystemResults, second: SystemResults) -> dict[str, Difference]:
    """The second system against the first in every metric that the predictions give."""
    # Only one of the two may know the passages: files of version 0.1.0 do not.
    groups = first.groups or second.groups
    result = paired(first.evidence, second.evidence, groups)
    for one, other in zip(first.overlap_evidences, second.overlap_evidences, strict=True):
        result |= paired(one, other, groups)
    return result


def why_not_comparable(first: SystemResults, second: SystemResults) -> str:
    """How the second system's evaluation differs; empty if the two can be compared.

    The text stands between "the second system was" and "than the first".
    """
    one, other = first.golds, second.golds
    if not are_same(one.ids, other.ids):
        common = len(np.intersect1d(one.ids, other.ids))
        return f"evaluated on other examples ({len(other):,} examples, {common:,} in common)"
    equal = all(right == same for right, same in matched(one, other))
    return "" if equal else "evaluated against other references for the same examples"


def shown_metrics(systems: Sequence[SystemResults]) -> list[Metric]:
    """The metrics that have a column in the table of these systems, in order."""
    shown, counts = [], Counter(systems[0].gold_labels.values()).values()
    uneven = bool(counts) and max(counts) >= _UNEVEN * min(counts)
    for metric in metrics_of(systems[0].side):
        scores = [system.recorded(metric.name) for system in systems]
        is_known = any(scores) or (not metric.hidden_at_zero and any(s is not None for s in scores))
        if metric.in_tables and is_known and (uneven or not metric.only_if_uneven):
            shown.append(metric)
    return shown


def _costs(system: SystemResults) -> dict[str, str]:
    """What is known of a system's costs, as text by column."""
    parameters, training = system.config.parameters, system.config.training
    known: dict[str, tuple[float | None, Callable[[float], str]]] = {
        "trainable": (parameters.get("trainable"), "{:,}".format),
        "train time": (training.wall_seconds, duration),
        "train memory": (training.peak_memory_bytes, memory),
        "eval time": (system.results.wall_seconds, duration),
        "eval memory": (system.results.peak_memory_bytes, memory),
    }
    return {name: write(value) for name, (value, write) in known.items() if value is not None}


def _title(systems: Sequence[SystemResults]) -> str:
    tasks = ", ".join(dict.fromkeys(system.task for system in systems))
    return f"{tasks} ({systems[0].part}, {systems[0].counted})"


def system_names(systems: Sequence[SystemResults]) -> list[str]:
    """The kind of model of each system, with its base and folder if several would look alike."""
    names = [system.config.model_kind for system in systems]
    if len({system.config.model for system in systems}) > 1:
        known = [system.config.model or system.config.predictions or "?" for system in systems]
        pairs = zip([Path(one).name for one in known], names, strict=True)
        names = [", ".join(dict.fromkeys(pair)) for pair in pairs]  # a baseline has no other base
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} ({system.folder})"
        for name, system in zip(names, systems, strict=True)
    ]


def _header(first: SystemResults, metric: Metric) -> str:
    is_mean = metric.is_label_mean and len(first.labels) > 2
    return f"{metric.name} (macro)" if is_mean else metric.name


def _score(system: SystemResults, metric: Metric) -> Cell:
    score, bounds = system.score(metric.name), system.interval(metric.name)
    if score is None:
        return Cell()
    text = number(score, metric.is_percent)
    return Cell(text, interval(bounds.low, bounds.high, metric.is_percent) if bounds else "")


def _difference_rows(
    found: Mapping[str, Difference], metrics: Sequence[Metric]
) -> list[tuple[str, list[Cell]]]:
    """The rows below a system that is compared with the first: name and cells of each."""
    rows: dict[str, list[Cell]] = {}
    for metric in metrics:
        for name, cell in _difference_cells(found.get(metric.name), metric).items():
            rows.setdefault(name, []).append(cell)
    return [*rows.items()]


def _difference_cells(one: Difference | None, metric: Metric) -> dict[str, Cell]:
    if one is None:
        return dict.fromkeys(("difference", "p", "p (exact)", "better / worse"), Cell())
    bounds = interval(one.interval.low, one.interval.high, metric.is_percent, "+")
    return {
        "difference": Cell(number(one.difference, metric.is_percent, "+"), bounds),
        "p": Cell(p_value(one.p_value).removeprefix("= ")),
        "p (exact)": Cell("" if one.exact_p is None else p_value(one.exact_p).removeprefix("= ")),
        "better / worse": Cell(
            f"{one.counts.wins:,} / {one.counts.losses:,}" if one.counts else ""
        ),
    }


def _constant_system(first: SystemResults, metrics: Sequence[Metric]) -> Row | None:
    """The scores of a system that says the same of every example: the commonest label, the labels
    that most texts have, the mean, or no answer.

    None if every question has an answer: always predicting none would score 0.
    """
    says: Said = ""
    if first.side == "labels":
        says = Counter(first.gold_labels.values()).most_common(1)[0][0]
        name = f"always {says!r}"
    elif first.side == "label_sets":
        counts = Counter(label for own in first.gold_lists.values() for label in own)
        says = [label for label in first.labels if 2 * counts[label] > len(first.lines)]
        name = f"always {', '.join(map(repr, says)) or 'no label'}"
    elif first.side == "numbers":
        says = fmean(one for one in first.golds.values() if isinstance(one, float))
        name = f"always the mean, {says:.4g}"
    elif all(map(any, first.gold_lists.values())):
        return None
    else:
        name = "always no answer"
    scores = scores_of(first.evidence_of(first.golds.each(says)))
    return Row(
        name,
        tuple(
            Cell(number(scores[metric.name], metric.is_percent) if metric.name in scores else "")
            for metric in metrics
        ),
    )


def _notes(
    systems: Sequence[SystemResults], names: Sequence[str], differences_shown: bool
) -> list[str]:
    first, note = systems[0], "[low, high] is a 95 % interval over the examples."
    if any(system.groups for system in systems):
        note = f"{note[:-1]}, in which those of one passage or group count together."
    if differences_shown:
        note += (
            f" Differences are to {names[0]} on the same examples. Their interval leaves out 0 if p is"
            " below 0.05; p (exact) assumes less and finds less: it is McNemar's for right and wrong,"
            " and else that of randomisation (2,000 swaps)."
        )
    notes = [note]
    for system, name in zip(systems, names, strict=True):
        if system.seen_in_training:
            notes.append(
                f"{name}: {system.seen_in_training:,} of the {len(system.lines):,} examples are the"
                " same as an example that it was trained on."
            )
        if reason := why_not_comparable(first, system):
            notes.append(f"{name} was {reason} than {names[0]}, so the two cannot be compared.")
    if first.side == "answers":
        shown = shown_metrics(systems)
        percent = ", ".join(metric.name for metric in shown if metric.is_percent)
        notes.append(f"{percent} are percentages; the other scores are fractions of 1.")
        notes.append(f"BLEU settings: {bleu_signature()}")
        notes += _unicode_notes({metric.name for metric in shown})
    return notes


def _unicode_notes(shown: Collection[str]) -> list[str]:
    """What the columns for other scripts than a-z mean, if the table has them."""
    notes = []
    if "rougeL_unicode" in shown:
        notes.append(
            "rouge-score reads only a-z and 0-9, so rougeL is 0 for a right answer in another"
            " script; the scores in _unicode read every script."
        )
    if "bleu_char" in shown:
        notes.append(f"bleu_char settings: {bleu_signature('char')}")
    return notes
