"""How much an answer overlaps with its references: BLEU, chrF, ROUGE and METEOR.

They are computed by sacrebleu, rouge-score and nltk. With several references, BLEU takes all of
them, and the others take the best one. Every score is given over all questions and, as
`HasAns_<metric>`, over the answerable ones. On an unanswerable question ROUGE and METEOR give 1 to
an empty answer and 0 to any text, as squad_v2 does. BLEU is computed over the whole corpus: an
empty answer adds nothing, and a text lowers the precision. All scores are fractions.

BLEU uses effective order, because the usual answer has fewer than four words; `bleu_signature()`
gives its settings. ROUGE-2 of an answer of one word is always 0.

The tokeniser of rouge-score keeps only [a-z0-9], so a right answer in another script scores 0. The
official names stay with the official numbers. If the references need it, other numbers are added:
- `rouge1_unicode` and the other kinds of ROUGE, with the tokens of `unicode_tokens`;
- for scripts without spaces between words, `exact_unicode`, `f1_unicode` and `meteor_unicode` with
  the same tokens, and `bleu_char`, which is sacrebleu's BLEU with its tokeniser `char`.
`exact_unicode` and `f1_unicode` are percentages, like exact match and F1 of squad_v2, and equal
them on ASCII text. The official script of MLQA counts characters too. That of CMRC 2018
counts the longest common run of characters, so its F1 can be lower.

METEOR splits text by nltk's word tokeniser without sentence splitting, which needs no data. A right
answer of one word scores 0.5 by its formula, whose penalty for fragments is highest if each match is
a chunk of its own. nltk asks WordNet only about words that match neither exactly nor by stem, so
without WordNet some pairs would pass and a later one raise. Here WordNet is loaded before the first
pair. If it is not installed, synonyms are not matched and the result is called `meteor_no_wordnet`: a
lower number must not carry METEOR's name.

To add a metric, compute its rows in a function like `_official` and add the `Evidence` of
that function to `overlap_evidences`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..evidence import Evidence, FloatArray
from ..ids import check_match
from ..squad_v2 import is_answerable, normal_golds, normalise, word_f1
from .unicode_tokens import Tokeniser, need_characters, need_unicode, tokens
from .wordnet import WordNet, find_wordnet

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_ORDERS = 4
_PERCENTAGES = ("exact_unicode", "f1_unicode", "HasAns_exact_unicode", "HasAns_f1_unicode")
Golds = Mapping[str, Sequence[str]]


def overlap_evidences(predictions: Mapping[str, str], golds: Golds) -> tuple[Evidence, ...]:
    """The evidence of all overlap metrics.

    Raises ValueError unless predictions and references have the same ids.
    """
    check_match(predictions, golds)
    texts = [predictions[identity] for identity in golds]
    found = [_official(texts, golds), _chrf(texts, golds)]
    if need_unicode(golds):
        found.append(_unicode_rouge(texts, golds))
    if need_characters(golds):
        found.append(_by_characters(texts, golds))
    return tuple(found)


def corpus_bleu(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """BLEU of all texts together, 0 to 1."""
    return float(_bleu_scores(np.ones((1, len(texts))), _bleu_counts(texts, golds))[0])


def bleu_signature(tokeniser: str = "13a") -> str:
    """sacrebleu's description of how BLEU is computed, to be printed beside the number."""
    bleu = _bleu(tokeniser)
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
    only_answerable = {
        f"HasAns_{name}": np.where(answerable[:, 0] > 0, vector, np.nan)
        for name, vector in vectors.items()
    }
    return Evidence(
        ids=tuple(golds),
        rows=np.hstack([answerable, rows]),
        statistic=statistic,
        vectors={**vectors, **only_answerable},
        bounds=dict.fromkeys(_PERCENTAGES, (0.0, 100.0)),
    )


def _means(
    counts_RK: FloatArray, rows_KC: FloatArray, names: Sequence[str]
) -> dict[str, FloatArray]:
    """The mean of each column; NaN for a resample that holds no example."""
    total_R = counts_RK.sum(axis=1)
    means = counts_RK @ rows_KC / np.where(total_R > 0, total_R, np.nan)[:, None]
    return {name: means[:, column] for column, name in enumerate(names)}


def _official(texts: Sequence[str], golds: Golds) -> Evidence:
    """ROUGE, METEOR and BLEU, each with its own tokeniser."""
    wordnet, references = find_wordnet(), list(golds.values())
    meteor = _each(texts, references, lambda text, own: [meteor_score(text, own, wordnet)])
    values = np.hstack([_rouge(texts, references), meteor])
    counts = _bleu_counts(texts, references)
    return _with_bleu(golds, (*ROUGE_TYPES, meteor_name(wordnet)), values, "bleu", counts)


def _chrf(texts: Sequence[str], golds: Golds) -> Evidence:
    """chrF by sacrebleu, which takes the best reference: 6 orders of character n-grams, beta 2."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    rows = [
        metric._extract_corpus_statistics([text], [[one] for one in _references(own) or [""]])[0]
        for text, own in zip(texts, golds.values(), strict=True)
    ]

    def scores(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        found = [metric._compute_f_score(row) / 100 for row in (counts_RK @ rows_KC).tolist()]
        return {"chrf": np.where(counts_RK.sum(axis=1) > 0, found, np.nan)}

    return _evidence(golds, np.array(rows, dtype=np.float64), scores, {})


def _unicode_rouge(texts: Sequence[str], golds: Golds) -> Evidence:
    names = [f"{kind}_unicode" for kind in ROUGE_TYPES]
    values = _rouge(texts, list(golds.values()), Tokeniser())
    vectors = {name: values[:, column] for column, name in enumerate(names)}
    return _evidence(golds, values, lambda counts, rows: _means(counts, rows, names), vectors)


def _by_characters(texts: Sequence[str], golds: Golds) -> Evidence:
    """Exact match, F1 and METEOR with Unicode tokens, and BLEU of characters."""
    wordnet, references = find_wordnet(), list(golds.values())
    names = ("exact_unicode", "f1_unicode", f"{meteor_name(wordnet)}_unicode")

    def meteor(text: str, own: Sequence[str]) -> list[float]:
        return [meteor_score(text, own, wordnet, split=tokens)]

    answers = [_unicode_answer(*pair) for pair in zip(texts, references, strict=True)]
    values = np.hstack([100 * np.array(answers), _each(texts, references, meteor)])
    return _with_bleu(golds, names, values, "bleu_char", _bleu_counts(texts, references, "char"))


def _unicode_answer(text: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer, 0 to 1."""
    given, right = tokens(normalise(text)), [tokens(gold) for gold in normal_golds(golds)]
    return float(given in right), max(word_f1(given, gold) for gold in right)


def _with_bleu(
    golds: Golds, names: Sequence[str], values: FloatArray, bleu: str, counts: FloatArray
) -> Evidence:
    """Evidence with rows of values, and behind them the counts of BLEU."""

    def scores(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        means = _means(counts_RK, rows_KC[:, : len(names)], names)
        return {bleu: _bleu_scores(counts_RK, rows_KC[:, len(names) :])} | means

    vectors = {name: values[:, column] for column, name in enumerate(names)}
    return _evidence(golds, np.hstack([values, counts]), scores, vectors)


def _rouge(
    texts: Sequence[str], golds: Sequence[Sequence[str]], tokeniser: Tokeniser | None = None
) -> FloatArray:
    """One row for each example: the F-measure of each kind of ROUGE."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=tokeniser)

    def scores(text: str, references: Sequence[str]) -> list[float]:
        best = scorer.score_multi(references, text)
        return [float(best[kind].fmeasure) for kind in ROUGE_TYPES]

    return _each(texts, golds, scores, len(ROUGE_TYPES))


def _each(
    texts: Sequence[str],
    golds: Sequence[Sequence[str]],
    scores: Callable[[str, Sequence[str]], list[float]],
    width: int = 1,
) -> FloatArray:
    """(examples, width): the scores of each text, as described above if there is no answer."""
    return np.array(
        [
            scores(text, own) if (own := _references(answers)) else [float(text == "")] * width
            for text, answers in zip(texts, golds, strict=True)
        ]
    )


def _references(golds: Sequence[str]) -> list[str]:
    """The distinct references. Annotators often agree, and the best score stays the same."""
    return [gold for gold in dict.fromkeys(golds) if gold]


def _bleu(tokeniser: str) -> "BLEU":
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True, tokenize=tokeniser)


def _bleu_counts(
    texts: Sequence[str], golds: Sequence[Sequence[str]], tokeniser: str = "13a"
) -> FloatArray:
    """(examples, 10): length, closest reference length, 4 matched and 4 total n-gram counts.

    The counts of examples add up, so they are enough for the BLEU of any resample.
    """
    bleu = _bleu(tokeniser)
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


class NoWordNet:
    """A WordNet without synonyms."""

    def synsets(self, lemma: str) -> Sequence[object]:
        return ()


def meteor_name(wordnet: WordNet | None) -> str:
    """The metric's name with this WordNet."""
    return "meteor_no_wordnet" if wordnet is None else "meteor"


def meteor_score(
    prediction: str,
    golds: Sequence[str],
    wordnet: WordNet | None,
    split: Callable[[str], list[str]] | None = None,
    **weights: float,
) -> float:
    """The best METEOR over the references, 0 to 1. `weights` are nltk's alpha, beta and gamma.

    split: returns the words of a text; None is nltk's word tokeniser.
    """
    from nltk.tokenize import word_tokenize
    from nltk.translate import meteor_score as nltk_meteor

    split = split or partial(word_tokenize, preserve_line=True)
    references, words = [split(gold) for gold in golds], split(prediction)
    lexicon = wordnet or NoWordNet()
    return float(nltk_meteor.meteor_score(references, words, wordnet=lexicon, **weights))
