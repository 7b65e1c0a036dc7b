"""A task's results as they go into results.json: every score with its 95 % interval beside it.

What the harness calls. `classification_results` and `answer_results` take what is in
predictions.jsonl and nothing else.
"""

from collections.abc import Mapping, Sequence

from .bootstrap import Evidence, intervals, point
from .classification import classification_evidence
from .names import INTERVAL_SUFFIX
from .overlap import overlap_evidence
from .squad_v2 import squad_evidence, squad_scores

Results = dict[str, float | list[float]]


def with_intervals(
    scores: Mapping[str, float], evidence: Evidence, *, resamples: int = 1000, seed: int = 0
) -> Results:
    """The scores in order, each followed by `<name>_ci95: [low, high]` where it has an interval."""
    found = intervals(evidence, resamples=resamples, seed=seed)
    results: Results = {}
    for name, value in scores.items():
        results[name] = value
        if name in found:
            results[name + INTERVAL_SUFFIX] = list(found[name])
    return results


def classification_results(
    predictions: Mapping[str, str],
    golds: Mapping[str, str],
    labels: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Results:
    """Classification scores of labels by id. Raises ValueError unless the ids match one for one."""
    evidence = classification_evidence(predictions, golds, labels)
    return with_intervals(point(evidence), evidence, resamples=resamples, seed=seed)


def answer_results(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    *,
    before: Mapping[str, str] | None = None,
    overlap: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Results:
    """squad_v2 scores of answers by id, and BLEU, ROUGE and METEOR unless `overlap` is off.

    Where a threshold fitted on validation has silenced predictions, `before` is what they were: the
    oracles `best_exact` and `best_f1` choose from it.
    """
    scores = squad_scores(predictions, golds, no_answer_probabilities, before=before)
    evidence = squad_evidence(predictions, golds, no_answer_probabilities, before=before)
    results = with_intervals(scores, evidence, resamples=resamples, seed=seed)
    if overlap:
        words = overlap_evidence(predictions, golds)
        results |= with_intervals(point(words), words, resamples=resamples, seed=seed)
    return results
