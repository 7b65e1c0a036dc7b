"""Exact match and token F1 of short answers, and of silence where there is none (SQuAD 2.0).

Written from the published definition of the official evaluation and held equal to it by a test.
All scores are percentages, as there. Three things are easy to get wrong:
- texts are compared after lower-casing and without punctuation, articles and extra blanks, so
  "U.S." is "US", "1,000" is "1000", and a bare "The" is the empty answer;
- `best_exact` and `best_f1` are oracles: the no-answer threshold is chosen on the scored examples
  themselves. For an honest number fit it on validation (`fit_threshold`) and apply it here
  (`threshold`);
- the script walks its thresholds example by example, so its best depends on the order of rows when
  probabilities tie. Here a threshold is tried once for each different probability, which is what
  can be applied afterwards.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from .bootstrap import Evidence, FloatArray, point
from .ids import check_match

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerVectors(NamedTuple):
    """One value an example (0 to 1), in the order of the golds."""

    ids: tuple[str, ...]
    exact: FloatArray
    f1: FloatArray
    answerable: FloatArray


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 when the prediction equals a gold after normalisation, or is empty where none is."""
    return _exact(normalise(prediction), _normal_golds(golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """The best F1 over the golds, of the words in common; 1 between two empty texts."""
    return _token_f1(normalise(prediction), _normal_golds(golds))


def is_answerable(golds: Sequence[str]) -> bool:
    """A question has an answer when any of its golds is not the empty string."""
    return any(golds)


def per_example_answers(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> AnswerVectors:
    """Exact match and F1 of every question. Raises ValueError unless ids match one for one."""
    check_match(predictions, golds)
    pairs = [(normalise(predictions[i]), _normal_golds(texts)) for i, texts in golds.items()]
    return AnswerVectors(
        ids=tuple(golds),
        exact=np.array([_exact(*pair) for pair in pairs]),
        f1=np.array([_token_f1(*pair) for pair in pairs]),
        answerable=np.array([float(is_answerable(texts)) for texts in golds.values()]),
    )


def squad_scores(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    *,
    threshold: float | None = None,
    before: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """The official keys, in percent; HasAns and NoAns only where there are such questions.

    With probabilities the best thresholds are added. With a threshold too, questions above it are
    scored as not answered, except in the best ones, which choose their own. Of predictions that a
    threshold has silenced already, `before` is what they were; the best ones choose from it. Raises
    ValueError unless all ids match.
    """
    evidence = squad_evidence(
        predictions, golds, no_answer_probabilities, threshold=threshold, before=before
    )
    scores = point(evidence)
    answerable = sum(map(is_answerable, golds.values()))
    counts = {"": len(golds), "HasAns_": answerable, "NoAns_": len(golds) - answerable}
    result: dict[str, float] = {}
    for prefix, total in counts.items():
        if total:
            result |= {f"{prefix}{name}": scores[f"{prefix}{name}"] for name in ("exact", "f1")}
            result[f"{prefix}total"] = total
    if no_answer_probabilities is not None:
        silent_score = len(golds) - answerable
        for name, gains in (("exact", evidence.rows[:, 4]), ("f1", evidence.rows[:, 5])):
            best = _best_threshold(silent_score, gains, evidence.rows[:, 0], silent=0.0)
            result |= {f"best_{name}": scores[f"best_{name}"], f"best_{name}_thresh": best}
    return result


def squad_evidence(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    *,
    threshold: float | None = None,
    before: Mapping[str, str] | None = None,
) -> Evidence:
    """Rows of (probability, answerable, exact, F1), and with probabilities what answering gains."""
    chosen, columns = per_example_answers(predictions, golds), []
    raw = chosen if before is None else per_example_answers(before, golds)
    if no_answer_probabilities is not None:
        if threshold is not None:
            applied = apply_threshold(predictions, no_answer_probabilities, threshold)
            chosen = per_example_answers(applied, golds)
        gave = _gave_answer(predictions if before is None else before, raw.ids)
        columns = [_official_gains(v, raw.answerable, gave) for v in (raw.exact, raw.f1)]
        probabilities = _ordered(no_answer_probabilities, golds)
    elif threshold is not None:
        raise ValueError("a no-answer threshold needs the questions' no-answer probabilities")
    else:
        probabilities = np.zeros(len(raw.ids))
    rows = np.stack([probabilities, raw.answerable, chosen.exact, chosen.f1, *columns], axis=1)
    vectors = _group_vectors(chosen)
    return Evidence(ids=raw.ids, rows=rows, statistic=_statistic, vectors=vectors)


def fit_threshold(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float],
    metric: Literal["exact", "f1"] = "f1",
) -> float:
    """The threshold with the best score here once applied: questions above it are left unanswered.

    The lowest of equally good ones; one below every probability when answering nothing is best. Fit
    it on validation.
    """
    answered = per_example_answers(predictions, golds)
    silent = per_example_answers(dict.fromkeys(golds, ""), golds)
    score = {"exact": (answered.exact, silent.exact), "f1": (answered.f1, silent.f1)}[metric]
    probabilities = _ordered(no_answer_probabilities, golds)
    nothing = float(probabilities.min()) - 1
    return _best_threshold(score[1].sum(), score[0] - score[1], probabilities, silent=nothing)


def apply_threshold(
    predictions: Mapping[str, str],
    no_answer_probabilities: Mapping[str, float],
    threshold: float,
) -> dict[str, str]:
    """The predictions, empty where the no-answer probability is above the threshold."""
    check_match(no_answer_probabilities, predictions)
    return {
        identity: "" if no_answer_probabilities[identity] > threshold else text
        for identity, text in predictions.items()
    }


def _normal_golds(golds: Sequence[str]) -> list[str]:
    """Normalised golds but for those that come to nothing; when none is left, the empty answer."""
    return [normal for gold in golds if (normal := normalise(gold))] or [""]


def _exact(prediction: str, golds: Sequence[str]) -> float:
    return float(prediction in golds)


def _token_f1(prediction: str, golds: Sequence[str]) -> float:
    words = prediction.split()
    return max(_word_f1(words, gold.split()) for gold in dict.fromkeys(golds))


def _word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _ordered(probabilities: Mapping[str, float], golds: Mapping[str, Sequence[str]]) -> FloatArray:
    check_match(probabilities, golds)
    ordered = np.array([probabilities[identity] for identity in golds], dtype=np.float64)
    if not np.isfinite(ordered).all():
        raise ValueError("no-answer probabilities must be finite numbers")
    return ordered


def _gave_answer(predictions: Mapping[str, str], ids: Sequence[str]) -> FloatArray:
    return np.array([float(predictions[identity] != "") for identity in ids])


def _official_gains(score: FloatArray, answerable: FloatArray, gave: FloatArray) -> FloatArray:
    """What answering a question instead of staying silent adds, as the script counts it.

    It takes an unanswerable question as lost when any text was given, even one that normalises to
    nothing.
    """
    return np.where(answerable > 0, score, -gave)


def _running_scores(
    counts_RK: FloatArray, silent_R: FloatArray, gains_K: FloatArray, probabilities_K: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Thresholds (T), one a different probability, and the summed scores (R, 1 + T) at each.

    The first column is silence throughout. Sorting ties by gain makes the float sums independent of
    the rows' order.
    """
    order = np.lexsort((gains_K, probabilities_K))
    steps = counts_RK[:, order] * gains_K[order]
    running = np.cumsum(np.hstack([silent_R[:, None], steps]), axis=1)
    ordered = probabilities_K[order]
    last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return ordered[last_of_ties], running[:, np.append(0, last_of_ties + 1)]


def _best_threshold(
    silent_score: float, gains: FloatArray, probabilities: FloatArray, silent: float
) -> float:
    """The lowest threshold with the highest score; `silent` where no answer at all is best."""
    ones = np.ones((1, len(gains)))
    thresholds, scores = _running_scores(ones, np.array([silent_score]), gains, probabilities)
    best = int(np.argmax(scores[0]))
    return silent if best == 0 else float(thresholds[best - 1])


def _statistic(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
    probabilities, answerable, exact, f1 = rows_KC[:, :4].T
    groups = {"": np.ones_like(exact), "HasAns_": answerable, "NoAns_": 1 - answerable}
    result = {}
    for prefix, group in groups.items():
        for name, vector in (("exact", exact), ("f1", f1)):
            share = _share(counts_RK @ (vector * group), counts_RK @ group)
            result[f"{prefix}{name}"] = 100 * share
    if rows_KC.shape[1] > 4:
        silent_R, total_R = counts_RK @ (1 - answerable), counts_RK.sum(axis=1)
        for name, gains in (("exact", rows_KC[:, 4]), ("f1", rows_KC[:, 5])):
            _, scores = _running_scores(counts_RK, silent_R, gains, probabilities)
            result[f"best_{name}"] = 100 * scores.max(axis=1) / total_R
    return result


def _group_vectors(chosen: AnswerVectors) -> dict[str, FloatArray]:
    """Scores an example, all and by group; NaN marks the questions of the other group."""
    groups = {"": True, "HasAns_": chosen.answerable > 0, "NoAns_": chosen.answerable == 0}
    return {
        f"{prefix}{name}": np.where(group, 100 * vector, np.nan)
        for prefix, group in groups.items()
        for name, vector in (("exact", chosen.exact), ("f1", chosen.f1))
    }


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, NaN where there is no whole."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
