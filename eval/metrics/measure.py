"""The results of one task as results.json holds them: every score, and its 95 % interval beside it.

`classification_results` and `answer_results` need only what predictions.jsonl holds.
"""

from collections.abc import Mapping, Sequence

from .bootstrap import Evidence, intervals, scores_of
from .catalogue import INTERVAL_SUFFIX
from .classification import (
    classification_evidence,
    confidence_evidence,
    ranking_scores,
    scores_per_label,
)
from .overlap import overlap_evidences
from .squad_v2 import squad_evidence, squad_scores

TaskResults = dict[str, float | list[float]]


def classification_results(
    predictions: Mapping[str, str],
    golds: Mapping[str, str],
    labels: Sequence[str],
    probabilities: Mapping[str, Sequence[float]] | None = None,
) -> TaskResults:
    """The scores of labels by id, and how far probabilities can be trusted if they are given.

    Raises ValueError unless all hold the same ids.
    """
    evidence = classification_evidence(predictions, golds, labels)
    results = _with_intervals(scores_of(evidence), evidence)
    results |= scores_per_label(predictions, golds, labels)
    if probabilities is not None:
        evidence = confidence_evidence(probabilities, golds, labels)
        results |= _with_intervals(scores_of(evidence), evidence)
        results |= ranking_scores(probabilities, golds, labels)
    return results


def answer_results(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    *,
    before: Mapping[str, str] | None = None,
) -> TaskResults:
    """The scores of answers by id: squad_v2, BLEU, ROUGE and METEOR.

    If a threshold replaced some predictions by "no answer", `before` holds the predictions before
    that: `best_exact` and `best_f1` choose from them.
    """
    scores = squad_scores(predictions, golds, no_answer_probabilities, before=before)
    evidence = squad_evidence(predictions, golds, no_answer_probabilities, before=before)
    results = _with_intervals(scores, evidence)
    for evidence in overlap_evidences(predictions, golds):
        results |= _with_intervals(scores_of(evidence), evidence)
    return results


def _with_intervals(scores: Mapping[str, float], evidence: Evidence) -> TaskResults:
    """The scores in order, each followed by `<name>_ci95: [low, high]` if it has an interval."""
    found = intervals(evidence)
    results: TaskResults = {}
    for name, value in scores.items():
        results[name] = value
        if name in found:
            results[name + INTERVAL_SUFFIX] = list(found[name])
    return results
