"""comparison.json: the scores before and after fine-tuning, for other programs and for the card of
a pushed run.
"""

from pathlib import Path

from pydantic import Field

from llama_peft.run_folder.layout import COMPARISON
from llama_peft.run_folder.record import Stored
from llama_peft.system.files import read_summed, write_summed
from llama_peft.system.numbers import Count, Finite, Interval, Probability


class MetricComparison(Stored):
    """One metric of both systems."""

    name: str
    percent: bool
    """Whether the values are percentages; else they are fractions of 1."""
    zero_shot: Finite | None = None
    zero_shot_ci95: Interval | None = None
    tuned: Finite | None = None
    tuned_ci95: Interval | None = None
    difference: Finite | None = None
    difference_ci95: Interval | None = None
    p: Probability | None = None
    """Of the test that the interval inverts."""
    p_exact: Probability | None = None
    """Of exact McNemar, or of randomisation by passage, for means over the examples."""


class PartComparison(Stored):
    """One part of the data."""

    task: str
    part: str
    examples: Count
    not_comparable: str = ""
    """Why there is no difference; empty if there is one."""
    seen_in_training: Count | None = None
    """The number of examples that read the same as one that the model was trained on; None if that
    is not known.
    """
    metrics: list[MetricComparison]


class Comparison(Stored):
    """Zero-shot and tuned side by side, and the sums of the files that this was made from."""

    results_sha256: dict[str, str]
    """The sum of results.json in each of the two folders."""
    report_sha256: str | None = None
    charts_sha256: dict[str, str] = Field(default_factory=dict)
    """The sum of each figure of the report that is a PNG file, by its name in the run folder."""
    parts: list[PartComparison]
    verdict: list[str] = Field(default_factory=list)
    """What the ladder of the run says, in a few lines."""


def write_comparison(run: Path, comparison: Comparison) -> None:
    """Write `comparison.json` into a run folder."""
    write_summed(run, COMPARISON, comparison.model_dump(mode="json", exclude_unset=True))


def read_comparison(run: Path) -> Comparison:
    """The comparison of a run. Raises OSError or ValueError if there is none that can be read."""
    return Comparison.model_validate(read_summed(run, COMPARISON, required=False))
