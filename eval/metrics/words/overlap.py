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

To add a metric, compute its rows in a function like `_official` and add that function to
`overlap_evidences`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..columns import FloatArray, rows
from ..columns import texts as ids_of
from ..evidence import Evidence, Scores, Vector
from ..ids import check_match, matched
from ..squad_v2 import is_answerable, normal_golds, normalise, word_f1
from .unicode_tokens import Tokeniser, need_characters, need_unicode, tokens
from .wordnet import WordNet, find_wordnet

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_ORDERS = 4
_PERCENTAGES = ("exact_unicode", "f1_unicode", "HasAns_exact_unicode", "HasAns_f1_unicode")
_BLEU_COUNTS = 2 + 2 * _ORDERS
Golds = Mapping[str, Sequence[str]]
Row = Callable[[str, Sequence[str]], Sequence[float]]
"""Returns the numbers that scores need of an answer, from its text and its references."""


def overlap_evidences(predictions: Mapping[str, str], golds: Golds) -> Iterator[Evidence]:
    """Yield the evidence of all overlap metrics, one after the other: it is large.

    Raises ValueError, at once, unless predictions and references have the same ids.
    """
    check_match(predictions, golds)
    kinds = [_official, _chrf]
    if need_unicode(golds):
        kinds.append(_unicode_rouge)
    if need_characters(golds):
        kinds.append(_by_characters)
    return (kind(predictions, golds) for kind in kinds)


def corpus_bleu(texts: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """BLEU of all texts together, 0 to 1."""
    counts, ones = map(_bleu_counter(), texts, golds), np.ones((1, len(texts)))
    return float(_bleu_scores(ones, rows(counts, len(texts), _BLEU_COUNTS)[:])[0])


def bleu_signature(tokeniser: str = "13a") -> str:
    """sacrebleu's description of how BLEU is computed, to be printed beside the number."""
    bleu = _bleu(tokeniser)
    # It learns only by scoring that the number of references differs between questions.
    bleu.corpus_score(["a", "a"], [["a", "a"], ["b", None]])  # type: ignore[list-item]
    return str(bleu.get_signature())


def _evidence(
    predictions: Mapping[str, str],
    golds: Golds,
    row: Row,
    scores: Callable[[FloatArray, FloatArray], dict[str, FloatArray]],
    names: Sequence[str] = (),
) -> Evidence:
    """Evidence that gives each of `scores` twice: over all questions, and over the answerable ones.

    `scores` maps (counts_RK, rows_KC) to one value for each resample. names: the metrics that are the
    means of the first columns of a row.
    """

    def statistic(rows_KC: FloatArray) -> Scores:
        def found(counts_RK: FloatArray) -> dict[str, FloatArray]:
            everything = scores(counts_RK, rows_KC[:, 1:])
            with_answer = scores(counts_RK * rows_KC[:, 0], rows_KC[:, 1:])
            return everything | {f"HasAns_{name}": value for name, value in with_answer.items()}

        return found

    each = ((is_answerable(own), *row(text, own)) for text, own in matched(predictions, golds))
    vectors = dict(chain.from_iterable(_vectors(name, n) for n, name in enumerate(names, start=1)))
    return Evidence(
        ids=ids_of(golds),
        rows=rows(each, len(golds), 1 + len(row("", ()))),
        statistic=statistic,
        vectors=vectors,
        bounds=dict.fromkeys(_PERCENTAGES, (0.0, 100.0)),
    )


def _vectors(name: str, column: int) -> Iterator[tuple[str, Vector]]:
    yield name, lambda rows_NC: rows_NC[:, column]
    yield f"HasAns_{name}", lambda rows_NC: np.where(rows_NC[:, 0] > 0, rows_NC[:, column], np.nan)


def _means(
    counts_RK: FloatArray, rows_KC: FloatArray, names: Sequence[str]
) -> dict[str, FloatArray]:
    """The mean of each column; NaN for a resample that holds no example."""
    total_R = counts_RK.sum(axis=1)
    means = counts_RK @ rows_KC / np.where(total_R > 0, total_R, np.nan)[:, None]
    return {name: means[:, column] for column, name in enumerate(names)}


def _official(predictions: Mapping[str, str], golds: Golds) -> Evidence:
    """ROUGE, METEOR and BLEU, each with its own tokeniser."""
    wordnet = find_wordnet()
    rouge, meteor = _rouge(), _best(lambda text, own: [meteor_score(text, own, wordnet)])
    bleu = _bleu_counter()

    def row(text: str, own: Sequence[str]) -> list[float]:
        return [*rouge(text, own), *meteor(text, own), *bleu(text, own)]

    return _with_bleu(predictions, golds, row, (*ROUGE_TYPES, meteor_name(wordnet)), "bleu")


def _chrf(predictions: Mapping[str, str], golds: Golds) -> Evidence:
    """chrF by sacrebleu, which takes the best reference: 6 orders of character n-grams, beta 2."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()

    def row(text: str, own: Sequence[str]) -> Sequence[float]:
        streams = [[one] for one in _references(own) or [""]]
        return metric._extract_corpus_statistics([text], streams)[0]

    def scores(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        found = [metric._compute_f_score(one) / 100 for one in (counts_RK @ rows_KC).tolist()]
        return {"chrf": np.where(counts_RK.sum(axis=1) > 0, found, np.nan)}

    return _evidence(predictions, golds, row, scores)


def _unicode_rouge(predictions: Mapping[str, str], golds: Golds) -> Evidence:
    names = [f"{kind}_unicode" for kind in ROUGE_TYPES]

    def scores(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        return _means(counts_RK, rows_KC, names)

    return _evidence(predictions, golds, _rouge(Tokeniser()), scores, names)


def _by_characters(predictions: Mapping[str, str], golds: Golds) -> Evidence:
    """Exact match, F1 and METEOR with Unicode tokens, and BLEU of characters."""
    wordnet, bleu = find_wordnet(), _bleu_counter("char")
    names = ("exact_unicode", "f1_unicode", f"{meteor_name(wordnet)}_unicode")
    meteor = _best(lambda text, own: [meteor_score(text, own, wordnet, split=tokens)])

    def row(text: str, own: Sequence[str]) -> list[float]:
        answer = [100 * one for one in _unicode_answer(text, own)]
        return [*answer, *meteor(text, own), *bleu(text, own)]

    return _with_bleu(predictions, golds, row, names, "bleu_char")


def _unicode_answer(text: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer, 0 to 1."""
    given, right = tokens(normalise(text)), [tokens(gold) for gold in normal_golds(golds)]
    return float(given in right), max(word_f1(given, gold) for gold in right)


def _with_bleu(
    predictions: Mapping[str, str], golds: Golds, row: Row, names: Sequence[str], bleu: str
) -> Evidence:
    """Evidence whose rows hold the values of `names`, and behind them the counts of BLEU."""

    def scores(counts_RK: FloatArray, rows_KC: FloatArray) -> dict[str, FloatArray]:
        means = _means(counts_RK, rows_KC[:, : len(names)], names)
        return {bleu: _bleu_scores(counts_RK, rows_KC[:, len(names) :])} | means

    return _evidence(predictions, golds, row, scores, names)


def _rouge(tokeniser: Tokeniser | None = None) -> Row:
    """What gives the F-measure of each kind of ROUGE of an answer."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=tokeniser)

    def scores(text: str, references: Sequence[str]) -> list[float]:
        best = scorer.score_multi(references, text)
        return [float(best[kind].fmeasure) for kind in ROUGE_TYPES]

    return _best(scores, len(ROUGE_TYPES))


def _best(scores: Row, width: int = 1) -> Row:
    """The scores of an answer against its distinct references, and as described above if it has none."""

    def row(text: str, golds: Sequence[str]) -> Sequence[float]:
        references = _references(golds)
        return scores(text, references) if references else [float(text == "")] * width

    return row


def _references(golds: Sequence[str]) -> list[str]:
    """The distinct references. Annotators often agree, and the best score stays the same."""
    return [gold for gold in dict.fromkeys(golds) if gold]


def _bleu(tokeniser: str) -> "BLEU":
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True, tokenize=tokeniser)


def _bleu_counter(tokeniser: str = "13a") -> Row:
    """What gives the length of an answer, the closest reference length, and 4 matched and 4 total
    n-gram counts.

    The counts of examples add up, so they are enough for the BLEU of any resample.
    """
    bleu = _bleu(tokeniser)

    def row(text: str, golds: Sequence[str]) -> list[float]:
        found = bleu.sentence_score(text, _references(golds) or [""])
        return [found.sys_len, found.ref_len, *found.counts, *found.totals]

    return row


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
