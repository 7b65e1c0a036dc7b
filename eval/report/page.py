"""report.html: one page that shows what fine-tuning changed, made of the files of a run folder.

The template engine escapes everything that comes from data, a model or a user, and the page forbids
itself scripts and requests. So a model's output cannot do anything in it.
"""

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llama_peft.errors import UserError
from llama_peft.run_folder.evaluations import read_evaluations
from llama_peft.run_folder.ladder.finished import read_finished
from llama_peft.run_folder.layout import HISTORY, RECIPE, REPORT, TUNED, ZERO_SHOT
from llama_peft.run_folder.record import read_record
from llama_peft.system.files import inside, read_text, sum_of, write_text

from ..metrics.catalogue import metrics_of
from ..metrics.classification import confusion
from ..metrics.confidence import reliability, selective_curve
from ..metrics.measure import Said, texts_of
from ..results import SystemResults, before_threshold, read_systems
from .chart import Point, coverage_chart, loss_chart, reliability_chart
from .comparison import check_replaceable, write_compared
from .table import Table, table

if TYPE_CHECKING:
    from ..ladder.verdict import Verdict

log = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_SAMPLE = 10
"""How many examples are shown that became right, and how many that became wrong."""
_LONGEST = 300
"""Characters of a text that are shown."""
_LARGEST_HISTORY = 50_000_000
"""Bytes; that of a million steps is smaller."""
_SHOWN_ELSEWHERE = {
    "results", "configs", "config", "versions", "n-samples", "higher_is_better", "wall_seconds",
    "peak_memory_bytes", "predictions_sha256", "version",
}  # fmt: skip
"""Keys of results.json that are not listed as configuration."""


class Share(NamedTuple):
    """A number of examples and its share of the row, 0 to 1."""

    examples: int
    share: float


class GridRow(NamedTuple):
    """The counts of one true label, or of one kind of question."""

    name: str
    cells: list[Share]


class Grid(NamedTuple):
    """Counts of what one system predicted, by what is true."""

    caption: str
    columns: tuple[str, ...]
    rows: list[GridRow]


class Changes(NamedTuple):
    """The examples that changed in one way: their number, and a sample of them as rows of text."""

    caption: str
    total: int
    columns: tuple[str, ...]
    sample: list[tuple[str, ...]]


class Part(NamedTuple):
    """What the page shows of one part of the data."""

    table: Table
    grids: list[Grid]
    changes: list[Changes]
    reliability: str
    """The chart of the tuned model's probabilities; empty if it has none."""
    coverage: str
    """The chart of what the surest predictions score; empty if no model says how sure it is."""


class Fact(NamedTuple):
    """A line of the configuration."""

    name: str
    value: str


def write_html(run_folder: Path, verdict: "Verdict | None" = None) -> Path:
    """Write report.html into the run folder and return its path.

    verdict: that of the run's ladder, if the caller knows it already.

    comparison.json, which the card needs, is written too. Raises UserError if the results in
    zero-shot/ or tuned/ cannot be read or are of other weights, or if the folder holds a report
    that is not ours.
    """
    run = Path(run_folder)
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; give a run folder with {ZERO_SHOT}/ and {TUNED}/")
    check_replaceable(run)
    zero_shot, tuned = _systems(run, ZERO_SHOT), _systems(run, TUNED)
    read_evaluations(run)
    verdict = verdict or _verdict(run)
    write_text(run, REPORT, _page(run, zero_shot, tuned, verdict))
    write_compared(run, list(_pairs(zero_shot, tuned)), verdict.lines if verdict else ())
    return run / REPORT


def _verdict(run: Path) -> "Verdict | None":
    """The verdict of the run's ladder; None if none was climbed."""
    if read_finished(run) is None:
        return None
    from ..ladder.verdict import judge

    return judge(run)


def _systems(run: Path, name: str) -> list[SystemResults]:
    inside(run, name)  # the folder may be a link that a stranger made
    return read_systems(run / name)


def _page(
    run: Path,
    zero_shot: Sequence[SystemResults],
    tuned: Sequence[SystemResults],
    verdict: "Verdict | None",
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(_TEMPLATE.name).render(
        name=tuned[0].config.recipe,
        verdict=verdict,
        parts=[_part(before, after) for before, after in _pairs(zero_shot, tuned)],
        chart=Markup(loss_chart(_history(run))),
        facts=_facts(tuned[0]),
        versions=tuned[0].results.versions,
        recipe=_recipe(run),
    )


def _pairs(
    zero_shot: Sequence[SystemResults], tuned: Sequence[SystemResults]
) -> Iterator[tuple[SystemResults, SystemResults]]:
    """The zero-shot and tuned system of each part that both were evaluated on."""
    before = {system.part: system for system in zero_shot}
    for after in tuned:
        if after.part in before:
            yield before[after.part], after
    if not {system.part for system in tuned} & before.keys():
        folder = tuned[0].folder.parent
        raise UserError(
            f"{folder}: {ZERO_SHOT} and {TUNED} were evaluated on different parts; "
            f"evaluate the same with: llama-eval run --model {folder} --output {folder / TUNED}"
        )


def _part(before: SystemResults, after: SystemResults) -> Part:
    return Part(
        table=table([before, after]),
        grids=[*_grids(before, ZERO_SHOT), *_grids(after, TUNED)],
        changes=_changes(before, after) if before.golds == after.golds else [],
        reliability=_reliability(after),
        coverage=_coverage({ZERO_SHOT: before, TUNED: after}),
    )


def _reliability(system: SystemResults) -> str:
    """The chart of how far probabilities can be trusted; empty if not every line has them."""
    from markupsafe import Markup

    known = {line.id: line.probabilities for line in system.lines if line.probabilities}
    size = len(system.labels)
    if system.side != "labels" or known.keys() != system.gold_labels.keys():
        return ""
    if any(len(own) != size or not all(0 <= one <= 1 for one in own) for own in known.values()):
        return ""
    bins = reliability(known, system.gold_labels, system.labels)
    return Markup(reliability_chart(*bins.values()))


def _coverage(systems: Mapping[str, SystemResults]) -> str:
    """The chart of what the surest predictions of each system score; empty if none says how sure it
    is.
    """
    from markupsafe import Markup

    curves = {name: _curve(system) for name, system in systems.items()}
    return Markup(coverage_chart({name: curve for name, curve in curves.items() if curve}))


def _curve(system: SystemResults) -> list[Point]:
    """What is right of the surest predictions, by the share that is kept: accuracy of labels, or exact
    match of answers (0 to 1). Empty if not every line says how sure it is.
    """
    if system.side == "labels":
        sureness = [max(line.probabilities) for line in system.lines if line.probabilities]
        right = [float(line.prediction == line.gold) for line in system.lines]
    elif system.side == "answers":
        known = (line.no_answer_probability for line in system.lines)
        sureness = [-one for one in known if one is not None]
        texts = {line.id: before_threshold(line, system.no_answer) for line in system.lines}
        right = [one / 100 for one in system.evidence_of(texts).vectors["exact"]]
    else:
        return []
    if len(sureness) < len(system.lines):
        return []
    curve = selective_curve(sureness, right)
    return [Point(*map(float, pair)) for pair in zip(*curve, strict=True)]


def _grids(system: SystemResults, name: str) -> list[Grid]:
    """Predicted labels by true labels, or kinds of answers by kinds of questions. None for numbers."""
    columns: tuple[str, ...]
    if system.side == "numbers":
        return []
    if system.side == "label_sets":
        columns, rows = ("right", "missed", "given by mistake"), _label_counts(system)
    elif system.side == "labels":
        counts = confusion(system.texts, system.gold_labels, system.labels)
        columns = (*system.labels, "no label")
        rows = {label: row.tolist() for label, row in zip(system.labels, counts, strict=True)}
        if not counts[:, -1].any():
            columns, rows = system.labels, {label: row[:-1] for label, row in rows.items()}
    else:
        columns = ("answered right", "answered wrong", "no answer")
        rows = _answer_counts(system)
    lines = [GridRow(label, _with_shares(row)) for label, row in rows.items()]
    return [Grid(name, columns, lines)]


def _label_counts(system: SystemResults) -> dict[str, list[int]]:
    """For each label: in how many texts it is right, missed, and given by mistake."""
    pairs = [(set(texts_of(line.gold)), set(texts_of(line.prediction))) for line in system.lines]
    return {
        label: [
            sum(label in gold & given for gold, given in pairs),
            sum(label in gold - given for gold, given in pairs),
            sum(label in given - gold for gold, given in pairs),
        ]
        for label in system.labels
    }


def _answer_counts(system: SystemResults) -> dict[str, list[int]]:
    counts = {"answerable": [0, 0, 0], "unanswerable": [0, 0, 0]}
    for line, exact in zip(system.lines, system.evidence.vectors["exact"], strict=True):
        row = counts["answerable" if any(texts_of(line.gold)) else "unanswerable"]
        row[2 if line.prediction == "" else 0 if exact else 1] += 1
    return {name: row for name, row in counts.items() if any(row)}


def _with_shares(row: Sequence[int]) -> list[Share]:
    total = sum(row) or 1
    return [Share(count, count / total) for count in row]


def _changes(before: SystemResults, after: SystemResults) -> list[Changes]:
    """The examples that became right and those that became wrong, with a fixed sample of each.

    A number is never quite right, so for numbers it is those whose error became smaller or larger.
    """
    metric, what = (
        metrics_of(after.side)[0].name,
        "Closer" if after.side == "numbers" else "Right only",
    )
    old = dict(zip(before.evidence.ids, before.evidence.vectors[metric], strict=True))
    new = dict(zip(after.evidence.ids, after.evidence.vectors[metric], strict=True))
    improved = sorted(key for key in new if new[key] > old[key])
    worsened = sorted(key for key in new if new[key] < old[key])
    return [
        _sample(f"{what} after fine-tuning", improved, before, after),
        _sample(f"{what} before fine-tuning", worsened, before, after),
    ]


def _sample(caption: str, keys: list[str], before: SystemResults, after: SystemResults) -> Changes:
    chosen = sorted(random.Random(0).sample(keys, min(_SAMPLE, len(keys))))
    texts = {line.id: line.text for line in after.lines}
    said = {"true": after.golds, ZERO_SHOT: before.predictions, TUNED: after.predictions}
    columns = {
        name: {key: _as_text(values[key]) for key in chosen} for name, values in said.items()
    }
    if any(texts[key] for key in chosen):
        columns = {"text": texts} | columns
    nothing = "(no label)" if after.labels else "(no answer)"
    rows = [
        (key, *(_short(column[key]) or nothing for column in columns.values())) for key in chosen
    ]
    return Changes(caption, len(keys), ("id", *columns), rows)


def _as_text(said: Said) -> str:
    if isinstance(said, float):
        return f"{said:.4g}"
    return said if isinstance(said, str) else " | ".join(dict.fromkeys(said))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _history(run: Path) -> list[Mapping[str, object]]:
    """The Trainer's log lines; none if the file is missing or damaged, as no score needs it."""
    try:
        text = read_text(run, HISTORY, largest=_LARGEST_HISTORY)
        if read_record(run).history_sha256 not in (None, sum_of(run, HISTORY)):
            raise ValueError("it is not what the training wrote")
        return [_object(line) for line in text.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, UserError) as error:
        log.warning("%s is damaged (%s): the report has no loss curve", run / HISTORY, error)
        return []


def _object(text: str) -> dict[str, object]:
    """The JSON object of a line. A training may have logged numbers that are not finite."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a line does not hold a JSON object")
    return value


def _facts(system: SystemResults) -> list[Fact]:
    """What is recorded of the system's model and evaluation."""
    known = system.config.model_dump()
    recorded = system.results.model_dump(by_alias=True)
    known |= {name: value for name, value in recorded.items() if name not in _SHOWN_ELSEWHERE}
    return list(_flat(known))


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[Fact]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield Fact(f"{prefix}{name}", f"{value:,}" if isinstance(value, int) else str(value))


def _recipe(run: Path) -> str:
    try:
        return read_text(run, RECIPE, errors="replace")
    except FileNotFoundError:
        return ""
