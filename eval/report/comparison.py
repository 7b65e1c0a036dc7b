"""comparison.json: what fine-tuning changed, as numbers for programs.

The program that writes the card reads it. It holds the checksums of the results that it was made
of, so that a reader sees whether they have changed since.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from llama_peft.run_folder.layout import COMPARISON, REPORT, RESULTS, TUNED, ZERO_SHOT
from llama_peft.system.files import sha256, with_sum, write_durably

from ..metrics.bootstrap import Paired
from ..metrics.catalogue import Metric
from ..results import SystemResults
from .table import differences, shown_metrics, why_not_comparable


class ComparedMetric(TypedDict):
    """One metric of both systems; the last three keys are there if the systems can be compared."""

    name: str
    percent: bool
    zero_shot: float | None
    zero_shot_ci95: Sequence[float] | None
    tuned: float | None
    tuned_ci95: Sequence[float] | None
    difference: NotRequired[float]
    difference_ci95: NotRequired[Sequence[float]]
    p: NotRequired[float]


class ComparedPart(TypedDict):
    """One evaluated part of the data."""

    task: str
    part: str
    examples: int
    not_comparable: str
    """How the evaluation of the tuned system differs; empty if the systems can be compared."""
    seen_in_training: int | None
    metrics: list[ComparedMetric]


def write_comparison(run: Path, pairs: Sequence[tuple[SystemResults, SystemResults]]) -> Path:
    """Write the run's comparison.json from its zero-shot and tuned systems by part."""
    content = {
        "results_sha256": {name: sha256(run / name / RESULTS) for name in (ZERO_SHOT, TUNED)},
        "report_sha256": sha256(run / REPORT),
        "parts": [_part(before, after) for before, after in pairs],
    }
    path = run / COMPARISON
    write_durably(path, json.dumps(with_sum(content), indent=1))
    return path


def _part(before: SystemResults, after: SystemResults) -> ComparedPart:
    reason = why_not_comparable(before, after)
    found = {} if reason else differences(before, after)
    return {
        "task": after.task,
        "part": after.part,
        "examples": len(after.lines),
        "not_comparable": reason,
        "seen_in_training": after.seen_in_training,
        "metrics": [
            _metric(metric, before, after, found.get(metric.name))
            for metric in shown_metrics([before, after])
        ],
    }


def _metric(
    metric: Metric, before: SystemResults, after: SystemResults, change: Paired | None
) -> ComparedMetric:
    line: ComparedMetric = {
        "name": metric.name,
        "percent": metric.is_percent,
        "zero_shot": before.score(metric.name),
        "zero_shot_ci95": before.interval(metric.name),
        "tuned": after.score(metric.name),
        "tuned_ci95": after.interval(metric.name),
    }
    if change is not None:
        line["difference"] = change.difference
        line["difference_ci95"] = [change.low, change.high]
        line["p"] = change.p_value
    return line
