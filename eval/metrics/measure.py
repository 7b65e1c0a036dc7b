"""The results of one task as results.json holds them: every score, and its 95 % interval beside it.

The functions need only what predictions.jsonl holds.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from .catalogue import INTERVAL_SUFFIX, Side
from .classification import classification_evidence, scores_per_label
from .confidence import (
    confidence_evidence,
    decision_evidence,
    ranking_scores,
    reliability,
    selective_evidence,
)
from .evidence import Evidence, scores_of
from .ids import matched
from .intervals import intervals
from .sets_and_numbers import (
    Sets,
    label_set_evidence,
    label_set_lists,
    label_set_ranking,
    number_evidence,
)
from .squad_v2 import squad_evidence, squad_scores
from .words.overlap import overlap_evidences

Said = str | float | list[str]
"""What is predicted or right: a label, a number, several labels, or answers."""

TaskResults = dict[str, float | list[float]]

Groups = Mapping[str, str] | None
"""The group of an example by its id, as the passage of a question. The examples of a group were not
drawn independently, so intervals resample whole groups. An example without a group is alone.
"""


def texts_of(said: Said) -> list[str]:
    """The texts of a list; none of a single value."""
    return said if isinstance(said, list) else []


def evidence_of(
    side: Side, predictions: Mapping[str, Said], golds: Mapping[str, Said], labels: Sequence[str]
) -> Evidence:
    """The evidence of a side's main metrics. Raises ValueError unless values are of that side."""
    for values, role in ((predictions, "predictions"), (golds, "references")):
        expected = said_type(side, role == "references")
        if not all(isinstance(value, expected) for value in values.values()):
            lists = "lists of " if expected is list else ""
            named = "labels" if side == "label_sets" else side
            raise ValueError(f"the {role} are not {lists}{named}")
    if side == "labels":
        one, other = cast("Mapping[str, str]", predictions), cast("Mapping[str, str]", golds)
        return classification_evidence(one, other, labels)
    if side == "label_sets":
        return label_set_evidence(cast("Sets", predictions), cast("Sets", golds), labels)
    if side == "numbers":
        numbers = cast("Mapping[str, float]", predictions), cast("Mapping[str, float]", golds)
        return number_evidence(*numbers)
    texts = cast("Mapping[str, str]", predictions)
    return squad_evidence(texts, cast("Mapping[str, Sequence[str]]", golds))


def said_type(side: Side, is_gold: bool) -> type[str] | type[float] | type[list[str]]:
    """The type of a side's predictions, or of its references."""
    if side == "numbers":
        return float
    return list if side == "label_sets" or (side == "answers" and is_gold) else str


def classification_results(
    predictions: Mapping[str, str],
    golds: Mapping[str, str],
    labels: Sequence[str],
    probabilities: Mapping[str, Sequence[float]] | None = None,
    before: Mapping[str, Sequence[float]] | None = None,
    *,
    groups: Groups = None,
) -> TaskResults:
    """The scores of labels by id, and how far probabilities can be trusted if they are given.

    before: the probabilities without the temperature, if there is one; their scores are
    `<name>_uncalibrated`. Raises ValueError unless all hold the same ids.
    """
    main = classification_evidence(predictions, golds, labels)
    results = _with_intervals(scores_of(main), main, groups)
    results |= scores_per_label(predictions, golds, labels)
    if probabilities is not None:
        evidence = confidence_evidence(probabilities, golds, labels)
        results |= _with_intervals(scores_of(evidence), evidence, groups)
        results |= ranking_scores(probabilities, golds, labels)
        chances = (max(own) for own, _ in matched(probabilities, golds))
        sure = np.fromiter(chances, dtype=np.float64, count=len(golds))
        evidence = selective_evidence(main.ids, sure, {"accuracy": main.vector("accuracy")})
        results |= _with_intervals(scores_of(evidence), evidence, groups)
        results |= reliability(probabilities, golds, labels)
    if before is not None:
        scores = scores_of(confidence_evidence(before, golds, labels))
        results |= {f"{name}_uncalibrated": value for name, value in scores.items()}
    return results


def label_set_results(
    predictions: Sets,
    golds: Sets,
    labels: Sequence[str],
    probabilities: Mapping[str, Sequence[float]] | None = None,
    before: Mapping[str, Sequence[float]] | None = None,
    *,
    groups: Groups = None,
) -> TaskResults:
    """The scores of sets of labels by id. Raises ValueError unless all hold the same ids.

    before: as in `classification_results`. How far probabilities can be trusted is counted over all
    labels of all texts, and has no interval.
    """
    evidence = label_set_evidence(predictions, golds, labels)
    results = _with_intervals(scores_of(evidence), evidence, groups)
    results |= label_set_lists(predictions, golds, labels)
    if probabilities is not None:
        results |= label_set_ranking(probabilities, golds, labels)
        results |= _trust(probabilities, golds, labels)
    if before is not None:
        scores = _trust(before, golds, labels)
        results |= {f"{name}_uncalibrated": value for name, value in scores.items()}
    return results


def _trust(
    probabilities: Mapping[str, Sequence[float]], golds: Sets, labels: Sequence[str]
) -> dict[str, float]:
    return scores_of(decision_evidence(probabilities, golds, labels))


def number_results(
    predictions: Mapping[str, float], golds: Mapping[str, float], *, groups: Groups = None
) -> TaskResults:
    """The scores of numbers by id. Raises ValueError unless both hold the same ids."""
    evidence = number_evidence(predictions, golds)
    return _with_intervals(scores_of(evidence), evidence, groups)


def answer_results(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    *,
    before: Mapping[str, str] | None = None,
    groups: Groups = None,
) -> TaskResults:
    """The scores of answers by id: squad_v2, BLEU, ROUGE and METEOR.

    If a threshold replaced some predictions by "no answer", `before` holds the predictions before
    that: `best_exact` and `best_f1` choose from them.
    """
    scores = squad_scores(predictions, golds, no_answer_probabilities, before=before)
    evidence = squad_evidence(predictions, golds, no_answer_probabilities, before=before)
    results = _with_intervals(scores, evidence, groups)
    if no_answer_probabilities is not None:
        evidence = _answered_evidence(before or predictions, golds, no_answer_probabilities)
        results |= _with_intervals(scores_of(evidence), evidence, groups)
    for evidence in overlap_evidences(predictions, golds):
        results |= _with_intervals(scores_of(evidence), evidence, groups)
    return results


def _answered_evidence(
    texts: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float],
) -> Evidence:
    """The evidence of what is right if only the questions are answered that have an answer most
    likely. texts: the answers before a threshold removed some.
    """
    found = squad_evidence(texts, golds)
    scores = {name: found.vector(name) for name in ("exact", "f1")}
    chances = (-one for one, _ in matched(no_answer_probabilities, golds))
    sureness = np.fromiter(chances, dtype=np.float64, count=len(golds))
    return selective_evidence(found.ids, sureness, scores, best=100.0)


def _with_intervals(scores: Mapping[str, float], evidence: Evidence, groups: Groups) -> TaskResults:
    """The scores in order, each followed by `<name>_ci95: [low, high]` if it has an interval."""
    found = intervals(evidence, groups)
    results: TaskResults = {}
    for name, value in scores.items():
        results[name] = value
        if name in found:
            results[name + INTERVAL_SUFFIX] = [found[name].low, found[name].high]
    return results
