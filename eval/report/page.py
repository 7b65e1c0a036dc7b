"""report.html: one self-contained page of what tuning bought, made of a run folder's files.

Everything in it that comes from data, a model or a user is escaped by the template engine, and the
page forbids itself scripts and requests, so that a model's output can do nothing in it.
"""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_peft.errors import UserError
from llama_peft.run_folder.measured import HISTORY, REPORT, TRAINING, check_own, values
from llama_peft.system.files import sha256

from ..metrics.classification import confusion
from ..results import TUNED, ZERO_SHOT, Measured, read
from .chart import loss_chart
from .comparison import write_comparison
from .table import table

log = logging.getLogger(__name__)

_SAMPLE = 10
"""Examples shown of those that tuning put right, and of those that it broke."""
_LONGEST = 300


class Grid(NamedTuple):
    """Counts by row and column, each with its share of the row (0 to 1)."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list[tuple[int, float]]]]


class Changes(NamedTuple):
    """A sample of the examples that went one way, of how many, as rows of text."""

    caption: str
    total: int
    columns: tuple[str, ...]
    sample: list[tuple[str, ...]]


def write_html(run_folder: Path) -> Path:
    """Write `report.html` and, for the card, `comparison.json` into the run folder; return the page's path.

    Raises UserError when the results of zero-shot/ or tuned/ cannot be read, or are of other weights.
    """
    run = Path(run_folder)
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give a run folder with {ZERO_SHOT}/ and {TUNED}/")
    zero_shot, tuned = read(run / ZERO_SHOT), read(run / TUNED)
    check_own(run)
    path = run / REPORT
    partial = path.with_name(REPORT + ".partial")
    partial.write_text(_page(run, zero_shot, tuned), encoding="utf-8")
    partial.replace(path)
    write_comparison(run, list(_pairs(zero_shot, tuned)))
    return path


def _page(run: Path, zero_shot: Sequence[Measured], tuned: Sequence[Measured]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from .template import TEMPLATE

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE).render(
        name=tuned[0].config.recipe,
        parts=[_part(before, after) for before, after in _pairs(zero_shot, tuned)],
        chart=Markup(loss_chart(_history(run))),
        facts=_facts(tuned[0]),
        versions=tuned[0].results.versions,
        recipe=_recipe(run),
    )


def _pairs(
    zero_shot: Sequence[Measured], tuned: Sequence[Measured]
) -> Iterator[tuple[Measured, Measured]]:
    before = {one.part: one for one in zero_shot}
    for after in tuned:
        if after.part in before:
            yield before[after.part], after
    if not {one.part for one in tuned} & before.keys():
        folder = tuned[0].folder.parent
        raise UserError(
            f"{folder}: {ZERO_SHOT} and {TUNED} were measured on different parts; "
            f"make them alike with: llama-eval run --model {folder} --output {folder / TUNED}"
        )


def _part(before: Measured, after: Measured) -> dict[str, Any]:
    comparable = before.golds == after.golds
    return {
        "table": table([before, after]),
        "grids": [_grid(before, ZERO_SHOT), _grid(after, TUNED)],
        "changes": _changes(before, after) if comparable else [],
    }


def _grid(one: Measured, name: str) -> Grid:
    """What was said by what is true: labels by labels, or kinds of answers by answerability."""
    if one.labels:
        counts = confusion(list(one.predictions.values()), list(one.golds.values()), one.labels)
        columns = (*one.labels, "no label")
        rows = [(label, row.tolist()) for label, row in zip(one.labels, counts, strict=True)]
        if not counts[:, -1].any():
            columns, rows = one.labels, [(label, row[:-1]) for label, row in rows]
    else:
        columns = ("answered right", "answered wrong", "no answer")
        rows = _answer_counts(one)
    return Grid(name, columns, [(label, _with_shares(row)) for label, row in rows])


def _answer_counts(one: Measured) -> list[tuple[str, list[int]]]:
    counts = {"answerable": [0, 0, 0], "unanswerable": [0, 0, 0]}
    for line, exact in zip(one.lines, one.evidence.vectors["exact"], strict=True):
        row = counts["answerable" if any(line.gold) else "unanswerable"]
        row[2 if line.prediction == "" else 0 if exact else 1] += 1
    return [(name, row) for name, row in counts.items() if any(row)]


def _with_shares(row: Sequence[int]) -> list[tuple[int, float]]:
    total = sum(row) or 1
    return [(count, count / total) for count in row]


def _changes(before: Measured, after: Measured) -> list[Changes]:
    """The examples that tuning put right and those that it broke, a fixed random sample of each."""
    metric = "accuracy" if after.labels else "exact"
    old = dict(zip(before.evidence.ids, before.evidence.vectors[metric], strict=True))
    new = dict(zip(after.evidence.ids, after.evidence.vectors[metric], strict=True))
    fixed = sorted(key for key in new if new[key] > old[key])
    broken = sorted(key for key in new if new[key] < old[key])
    return [
        _sample("Fixed by tuning", fixed, before, after),
        _sample("Broken by tuning", broken, before, after),
    ]


def _sample(caption: str, keys: list[str], before: Measured, after: Measured) -> Changes:
    chosen = sorted(random.Random(0).sample(keys, min(_SAMPLE, len(keys))))
    texts = {line.id: line.text for line in after.lines}
    columns: dict[str, dict[str, str]] = {
        "true": {key: _gold(after.golds[key]) for key in chosen},
        ZERO_SHOT: before.predictions,
        TUNED: after.predictions,
    }
    if any(texts[key] for key in chosen):
        columns = {"text": texts} | columns
    nothing = "(no label)" if after.labels else "(no answer)"
    rows = [
        (key, *(_short(column[key]) or nothing for column in columns.values())) for key in chosen
    ]
    return Changes(caption, len(keys), ("id", *columns), rows)


def _gold(gold: str | list[str]) -> str:
    return gold if isinstance(gold, str) else " | ".join(dict.fromkeys(gold))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _history(run: Path) -> list[dict[str, Any]]:
    """The Trainer's log lines; none where they are not there, or not whole, which is no reason to show no number."""
    path = run / HISTORY
    if not path.is_file():
        return []
    try:
        if values(run, TRAINING).get("history_sha256") not in (None, sha256(path)):
            raise ValueError("it is not what the training wrote")
        return [dict(json.loads(text)) for text in path.read_text("utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        log.warning("%s is damaged (%s): the report has no loss curve", path, error)
        return []


def _facts(one: Measured) -> list[tuple[str, str]]:
    """What the tuned system was, as lines of name and value."""
    known = one.config.model_dump() | (one.results.model_extra or {})
    left_out = {"n-samples", "higher_is_better"}
    return [(name, value) for name, value in _flat(known) if name.split(".")[0] not in left_out]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", f"{value:,}" if isinstance(value, int) else str(value)


def _recipe(run: Path) -> str:
    path = run / "recipe.yaml"
    return path.read_text("utf-8", "replace") if path.is_file() else ""
