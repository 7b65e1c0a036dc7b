"""comparison.json: what tuning bought in numbers, for readers that are programs; the card of a pushed run is one.

It names the sums of the results that it was made of, so that a reader sees when they have changed since.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_peft.run_folder.measured import COMPARISON, REPORT
from llama_peft.system.files import sha256, with_sum, write_durably

from ..metrics.names import INTERVAL_SUFFIX
from ..results import RESULTS, TUNED, ZERO_SHOT, Measured
from .table import differences, is_percent_metric, metric_columns, why_not_comparable


def write_comparison(run: Path, pairs: Sequence[tuple[Measured, Measured]]) -> Path:
    """Write the run's comparison.json from its zero-shot and tuned systems, a pair a part, beside the report of the same."""
    content = {
        "results_sha256": {name: sha256(run / name / RESULTS) for name in (ZERO_SHOT, TUNED)},
        "report_sha256": sha256(run / REPORT),
        "parts": [_part(before, after) for before, after in pairs],
    }
    path = run / COMPARISON
    write_durably(path, json.dumps(with_sum(content), indent=1))
    return path


def _part(before: Measured, after: Measured) -> dict[str, Any]:
    found = differences(before, after) if before.golds == after.golds else {}
    metrics = []
    for name in metric_columns([before, after]):
        line: dict[str, Any] = {"name": name, "percent": is_percent_metric(after, name)}
        for system, one in (("zero_shot", before), ("tuned", after)):
            line[system] = one.scores.get(name)
            line[f"{system}_ci95"] = one.scores.get(name + INTERVAL_SUFFIX)
        if name in found:
            change = found[name]
            line |= {
                "difference": change.difference,
                "difference_ci95": [change.low, change.high],
                "p": change.p_value,
            }
        metrics.append(line)
    return {
        "task": after.task,
        "part": after.part,
        "examples": len(after.lines),
        "not_comparable": why_not_comparable(before, after),
        "seen_in_training": after.seen_in_training,
        "metrics": metrics,
    }
