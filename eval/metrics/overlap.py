"""How much an answer overlaps with its references: BLEU, ROUGE and METEOR.

They are computed by sacrebleu, rouge-score and nltk. With several references, BLEU takes all of
them, and ROUGE and METEOR take the best one. Every score is given over all questions and, as
`HasAns_<metric>`, over the answerable ones. On an unanswerable question ROUGE and METEOR give 1 to
an empty answer and 0 to any text, as squad_v2 does. BLEU is computed over the whole corpus: an
empty answer adds nothing, and a text lowers the precision. All scores are fractions.

BLEU uses effective order, because the usual answer has fewer than four words; `bleu_signature()`
gives its settings. The tokeniser of rouge-score keeps only [a-z0-9], so an answer in another script
scores 0 even if it is right. ROUGE-2 of an answer of one word is always 0.

To add a metric, compute its rows in a function like `_rouge_meteor_bleu` and add the `Evidence` of
that function to `overlap_evidences`. Resamples are drawn from the distinct rows of one `Evidence`,
so a metric with an `Evidence` of its own does not move the intervals of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .bootstrap import Evidence, FloatArray
from .ids import check_match
from .meteor import meteor_name, meteor_score
from .squad_v2 import is_answerable
from .wordnet import WordNet, find_wordnet

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_ORDERS = 4
Golds = Mapping[str, Sequence[str]]


def overlap_evidences(predictions: Mapping[str, str], golds: Golds) -> tuple[Evidence, ...]:
    """The evidence of all overlap metrics; metrics in one `Evidence` share their resamples.

    Raises ValueError unless predictions and references have the same ids.
    """
    check_match(predictions, golds)
    texts = [predictions[identity] for identity in golds]
    return (_rouge_meteor_bleu(texts, golds),)


def corpus_bleu(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """BLEU of all texts together, 0 to 1."""
    return float(_bleu_scores(np.ones((1, len(texts))), _bleu_counts(texts, golds))[0])


def bleu_signature() -> str:
    """sacrebleu's description of how BLEU is computed, to be printed beside the number."""
    bleu = _bleu()
    # It learns only by scoring that the number of references differs between questions.
    bleu.corpus_score(["a", "a"], [["a", "a"], ["b", None]])  # type: ignore[list-item]
    return str(bleu.get_signature())


def _evidence(
    golds: Golds,
    rows: FloatArray,
    scores: Callable[[FloatArray, FloatArray], dict[str, FloatArray]],
    vectors: Mapping[str, FloatArray],
) -> Evidence:
    """Evidence that gives each of `scores` twice: over all questions, and over the answerable ones.

    `scores` maps (counts_RK, rows_KC) to one value for each resample.
    """

    def statistic(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        everything = scores(counts_RK, rows_KC[:, 1:])
        with_answer = scores(counts_RK * rows_KC[:, 0], rows_KC[:, 1:])
        return everything | {f"HasAns_{name}": value for name, value in with_answer.items()}

    answerable = np.array([[float(is_answerable(answers))] for answers in golds.values()])
    return Evidence(
        ids=tuple(golds),
        rows=np.hstack([answerable, rows]),
        statistic=statistic,
        vectors=vectors,
    )


def _means(
    counts_RK: FloatArray, rows_KC: FloatArray, names: Sequence[str]
) -> dict[str, FloatArray]:
    """The mean of each column; NaN for a resample that holds no example."""
    total_R = counts_RK.sum(axis=1)
    means = counts_RK @ rows_KC / np.where(total_R > 0, total_R, np.nan)[:, None]
    return {name: means[:, column] for column, name in enumerate(names)}


def _rouge_meteor_bleu(texts: Sequence[str], golds: Golds) -> Evidence:
    """Evidence with rows of ROUGE and METEOR, and behind them the counts of BLEU."""
    wordnet = find_wordnet()
    names = (*ROUGE_TYPES, meteor_name(wordnet))
    references = list(golds.values())
    values = _rouge_and_meteor(texts, references, wordnet)

    def scores(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        means = _means(counts_RK, rows_KC[:, : len(names)], names)
        return {"bleu": _bleu_scores(counts_RK, rows_KC[:, len(names) :])} | means

    rows = np.hstack([values, _bleu_counts(texts, references)])
    vectors = {name: values[:, column] for column, name in enumerate(names)}
    return _evidence(golds, rows, scores, vectors)


def _rouge_and_meteor(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], wordnet: WordNet | None
) -> FloatArray:
    """One row for each example: the F-measure of each kind of ROUGE, and METEOR."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES))

    def scores(text: str, references: Sequence[str]) -> list[float]:
        if not references:
            return [float(text == "")] * (len(ROUGE_TYPES) + 1)
        best = scorer.score_multi(references, text)
        rouge = [float(best[kind].fmeasure) for kind in ROUGE_TYPES]
        return [*rouge, meteor_score(text, references, wordnet)]

    return np.array([scores(p, _references(g)) for p, g in zip(predictions, golds, strict=True)])


def _references(golds: Sequence[str]) -> list[str]:
    """The distinct references. Annotators often agree, and the best score stays the same."""
    return [gold for gold in dict.fromkeys(golds) if gold]


def _bleu() -> "BLEU":
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _bleu_counts(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> FloatArray:
    """(examples, 10): length, closest reference length, 4 matched and 4 total n-gram counts.

    The counts of examples add up, so they are enough for the BLEU of any resample.
    """
    bleu = _bleu()
    scores = [
        bleu.sentence_score(text, _references(answers) or [""])
        for text, answers in zip(texts, golds, strict=True)
    ]
    counts = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]
    return np.array(counts, dtype=np.float64).reshape(-1, 2 + 2 * _ORDERS)


def _bleu_scores(counts_RK: FloatArray, rows_KC: FloatArray) -> FloatArray:
    """BLEU of each resample; NaN for a resample that holds no example."""
    bleu = np.array([_bleu_from(row) for row in (counts_RK @ rows_KC).tolist()])
    return np.where(counts_RK.sum(axis=1) > 0, bleu, np.nan)


def _bleu_from(counts: list[float]) -> float:
    from sacrebleu.metrics import BLEU

    score = BLEU.compute_bleu(
        correct=counts[2 : 2 + _ORDERS],  # type: ignore[arg-type]
        total=counts[2 + _ORDERS :],  # type: ignore[arg-type]
        sys_len=int(counts[0]),
        ref_len=int(counts[1]),
        smooth_method="exp",
        effective_order=True,
    )
    return float(score.score) / 100
