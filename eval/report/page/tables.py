"""The tables of the page: a compact one that is always seen, and one of every score, folded away."""

from collections.abc import Mapping

from llama_peft.system.formatting import (
    disk_space,
    duration,
    interval,
    memory,
    number,
    p_value,
)

from ...metrics.catalogue import Metric, metrics_of
from ...metrics.intervals import Difference, paired
from ...results import SystemResults
from ..table import Cell, Row, Table, why_not_comparable
from .part import Part


def compact(part: Part) -> Table:
    """Return each system with its main score, what it has more than the first one, and its costs."""
    metric, first = part.metric, part.first
    columns = (
        metric.name,
        f"more than {part.before}",
        "p",
        "train",
        "memory",
        "per 1,000",
        "to ship",
    )
    rows = []
    for name, system in part.systems.items():
        score = _score(system, metric.name, metric.is_percent)
        rows.append(Row(name, (score, *_gain(first, system, part), *_costs(system))))
    shown = [i for i in range(len(columns)) if any(any(row.cells[i]) for row in rows)]
    return Table(
        title=part.title,
        columns=tuple(columns[i] for i in shown),
        costs_from=len(shown),
        rows=tuple(row._replace(cells=tuple(row.cells[i] for i in shown)) for row in rows),
        notes=("[low, high] is a 95 % interval over the examples.",),
    )


def every_score(part: Part) -> Table:
    """Return every recorded score, a row each, with a column for each system."""
    rows = []
    for metric in metrics_of(part.first.side):
        cells = tuple(
            _score(system, metric.name, metric.is_percent)
            if _is_recorded(system, metric.name)
            else Cell()
            for system in part.systems.values()
        )
        if any(any(cell) for cell in cells):
            rows.append(Row(metric.name, cells))
    names = tuple(part.systems)
    return Table(
        title="Every score",
        columns=names,
        costs_from=len(names),
        rows=tuple(rows),
        notes=(),
        corner="score",
    )


def headline(part: Part) -> list[str]:
    """Return in one sentence what the compared system changed; nothing if there is one system, or if
    the two cannot be compared.
    """
    metric, before, after = part.metric, part.first, part.systems[part.after]
    if before is after:
        return []
    if reason := why_not_comparable(before, after):
        return [f"{part.after} was {reason} than {part.before}, so the two cannot be compared."]
    change = _change(before, after, metric)
    if change is None:
        return []
    better = (change.difference > 0) == metric.higher_is_better and change.difference != 0
    word = "better" if better else "worse"
    verb = f"is {word} than" if change.p_value < 0.05 else "is not clearly different from"
    one, other = (_score(system, metric.name, metric.is_percent).text for system in (after, before))
    gain = number(change.difference, metric.is_percent, "+")
    bounds = interval(change.interval.low, change.interval.high, metric.is_percent, "+")
    return [
        f"{part.after} {verb} {part.before}: {metric.name} {one} against {other} "
        f"({gain} {bounds}, p {p_value(change.p_value).removeprefix('= ')})."
    ]


def _change(first: SystemResults, second: SystemResults, metric: Metric) -> Difference | None:
    """Return the second system against the first in one metric."""
    return paired(first.evidence, second.evidence, first.groups or second.groups).get(metric.name)


def _is_recorded(system: SystemResults, name: str) -> bool:
    return system.recorded(name) is not None


def _score(system: SystemResults, name: str, is_percent: bool) -> Cell:
    score, bounds = system.score(name), system.interval(name)
    if score is None:
        return Cell()
    return Cell(
        number(score, is_percent), interval(bounds.low, bounds.high, is_percent) if bounds else ""
    )


def _gain(first: SystemResults, system: SystemResults, part: Part) -> tuple[Cell, Cell]:
    metric = part.metric
    if system is first or why_not_comparable(first, system):
        return Cell(), Cell()
    change = _change(first, system, metric)
    if change is None:
        return Cell(), Cell()
    bounds = interval(change.interval.low, change.interval.high, metric.is_percent, "+")
    gain = Cell(number(change.difference, metric.is_percent, "+"), bounds)
    return gain, Cell(p_value(change.p_value).removeprefix("= "))


def _costs(system: SystemResults) -> list[Cell]:
    training, costs = system.config.training, system.results.costs
    seconds = training.wall_seconds if training.wall_seconds is not None else costs.fit_seconds
    peak = training.peak_memory_bytes or system.results.peak_memory_bytes
    rate, size = costs.seconds_per_1000, costs.bytes_to_ship
    return [
        Cell(duration(seconds) if seconds else ""),
        Cell(memory(peak) if peak else ""),
        Cell(duration(rate) if rate is not None else ""),
        Cell(disk_space(size) if size else ""),
    ]


def seconds_to_train(systems: Mapping[str, SystemResults]) -> dict[str, float]:
    """Return the seconds to train or to fit each system, of those for which they are known."""
    found = {}
    for name, system in systems.items():
        seconds = system.config.training.wall_seconds
        fit = system.results.costs.fit_seconds
        known = seconds if seconds is not None else fit
        if known is not None:
            found[name] = known
    return found
