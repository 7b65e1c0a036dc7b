"""comparison.json: what fine-tuning changed, as numbers for programs.

The program that writes the card reads it. It holds the checksums of the results that it was made
of, so that a reader sees whether they have changed since.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.run_folder.comparison import (
    Comparison,
    MetricComparison,
    PartComparison,
    write_comparison,
)
from llama_peft.run_folder.evaluations import results_sums
from llama_peft.run_folder.layout import COMPARISON, REPORT
from llama_peft.run_folder.ownership import is_our_file
from llama_peft.system.files import sum_of

from ..metrics.catalogue import Metric
from ..metrics.intervals import Difference, Interval
from ..results import SystemResults
from .table import differences, shown_metrics, why_not_comparable


def write_compared(
    run: Path,
    pairs: Sequence[tuple[SystemResults, SystemResults]],
    verdict: Sequence[str],
    charts: Mapping[str, str],
) -> None:
    """Write the run's comparison.json from its zero-shot and tuned systems by part.

    verdict: the lines of its ladder's verdict. charts: the sum of each chart by its name.
    """
    comparison = Comparison(
        results_sha256=results_sums(run),
        report_sha256=sum_of(run, REPORT),
        parts=[_part(before, after) for before, after in pairs],
    )
    more = {"charts_sha256": dict(charts), "verdict": [*verdict]}
    known = {name: value for name, value in more.items() if value}
    write_comparison(run, comparison.model_copy(update=known))


def check_replaceable(run: Path, charts: Sequence[str] = ()) -> None:
    """Raise UserError if the run holds a report, a comparison or charts of these names that are not
    ours.
    """
    for name in (COMPARISON, REPORT, *charts):
        if not is_our_file(run, name):
            raise UserError(
                f"{run / name}: llama-eval did not write this file, so it is not replaced; move it "
                "elsewhere, and run the same command again"
            )


def _part(before: SystemResults, after: SystemResults) -> PartComparison:
    reason = why_not_comparable(before, after)
    found = {} if reason else differences(before, after)
    return PartComparison(
        task=after.task,
        part=after.part,
        examples=len(after.lines),
        not_comparable=reason,
        seen_in_training=after.seen_in_training,
        metrics=[
            _metric(metric, before, after, found.get(metric.name))
            for metric in shown_metrics([before, after])
        ],
    )


def _metric(
    metric: Metric, before: SystemResults, after: SystemResults, change: Difference | None
) -> MetricComparison:
    line = MetricComparison(
        name=metric.name,
        percent=metric.is_percent,
        zero_shot=before.score(metric.name),
        zero_shot_ci95=_listed(before.interval(metric.name)),
        tuned=after.score(metric.name),
        tuned_ci95=_listed(after.interval(metric.name)),
    )
    if change is None:
        return line
    return line.model_copy(
        update={
            "difference": change.difference,
            "difference_ci95": _listed(change.interval),
            "p": change.p_value,
            "p_exact": change.exact_p,
        }
    )


def _listed(bounds: Interval | None) -> list[float] | None:
    return None if bounds is None else [bounds.low, bounds.high]
