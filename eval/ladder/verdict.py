"""The verdict on a ladder: what is best, what is cheaper and as good, and what was not measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llama_peft.errors import UserError
from llama_peft.run_folder.record import read_record
from llama_peft.system.formatting import Sign, disk_space, duration, interval, memory, number

from ..metrics.catalogue import Metric
from ..metrics.intervals import Interval
from ..metrics.learning_curve import Point, examples_for
from ..report.table import Cell, Row, Table
from .causes import cause_of
from .forgetting import Forgetting, read_forgetting
from .read import Climbed, Rung, read_ladder
from .standing import Cost, Standing, best_of, mean_of, metric_of, standings

_MOST_NAMED = 2
"""So many missing steps of a ladder are named one by one."""


class Verdict(NamedTuple):
    """What a ladder says: its lines, at most eight, and its tables."""

    lines: tuple[str, ...]
    tables: tuple[Table, ...]
    """The rungs, and if several sizes were measured, the scores by size."""
    folders: tuple[Path, ...]
    """The folders of all results on all training examples."""
    climbed: Climbed
    metric: Metric
    """What the ladder is judged by."""
    standings: tuple[Standing, ...]


def judge(run: Path) -> Verdict:
    """Return the verdict on the ladder of a run folder. Raises UserError as `read_ladder`."""
    climbed = read_ladder(run)
    metric = metric_of(climbed)
    best = best_of(climbed, metric)
    standing = standings(climbed, metric, best)
    lines = [
        *_unbeaten(climbed, metric),
        *_best(climbed, standing, best, metric),
        *_cheaper(standing, best, metric),
        *_cost(standing, best),
        *_labels(climbed, metric),
        *_elsewhere(run),
        *_not_measured(climbed),
    ]
    folders = tuple(system.folder for rung in climbed.rungs for system in rung.systems)
    tables = [_table(climbed, standing, best, metric), *_by_size(climbed, metric)]
    return Verdict(tuple(lines), tuple(tables), folders, climbed, metric, tuple(standing))


def _unbeaten(climbed: Climbed, metric: Metric) -> Iterator[str]:
    """Say first if something cheaper is as good as the recipe's own training, and what to try."""
    tuned = climbed.rung("tuned")
    if tuned is None or metric.name not in tuned.measured:
        return
    sign = 1 if metric.higher_is_better else -1
    standing = standings(climbed, metric, tuned)
    below = standing[: next(i for i, one in enumerate(standing) if one.rung is tuned)]
    found = [(sign * one.gain.difference, one) for one in below if one.gain is not None]
    unbeaten = [pair for pair in found if pair[1].is_within_noise or pair[0] <= 0]
    if not unbeaten:
        return
    _, one = min(unbeaten, key=lambda pair: pair[0])
    word = "does not clearly beat" if one.is_within_noise else "is worse than"
    yield (
        f"Tuning {word} {one.rung.title}: {_score(tuned, metric)} against "
        f"{_score(one.rung, metric)} ({_change(one, metric)})."
    )
    cause = cause_of(climbed.run, tuned.first)
    if cause is not None:
        yield f"The likely cause: {cause.why}. Try {cause.override}."


def _best(climbed: Climbed, standing: list[Standing], best: Rung, metric: Metric) -> Iterator[str]:
    own = next(one for one in standing if one.rung is best)
    bounds = _bounds(own.mean.interval, metric)
    text = f"Best: {best.title}, {metric.name} {_score(best, metric)} {bounds}"
    base = next((one for one in standing if one.rung.name == "zero-shot"), None)
    if base is not None and base.gain is not None:
        text += f"; {_change(base, metric)} over the untouched base"
    yield f"{text}."


def _cheaper(standing: list[Standing], best: Rung, metric: Metric) -> Iterator[str]:
    """Name the cheapest rung that may be as good as the best one."""
    before = standing[: next(i for i, one in enumerate(standing) if one.rung is best)]
    if not before:
        return
    close = [one for one in before if one.is_within_noise]
    if not close:
        yield "Nothing cheaper is within the noise of it."
        return
    one = close[0]
    yield (
        f"The cheapest within its noise: {one.rung.title}, {_score(one.rung, metric)} "
        f"(p {_p(one.p_adjusted)}); more examples may tell them apart."
    )


def _cost(standing: list[Standing], best: Rung) -> Iterator[str]:
    cost = next(one.cost for one in standing if one.rung is best)
    words = [
        f"{duration(cost.train_seconds)} to train" if cost.train_seconds else "",
        f"{memory(cost.train_memory)} of memory" if cost.train_memory else "",
        f"{duration(cost.seconds_per_1000)} for 1,000 predictions" if cost.seconds_per_1000 else "",
        f"{disk_space(cost.bytes_to_ship)} to ship" if cost.bytes_to_ship else "",
    ]
    if kept := [word for word in words if word]:
        beside = f" ({cost.jobs} jobs at a time)" if cost.jobs > 1 else ""
        yield f"It takes {', '.join(kept)}{beside}."


def _labels(climbed: Climbed, metric: Metric) -> Iterator[str]:
    """Say what more training examples would bring, if the sizes that were measured can tell."""
    rung = climbed.rung("tuned") or climbed.rung("head")
    if rung is None or not climbed.smaller:
        return
    points = curve_of(climbed, rung, metric)
    if len(points) < 2:
        return
    sign = 1 if metric.higher_is_better else -1
    point = 1.0 if metric.is_percent else 0.01
    signed = [Point(one.examples, sign * one.score) for one in points]
    more = examples_for(signed, point)
    last, before = points[-1], points[-2]
    grown = number(last.score - before.score, metric.is_percent, "+")
    text = f"From {before.examples:,} to {last.examples:,} examples it gains {grown}"
    if more is None:
        yield f"{text}; no curve through the sizes foretells more."
    else:
        yield f"{text}; about {_rounded(more):,} more would buy one point, by the curve."


def curve_of(climbed: Climbed, rung: Rung, metric: Metric) -> list[Point]:
    """Return a rung's mean score on each number of training examples, the smallest first."""
    own = [(one.size or 0, one) for one in climbed.smaller if one.name == rung.name]
    sized = [*own, (climbed.examples, rung)]
    return sorted(Point(size, mean_of(one, metric).score) for size, one in sized)


def _elsewhere(run: Path) -> Iterator[str]:
    """Say what tuning costs on other text and another task, if it is more than chance."""
    found = _forgotten(run)
    if found is None:
        return
    words = []
    if found.writes_worse:
        before, after = found.perplexity
        words.append(f"the perplexity of ordinary text rises from {before:.1f} to {after:.1f}")
    if found.answers_worse:
        one, other = (f"{score:.2f}" for score in found.score)
        words.append(f"zero-shot on {found.task} falls from {one} to {other} ({found.metric})")
    if words:
        yield f"Tuning costs elsewhere: {', and '.join(words)}."


def _forgotten(run: Path) -> Forgetting | None:
    """Return what the present weights of a run cost elsewhere; None if that was not measured."""
    found = read_forgetting(run)
    try:
        return found if found and found.adapter_sha256 == read_record(run).weights_sha256 else None
    except UserError:
        return None


def _not_measured(climbed: Climbed) -> Iterator[str]:
    ladder, missing = climbed.recipe.ladder, list(climbed.missing)
    if len(missing) > _MOST_NAMED:
        missing = [f"{len(missing)} steps of this ladder (the same command continues)"]
    is_trained = any(rung.is_trained for rung in climbed.rungs)
    forgets = climbed.recipe.lora is not None and ladder.forgetting
    words = [
        "other seeds (ladder.seeds), so each difference is about one training only"
        if is_trained and len(ladder.seeds) < 2
        else "",
        "fewer labels (ladder.sizes)" if not ladder.sizes else "",
        "an encoder (ladder.encoder)"
        if ladder.encoder is None and climbed.recipe.kind.has_labels
        else "",
        "what tuning costs elsewhere" if forgets and not _forgotten(climbed.run) else "",
        *missing,
    ]
    if kept := [word for word in words if word]:
        yield f"Not measured: {'; '.join(kept)}."


def _table(climbed: Climbed, standing: list[Standing], best: Rung, metric: Metric) -> Table:
    rows = []
    for one in standing:
        bounds = _bounds(one.mean.interval, metric)
        cells = [
            Cell(number(one.mean.score, metric.is_percent), bounds),
            _gain_cell(one, metric),
            Cell(_p(one.p_adjusted)),
        ]
        rows.append(Row(one.rung.title, (*cells, *_costs(one.cost))))
    columns = (metric.name, "the best has more", "p", "train", "memory", "per 1,000", "to ship")
    shown = [i for i in range(len(columns)) if any(any(row.cells[i]) for row in rows)]
    return Table(
        title=f"{climbed.recipe.name} ({climbed.part}, {climbed.rungs[0].first.counted})",
        columns=tuple(columns[i] for i in shown),
        costs_from=len(shown),
        rows=tuple(row._replace(cells=tuple(row.cells[i] for i in shown)) for row in rows),
        notes=(f"{_how(climbed)}; p is corrected for the number of rungs (Holm).",),
    )


def _by_size(climbed: Climbed, metric: Metric) -> Iterator[Table]:
    """Yield the scores of the rungs that learn by the number of training examples, if several were
    measured.
    """
    learning = [one for one in climbed.rungs if one.name in {rung.name for rung in climbed.smaller}]
    if not learning:
        return
    rows = []
    for size in [*sorted({rung.size or 0 for rung in climbed.smaller}), None]:
        of_size = {one.name: one for one in (*climbed.smaller, *climbed.rungs) if one.size == size}
        cells = []
        for rung in learning:
            one = of_size.get(rung.name)
            mean = None if one is None else mean_of(one, metric)
            text = "" if mean is None else number(mean.score, metric.is_percent)
            cells.append(Cell(text, _bounds(mean.interval, metric) if mean else ""))
        rows.append(Row(f"{size or climbed.examples:,}", tuple(cells)))
    yield Table(
        title=f"{metric.name} by training examples",
        columns=tuple(rung.title for rung in learning),
        costs_from=len(learning),
        rows=tuple(rows),
        notes=(),
    )


def _how(climbed: Climbed) -> str:
    """Say what an interval covers."""
    seeds = max((len(rung.repeats) for rung in climbed.rungs if rung.is_trained), default=0)
    over = "the examples" if seeds < 2 else f"the examples and {seeds} seeds"
    if climbed.recipe.kind.side == "answers" and climbed.recipe.dataset.columns.context:
        over = over.replace("the examples", "the passages")
    return f"[low, high] is a 95 % interval over {over}"


def _gain_cell(one: Standing, metric: Metric) -> Cell:
    if one.gain is None:
        return Cell()
    text = number(one.gain.difference, metric.is_percent, "+")
    return Cell(text, _bounds(one.gain.interval, metric, "+"))


def _costs(cost: Cost) -> list[Cell]:
    return [
        Cell(duration(cost.train_seconds) if cost.train_seconds else ""),
        Cell(memory(cost.train_memory) if cost.train_memory else ""),
        Cell(duration(cost.seconds_per_1000) if cost.seconds_per_1000 else ""),
        Cell(disk_space(cost.bytes_to_ship) if cost.bytes_to_ship else ""),
    ]


def _bounds(found: Interval | None, metric: Metric, sign: Sign = "") -> str:
    return "" if found is None else interval(found.low, found.high, metric.is_percent, sign)


def _score(rung: Rung, metric: Metric) -> str:
    return number(mean_of(rung, metric).score, metric.is_percent)


def _change(one: Standing, metric: Metric) -> str:
    """Return what is gained over a rung, with its corrected p-value."""
    difference, bounds = _gain_cell(one, metric)
    return f"{difference} {bounds}, p {_p(one.p_adjusted)}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def _rounded(count: int) -> int:
    """Return a count with two digits: a curve knows no more."""
    digits = max(0, len(str(count)) - 2)
    return round(count, -digits)
