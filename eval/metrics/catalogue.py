"""The one table of metrics: every score that results.json may hold, under its official name.

To add a metric, add its row here and compute it in `classification`, `confidence`,
`sets_and_numbers`, `squad_v2` or `words.overlap`. The columns of every table and page, and
`higher_is_better` in results.json, follow from the row.

Results also hold counts and thresholds, under the names that the official scripts give them, and
`<name>_per_label` lists in the order of the labels, and `<name>_per_bin` lists by probability. They are not single scores and have no row.
"""

from dataclasses import dataclass
from typing import Literal

INTERVAL_SUFFIX = "_ci95"
COVERAGES = (50, 80, 90, 95)
"""Shares of the surest predictions, in percent, whose scores are recorded."""
Side = Literal["labels", "label_sets", "numbers", "answers"]
"""What is predicted, in the words of llama_peft/tasks.py."""
_NO_SCORES = ("_total", "_thresh", "_per_label", "_per_bin", INTERVAL_SUFFIX)


@dataclass(frozen=True)
class Metric:
    """One kind of score."""

    name: str
    side: Side
    """What is scored."""
    in_tables: bool = False
    """Whether tables have a column for it; results.json holds it either way."""
    hidden_at_zero: bool = False
    """Whether that column is left out if every system of the table scores 0."""
    only_if_uneven: bool = False
    """Whether that column is left out unless a label is much more common than another."""
    may_be_missing: bool = False
    """Whether results of version 0.1.0 do not hold it, although their predictions give it."""
    is_percent: bool = False
    """Whether it runs from 0 to 100, as in the official squad_v2 script; else from 0 to 1."""
    higher_is_better: bool = True
    is_label_mean: bool = False
    """Whether it is the mean over the labels if there are more than two."""


def _selective(name: str, side: Side, risk: str) -> tuple[Metric, ...]:
    """The rows of selective prediction by one score."""
    shares = (f"{name}_at_coverage_{share}" for share in COVERAGES)
    kept = (Metric(one, side, is_percent=side == "answers") for one in shares)
    return (Metric(risk, side, higher_is_better=False), *kept)


METRICS = (
    Metric("accuracy", "labels", in_tables=True),
    Metric("precision", "labels", in_tables=True, is_label_mean=True),
    Metric("recall", "labels", in_tables=True, is_label_mean=True),
    Metric("f1", "labels", in_tables=True, is_label_mean=True),
    Metric("precision_macro", "labels"),
    Metric("recall_macro", "labels"),
    Metric("f1_macro", "labels"),
    Metric("precision_weighted", "labels"),
    Metric("recall_weighted", "labels"),
    Metric("f1_weighted", "labels"),
    Metric("unparsable", "labels", in_tables=True, hidden_at_zero=True, higher_is_better=False),
    Metric("balanced_accuracy", "labels", in_tables=True, only_if_uneven=True, may_be_missing=True),
    Metric("matthews_correlation", "labels", may_be_missing=True),
    Metric("brier_score", "labels", higher_is_better=False),
    Metric("log_loss", "labels", higher_is_better=False),
    Metric("ece", "labels", higher_is_better=False),
    Metric("brier_score_uncalibrated", "labels", higher_is_better=False),
    Metric("log_loss_uncalibrated", "labels", higher_is_better=False),
    Metric("ece_uncalibrated", "labels", higher_is_better=False),
    Metric("roc_auc", "labels", is_label_mean=True),
    Metric("average_precision", "labels", is_label_mean=True),
    *_selective("accuracy", "labels", "aurc"),
    Metric("subset_accuracy", "label_sets", in_tables=True),
    Metric("f1_micro", "label_sets", in_tables=True),
    Metric("f1_macro", "label_sets", in_tables=True),
    Metric("f1_samples", "label_sets", in_tables=True),
    Metric("mean_average_precision", "label_sets", in_tables=True),
    Metric("precision_micro", "label_sets"),
    Metric("recall_micro", "label_sets"),
    Metric("brier_score", "label_sets", higher_is_better=False),
    Metric("log_loss", "label_sets", higher_is_better=False),
    Metric("ece", "label_sets", higher_is_better=False),
    Metric("brier_score_uncalibrated", "label_sets", higher_is_better=False),
    Metric("log_loss_uncalibrated", "label_sets", higher_is_better=False),
    Metric("ece_uncalibrated", "label_sets", higher_is_better=False),
    Metric("mae", "numbers", in_tables=True, higher_is_better=False),
    Metric("mse", "numbers", in_tables=True, higher_is_better=False),
    Metric("r2", "numbers", in_tables=True),
    Metric("pearson", "numbers", in_tables=True),
    Metric("spearman", "numbers", in_tables=True),
    Metric("exact", "answers", in_tables=True, is_percent=True),
    Metric("f1", "answers", in_tables=True, is_percent=True),
    Metric("HasAns_exact", "answers", in_tables=True, is_percent=True),
    Metric("HasAns_f1", "answers", in_tables=True, is_percent=True),
    Metric("NoAns_exact", "answers", in_tables=True, is_percent=True),
    Metric("NoAns_f1", "answers", is_percent=True),
    Metric("best_exact", "answers", is_percent=True),
    Metric("best_f1", "answers", is_percent=True),
    *_selective("exact", "answers", "aurc_exact"),
    *_selective("f1", "answers", "aurc_f1"),
    Metric("bleu", "answers", in_tables=True),
    Metric("HasAns_bleu", "answers", in_tables=True),
    Metric("chrf", "answers", may_be_missing=True),
    Metric("HasAns_chrf", "answers", may_be_missing=True),
    Metric("rouge1", "answers"),
    Metric("HasAns_rouge1", "answers"),
    Metric("rouge2", "answers"),
    Metric("HasAns_rouge2", "answers"),
    Metric("rougeL", "answers", in_tables=True),
    Metric("HasAns_rougeL", "answers", in_tables=True),
    Metric("rougeLsum", "answers"),
    Metric("HasAns_rougeLsum", "answers"),
    Metric("meteor", "answers", in_tables=True),
    Metric("HasAns_meteor", "answers", in_tables=True),
    Metric("meteor_no_wordnet", "answers", in_tables=True),
    Metric("HasAns_meteor_no_wordnet", "answers", in_tables=True),
    Metric("exact_unicode", "answers", in_tables=True, is_percent=True),
    Metric("HasAns_exact_unicode", "answers", is_percent=True),
    Metric("f1_unicode", "answers", in_tables=True, is_percent=True),
    Metric("HasAns_f1_unicode", "answers", is_percent=True),
    Metric("bleu_char", "answers", in_tables=True),
    Metric("HasAns_bleu_char", "answers"),
    Metric("rouge1_unicode", "answers"),
    Metric("HasAns_rouge1_unicode", "answers"),
    Metric("rouge2_unicode", "answers"),
    Metric("HasAns_rouge2_unicode", "answers"),
    Metric("rougeL_unicode", "answers", in_tables=True),
    Metric("HasAns_rougeL_unicode", "answers"),
    Metric("rougeLsum_unicode", "answers"),
    Metric("HasAns_rougeLsum_unicode", "answers"),
    Metric("meteor_unicode", "answers", in_tables=True),
    Metric("HasAns_meteor_unicode", "answers"),
    Metric("meteor_no_wordnet_unicode", "answers", in_tables=True),
    Metric("HasAns_meteor_no_wordnet_unicode", "answers"),
)
"""In the order of the columns. A side's first metric says of each example whether it is right, or how
close a number is.
"""


def metrics_of(side: Side) -> tuple[Metric, ...]:
    """The metrics of one side, in the order of the columns."""
    return tuple(metric for metric in METRICS if metric.side == side)


def is_score(name: str) -> bool:
    """False for counts (`total`, `HasAns_total`), thresholds, lists by label and intervals."""
    return name != "total" and not name.endswith(_NO_SCORES)


def higher_is_better(name: str) -> bool:
    """Whether a higher score is better. Raises ValueError if a name has no row, as for counts."""
    for metric in METRICS:
        if metric.name == name:
            return metric.higher_is_better
    raise ValueError(f"{name!r} has no row in eval/metrics/catalogue.py; add one if it is a score")
