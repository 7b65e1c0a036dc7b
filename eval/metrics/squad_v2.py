"""SQuAD 2.0: exact match and token F1 of short answers; unanswerable questions want an empty one.

Written from the published definition of the official evaluation; a test checks that both are equal.
All scores are percentages, as in the official script. Three things are easy to get wrong:
- texts are compared in lower case and without punctuation, articles and extra blanks, so "U.S."
  equals "US", "1,000" equals "1000", and "The" alone equals the empty answer;
- `best_exact` and `best_f1` are oracles: their no-answer threshold is chosen on the scored examples
  themselves. For an honest number, fit the threshold on validation (`fit_threshold`) and apply it
  here (`threshold`);
- the official script tries a threshold after each example, so its best score depends on the order
  of the rows if probabilities are equal. Here one threshold is tried for each distinct probability,
  because only those can be applied afterwards.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llama_peft.system.sequences.arrays import LongArray

from .columns import FloatArray, Texts, rows, texts
from .evidence import Evidence, Scores, Vector, scores_of
from .ids import check_match, matched

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerVectors(NamedTuple):
    """One value for each example (0 to 1), in the order of the references."""

    ids: Texts
    exact: FloatArray
    f1: FloatArray
    answerable: FloatArray


def normalise(text: str) -> str:
    """The text in lower case, without ASCII punctuation, articles and repeated blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_answerable(golds: Sequence[str]) -> bool:
    """Whether any of the references is not the empty string."""
    return any(golds)


def _answer_vectors(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> AnswerVectors:
    """Exact match and F1 of every question. Raises ValueError unless both hold the same ids."""
    values = (
        (_exact(said, normal), _token_f1(said, normal), float(is_answerable(own)))
        for text, own in matched(predictions, golds)
        for said, normal in [(normalise(text), normal_golds(own))]
    )
    exact, f1, answerable = np.ascontiguousarray(rows(values, len(golds), 3)[:].T)
    return AnswerVectors(texts(golds), exact, f1, answerable)


def squad_scores(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    *,
    threshold: float | None = None,
    before: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """The official scores, in percent; HasAns and NoAns only if there are such questions.

    With probabilities, `best_*` are added. With a threshold too, questions above it are scored as
    not answered, except in `best_*`, which choose their own. If a threshold has already replaced
    some predictions by "no answer", `before` holds the predictions before that, and `best_*` choose
    from them. Raises ValueError unless all ids match.
    """
    evidence = squad_evidence(
        predictions, golds, no_answer_probabilities, threshold=threshold, before=before
    )
    scores = scores_of(evidence)
    answerable = sum(map(is_answerable, golds.values()))
    counts = {"": len(golds), "HasAns_": answerable, "NoAns_": len(golds) - answerable}
    result: dict[str, float] = {}
    for prefix, total in counts.items():
        if total:
            result |= {f"{prefix}{name}": scores[f"{prefix}{name}"] for name in ("exact", "f1")}
            result[f"{prefix}total"] = total
    if no_answer_probabilities is not None:
        silent_score = len(golds) - answerable
        rows_NC = evidence.rows[:]
        for name, gains in (("exact", rows_NC[:, 4]), ("f1", rows_NC[:, 5])):
            best = _best_threshold(silent_score, gains, rows_NC[:, 0], silent=0.0)
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
    """Evidence with rows of (probability, answerable, exact, F1).

    With probabilities, two columns follow: what answering adds to exact and to F1.
    """
    chosen, columns = _answer_vectors(predictions, golds), []
    raw = chosen if before is None else _answer_vectors(before, golds)
    if no_answer_probabilities is not None:
        if threshold is not None:
            applied = apply_threshold(predictions, no_answer_probabilities, threshold)
            chosen = _answer_vectors(applied, golds)
        gave = _gave_answer(predictions if before is None else before, golds)
        columns = [_official_gains(v, raw.answerable, gave) for v in (raw.exact, raw.f1)]
        probabilities = _ordered(no_answer_probabilities, golds)
    elif threshold is not None:
        raise ValueError("a no-answer threshold needs the questions' no-answer probabilities")
    else:
        probabilities = np.zeros(len(raw.ids))
    rows = np.stack([probabilities, raw.answerable, chosen.exact, chosen.f1, *columns], axis=1)
    return Evidence(
        ids=raw.ids,
        rows=LongArray.of(rows),
        statistic=_statistic,
        vectors=_VECTORS,
        bounds=dict.fromkeys((*_VECTORS, "best_exact", "best_f1"), (0.0, 100.0)),
    )


def fit_threshold(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float],
) -> float:
    """The threshold that gives the best F1 here if questions above it are left unanswered.

    It is the lowest of equally good ones, and below every probability if answering nothing is best.
    Fit it on validation.
    """
    silent, gains = _gains(predictions, golds)
    probabilities = _ordered(no_answer_probabilities, golds)
    nothing = float(probabilities.min()) - 1
    return _best_threshold(silent, gains, probabilities, silent=nothing)


def threshold_curve(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float],
) -> tuple[FloatArray, FloatArray]:
    """Every threshold that can be applied, in rising order, and the F1 (0 to 100) that each gives.

    predictions: those that no threshold has replaced by "no answer".
    """
    silent, gains = _gains(predictions, golds)
    probabilities = _ordered(no_answer_probabilities, golds)
    thresholds, summed = _running_scores(gains, probabilities)
    scores = summed(np.ones((1, len(gains))), np.array([silent]))
    return thresholds, 100 * scores[0, 1:] / len(gains)


def _gains(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> tuple[float, FloatArray]:
    """The summed F1 if no question is answered, and what answering adds to it for each question."""
    answered = _answer_vectors(predictions, golds).f1
    empty = (float(normal_golds(own) == [""]) for own in golds.values())
    silent = np.fromiter(empty, dtype=np.float64, count=len(golds))
    return float(silent.sum()), answered - silent


def apply_threshold(
    predictions: Mapping[str, str],
    no_answer_probabilities: Mapping[str, float],
    threshold: float,
) -> dict[str, str]:
    """The predictions, each empty if its no-answer probability is above the threshold."""
    check_match(no_answer_probabilities, predictions)
    return {
        identity: "" if no_answer_probabilities[identity] > threshold else text
        for identity, text in predictions.items()
    }


def normal_golds(golds: Sequence[str]) -> list[str]:
    """The normalised references that are not empty; if none is left, the empty answer."""
    return [normal for gold in golds if (normal := normalise(gold))] or [""]


def _exact(prediction: str, golds: Sequence[str]) -> float:
    return float(prediction in golds)


def _token_f1(prediction: str, golds: Sequence[str]) -> float:
    words = prediction.split()
    return max(word_f1(words, gold.split()) for gold in dict.fromkeys(golds))


def word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of words in any order; if a side has none, whether both have none."""
    if not words or not gold:
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _ordered(probabilities: Mapping[str, float], golds: Mapping[str, Sequence[str]]) -> FloatArray:
    pairs = matched(probabilities, golds)
    ordered = np.fromiter((own for own, _ in pairs), dtype=np.float64, count=len(golds))
    if not np.isfinite(ordered).all():
        raise ValueError("no-answer probabilities must be finite numbers")
    return ordered


def _gave_answer(predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> FloatArray:
    gave = (float(text != "") for text, _ in matched(predictions, golds))
    return np.fromiter(gave, dtype=np.float64, count=len(golds))


def _official_gains(score: FloatArray, answerable: FloatArray, gave: FloatArray) -> FloatArray:
    """What answering a question adds to the score of no answer, as the official script counts it.

    The script counts an unanswerable question as wrong if any text was given, even a text that is
    empty after normalisation.
    """
    return np.where(answerable > 0, score, -gave)


def _running_scores(
    gains_K: FloatArray, probabilities_K: FloatArray
) -> tuple[FloatArray, Callable[[FloatArray, FloatArray], FloatArray]]:
    """The thresholds (T), one for each distinct probability, and what maps the counts (R, K) and the
    scores if no question is answered (R) to the summed scores (R, 1 + T).

    The first column is the score if no question is answered. Equal probabilities are sorted by
    gain, so that the sums of floats do not depend on the order of the rows.
    """
    order = np.lexsort((gains_K, probabilities_K))
    ordered, gains = probabilities_K[order], gains_K[order]
    last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    kept = np.append(0, last_of_ties + 1)

    def summed(counts_RK: FloatArray, silent_R: FloatArray) -> FloatArray:
        steps = counts_RK[:, order]
        steps *= gains
        return np.cumsum(np.hstack([silent_R[:, None], steps]), axis=1)[:, kept]

    return ordered[last_of_ties], summed


def _best_threshold(
    silent_score: float, gains: FloatArray, probabilities: FloatArray, silent: float
) -> float:
    """The lowest threshold with the highest score; `silent` if answering nothing is best."""
    thresholds, summed = _running_scores(gains, probabilities)
    best = int(np.argmax(summed(np.ones((1, len(gains))), np.array([silent_score]))))
    return silent if best == 0 else float(thresholds[best - 1])


def _statistic(rows_KC: FloatArray) -> Scores:
    probabilities, answerable, exact, f1 = rows_KC[:, :4].T
    groups = {"": np.ones_like(exact), "HasAns_": answerable, "NoAns_": 1 - answerable}
    gains = {"exact": rows_KC[:, 4], "f1": rows_KC[:, 5]} if rows_KC.shape[1] > 4 else {}
    summed = {name: _running_scores(its, probabilities)[1] for name, its in gains.items()}

    def scores(counts_RK: FloatArray) -> dict[str, FloatArray]:
        result = {}
        for prefix, group in groups.items():
            for name, vector in (("exact", exact), ("f1", f1)):
                share = _share(counts_RK @ (vector * group), counts_RK @ group)
                result[f"{prefix}{name}"] = 100 * share
        silent_R, total_R = counts_RK @ groups["NoAns_"], counts_RK.sum(axis=1)
        for name, own in summed.items():
            result[f"best_{name}"] = 100 * own(counts_RK, silent_R).max(axis=1) / total_R
        return result

    return scores


def _vector(column: int, answerable: float | None) -> Vector:
    """What gives the score in a column of each example; NaN for those of the other group."""

    def vector(rows_NC: FloatArray) -> FloatArray:
        own = True if answerable is None else rows_NC[:, 1] == answerable
        return np.where(own, 100 * rows_NC[:, column], np.nan)

    return vector


_VECTORS = {
    f"{prefix}{name}": _vector(column, answerable)
    for prefix, answerable in (("", None), ("HasAns_", 1.0), ("NoAns_", 0.0))
    for name, column in (("exact", 2), ("f1", 3))
}
"""The scores of each example, over all and by group."""


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole; NaN if whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
