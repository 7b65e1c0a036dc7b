"""How much an answer overlaps with the golds: BLEU (sacrebleu), ROUGE (rouge-score), METEOR (nltk).

Several golds: BLEU takes them as its references, ROUGE and METEOR the best one. Every score is
reported over all questions and, as `HasAns_<metric>`, over the answerable ones. On a question
without an answer silence scores 1 and any text 0 in ROUGE and METEOR, as in squad_v2; BLEU, which
belongs to the corpus, gets nothing from silence and loses precision by text. Fractions throughout.

BLEU runs with effective order, since the usual answer has fewer than four words; its settings are
`bleu_signature()`. rouge-score's tokeniser keeps [a-z0-9] only, so an answer in another script
scores 0 even when it is right, and ROUGE-2 of a one-word answer is 0 always.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .bootstrap import Evidence, FloatArray, point
from .ids import check_match
from .meteor import meteor_name, meteor_score
from .squad_v2 import is_answerable
from .wordnet import WordNet, find_wordnet

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_ORDERS = 4


def overlap_scores(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """bleu, rouge1, rouge2, rougeL, rougeLsum, meteor (or meteor_no_wordnet), each also HasAns_.

    Raises ValueError unless the ids match one for one.
    """
    return point(overlap_evidence(predictions, golds))


def bleu_signature() -> str:
    """sacrebleu's description of how BLEU is computed, to print beside the number."""
    bleu = _bleu()
    # Scoring tells it that the number of references varies from question to question.
    bleu.corpus_score(["a", "a"], [["a", "a"], ["b", None]])  # type: ignore[list-item]
    return str(bleu.get_signature())


def per_example_overlap(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], wordnet: WordNet | None
) -> FloatArray:
    """(examples, 5): ROUGE-1/2/L/Lsum F-measures and METEOR, each the best over the golds."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES))

    def scores(text: str, references: Sequence[str]) -> list[float]:
        if not references:
            return [float(text == "")] * (len(ROUGE_TYPES) + 1)
        best = scorer.score_multi(references, text)
        rouge = [float(best[kind].fmeasure) for kind in ROUGE_TYPES]
        return [*rouge, meteor_score(text, references, wordnet)]

    return np.array([scores(p, _references(g)) for p, g in zip(predictions, golds, strict=True)])


def overlap_evidence(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> Evidence:
    """Rows of (answerable, ROUGE-1/2/L/Lsum, METEOR, BLEU's ten counts)."""
    check_match(predictions, golds)
    wordnet = find_wordnet()
    names = (*ROUGE_TYPES, meteor_name(wordnet))
    texts, references = [predictions[i] for i in golds], list(golds.values())
    answerable = np.array([[float(is_answerable(answers))] for answers in references])
    overlap = per_example_overlap(texts, references, wordnet)
    counts = _bleu_counts(texts, references)

    def statistic(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        everything = _scores(counts_RK, rows_KC, names)
        with_answer = _scores(counts_RK * rows_KC[:, 0], rows_KC, names)
        return everything | {f"HasAns_{name}": value for name, value in with_answer.items()}

    return Evidence(
        ids=tuple(golds),
        rows=np.hstack([answerable, overlap, counts]),
        statistic=statistic,
        vectors={name: overlap[:, column] for column, name in enumerate(names)},
    )


def _references(golds: Sequence[str]) -> list[str]:
    """The different golds: annotators often agree, and the best over golds is the same."""
    return [gold for gold in dict.fromkeys(golds) if gold]


def _bleu() -> "BLEU":
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _bleu_counts(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> FloatArray:
    """(examples, 10): length, closest reference length, 4 matched and 4 total n-gram counts.

    They add up over examples, so BLEU of any resample needs nothing else.
    """
    bleu = _bleu()
    scores = [
        bleu.sentence_score(text, _references(answers) or [""])
        for text, answers in zip(texts, golds, strict=True)
    ]
    counts = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]
    return np.array(counts, dtype=np.float64)


def _scores(
    counts_RK: FloatArray, rows_KC: FloatArray, names: Sequence[str]
) -> dict[str, FloatArray]:
    """BLEU from the summed counts, the others as means; NaN for a resample without any example."""
    total_R = counts_RK.sum(axis=1)
    means = counts_RK @ rows_KC[:, 1 : 1 + len(names)]
    means /= np.where(total_R > 0, total_R, np.nan)[:, None]
    sums = counts_RK @ rows_KC[:, 1 + len(names) :]
    bleu = np.array([_bleu_from(row) for row in sums.tolist()])
    return {
        "bleu": np.where(total_R > 0, bleu, np.nan),
        **{name: means[:, column] for column, name in enumerate(names)},
    }


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
