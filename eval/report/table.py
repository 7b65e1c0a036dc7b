"""Systems side by side: one table for what was measured on the same part of the same kind of task.

The first system of a table is the one that the others are compared to, on the same examples or not
at all. Cells are text already; `report` and `report_page` only lay them out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..metrics.bootstrap import Paired, paired, point
from ..metrics.names import INTERVAL_SUFFIX
from ..metrics.overlap import bleu_signature
from ..results import Measured, evidence_of, read, result_folders

LABEL_COLUMNS = ("accuracy", "precision", "recall", "f1", "unparsable")
PERCENT_COLUMNS = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact")
OVERLAP_COLUMNS = ("bleu", "rougeL", "meteor", "meteor_no_wordnet")
ANSWER_COLUMNS = (
    *PERCENT_COLUMNS,
    *(prefix + name for name in OVERLAP_COLUMNS for prefix in ("", "HasAns_")),
)
COST_COLUMNS = (
    "trainable",
    "train time",
    "train memory",
    "eval time",
    "eval memory",
)


class Cell(NamedTuple):
    """A number as text and, where it has one, its interval."""

    text: str = ""
    interval: str = ""


class Row(NamedTuple):
    """A line of a table; `is_detail` marks one that belongs to the system above it."""

    name: str
    cells: tuple[Cell, ...]
    is_detail: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows are systems, columns metrics and then costs."""

    title: str
    columns: tuple[str, ...]
    costs_from: int
    """Number of the first column that is a cost."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def systems(self) -> tuple[Row, ...]:
        """The rows of measured systems: no details, no floor."""
        return tuple(row for row in self.rows if any(map(any, row.cells[self.costs_from :])))


def compare(folders: Sequence[Path]) -> list[Table]:
    """Tables of the results in these folders; a run folder stands for its zero-shot/ and tuned/.

    Raises UserError for a folder without sound results.
    """
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for folder in folders:
        for inner in result_folders(Path(folder)):
            for one in read(inner):
                groups.setdefault((one.labels, one.part), []).append(one)
    return [table(group) for group in groups.values()]


def table(systems: Sequence[Measured]) -> Table:
    """One table; its first row is what the other systems are compared to."""
    first = systems[0]
    metrics = metric_columns(systems)
    names = _system_names(systems)
    costs = [cost(one) for one in systems]
    cost_columns = [name for name in COST_COLUMNS if any(name in price for price in costs)]
    rows: list[Row] = []
    notes: list[str] = []
    for one, name, price in zip(systems, names, costs, strict=True):
        cells = [_score(one, metric) for metric in metrics]
        rows.append(Row(name, (*cells, *(Cell(price.get(c, "")) for c in cost_columns))))
        if one.seen_in_training:
            notes.append(
                f"{name}: {one.seen_in_training:,} of the {len(one.lines):,} examples read the same as one that it was "
                "trained on."
            )
        if one is not first:
            reason = why_not_comparable(first, one)
            if reason:
                notes.append(f"{name}: {reason}, so no difference is shown.")
            else:
                rows += _difference_rows(differences(first, one), metrics, first, len(cost_columns))
    notes.insert(0, _intervals_note(names[0], any(row.is_detail for row in rows)))
    floor = _floor_row(first, metrics, len(cost_columns))
    if not first.labels:
        notes.append(f"{', '.join(PERCENT_COLUMNS)} in percent, the others as fractions of 1.")
        notes.append(f"BLEU: {bleu_signature()}")
    return Table(
        title=_title(systems),
        columns=(*(_header(first, name) for name in metrics), *cost_columns),
        costs_from=len(metrics),
        rows=(*rows, *([floor] if floor else [])),
        notes=tuple(notes),
    )


def differences(first: Measured, second: Measured) -> dict[str, Paired]:
    """The second system against the first in every metric that the predictions give."""
    result = paired(first.evidence, second.evidence)
    if first.overlap is not None and second.overlap is not None:
        result |= paired(first.overlap, second.overlap)
    return result


def number(value: float, is_percent: bool, sign: str = "") -> str:
    """As every table writes it: two decimals of a percentage, four of a fraction."""
    return f"{value:{sign}.{2 if is_percent else 4}f}"


def bounds(low: float, high: float, is_percent: bool, sign: str = "") -> str:
    """An interval, with a decimal less than its number."""
    decimals = 1 if is_percent else 3
    return f"[{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"


def cost(one: Measured) -> dict[str, str]:
    """What results.json knows of a system's price, as text by column."""
    parameters, training = one.config.parameters, one.config.training
    known: dict[str, tuple[float | None, Callable[[float], str]]] = {
        "trainable": (parameters.get("trainable"), "{:,}".format),
        "train time": (training.wall_seconds, duration),
        "train memory": (training.peak_memory_bytes, memory),
        "eval time": (one.results.wall_seconds, duration),
        "eval memory": (one.results.peak_memory_bytes, memory),
    }
    return {name: write(value) for name, (value, write) in known.items() if value is not None}


def duration(seconds: float) -> str:
    """12.3 s, 12 min 30 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def memory(size: float) -> str:
    """Bytes in GB of 10**9 bytes."""
    return f"{size / 1e9:.2f} GB"


def _title(systems: Sequence[Measured]) -> str:
    tasks = ", ".join(dict.fromkeys(one.task for one in systems))
    return f"{tasks} ({systems[0].part}, {len(systems[0].lines):,} examples)"


def _system_names(systems: Sequence[Measured]) -> list[str]:
    """What kind of model each is, with the base and then the folder where that says too little."""
    names = [one.config.model_kind for one in systems]
    if len({one.config.model for one in systems}) > 1:
        bases = [Path(str(one.config.model)).name for one in systems]
        names = [f"{base}, {name}" for base, name in zip(bases, names, strict=True)]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} ({one.folder})"
        for name, one in zip(names, systems, strict=True)
    ]


def metric_columns(systems: Sequence[Measured]) -> list[str]:
    known = LABEL_COLUMNS if systems[0].labels else ANSWER_COLUMNS
    columns = [name for name in known if any(name in one.scores for one in systems)]
    if not any(one.scores.get("unparsable") for one in systems) and "unparsable" in columns:
        columns.remove("unparsable")
    return columns


def is_percent_metric(one: Measured, metric: str) -> bool:
    return not one.labels and metric in PERCENT_COLUMNS


def _header(one: Measured, metric: str) -> str:
    """A metric as a table calls it: of more labels than two its mean over them."""
    averaged = len(one.labels) > 2 and metric in ("precision", "recall", "f1")
    return f"{metric} (macro)" if averaged else metric


def _score(one: Measured, metric: str) -> Cell:
    if metric not in one.scores:
        return Cell()
    percent = is_percent_metric(one, metric)
    text = number(one.scores[metric], percent)
    low, high = one.scores.get(metric + INTERVAL_SUFFIX, (None, None))
    return Cell(text, "" if low is None else bounds(low, high, percent))


def _difference_rows(
    found: Mapping[str, Paired], metrics: Sequence[str], first: Measured, blank: int
) -> list[Row]:
    changes, chances, counts = [], [], []
    for metric in metrics:
        one = found.get(metric)
        if one is None:
            changes.append(Cell())
            chances.append(Cell())
            counts.append(Cell())
            continue
        percent = is_percent_metric(first, metric)
        change = number(one.difference, percent, "+")
        changes.append(Cell(change, bounds(one.low, one.high, percent, "+")))
        chances.append(Cell(f"{one.p_value:.3f}"))
        counts.append(Cell() if one.wins is None else Cell(f"{one.wins:,} / {one.losses:,}"))
    filler = [Cell()] * blank
    return [
        Row("difference", (*changes, *filler), is_detail=True),
        Row("p", (*chances, *filler), is_detail=True),
        Row("better / worse", (*counts, *filler), is_detail=True),
    ]


def why_not_comparable(first: Measured, second: Measured) -> str:
    """Why no difference between two systems can be given; empty where it can."""
    one, other = first.golds, second.golds
    if one.keys() != other.keys():
        common = len(one.keys() & other.keys())
        return f"measured on other examples ({len(other):,}, of which {common:,} in common)"
    return "" if one == other else "measured against other references of the same examples"


def _floor_row(first: Measured, metrics: Sequence[str], blank: int) -> Row | None:
    """What a system that always says the same would score: silence, or the commonest label."""
    golds: dict[str, Any] = first.golds
    if first.labels:
        says = Counter(golds.values()).most_common(1)[0][0]
        name = f"always {says!r}"
    elif all(map(any, golds.values())):
        return None
    else:
        says, name = "", "always no answer"
    scores = point(evidence_of(dict.fromkeys(golds, says), golds, first.labels))
    cells = [
        Cell(number(scores[metric], is_percent_metric(first, metric)))
        if metric in scores
        else Cell()
        for metric in metrics
    ]
    return Row(name, (*cells, *[Cell()] * blank))


def _intervals_note(name: str, differences_shown: bool) -> str:
    note = "[low, high]: 95 % bootstrap interval over the examples."
    if differences_shown:
        note += (
            f" Differences are to {name}, paired by example; p by approximate randomisation"
            " (1,000 draws, so never below 0.001)."
        )
    return note
