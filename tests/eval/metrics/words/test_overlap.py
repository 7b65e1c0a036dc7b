"""Laws of the overlap metrics: equal to the libraries that they name."""

import pytest

from eval.metrics.evidence import scores_of
from eval.metrics.words import overlap
from eval.metrics.words.overlap import NoWordNet, meteor_score
from eval.metrics.words.wordnet import find_wordnet
from tests.support.questions import Golds


def overlap_scores(answers: dict[str, str], golds: Golds) -> dict[str, float]:
    found: dict[str, float] = {}
    for evidence in overlap.overlap_evidences(answers, golds):
        found |= scores_of(evidence)
    return found


def test_rouge_equals_rouge_score(written):
    from rouge_score.rouge_scorer import RougeScorer

    answers, golds = written
    scorer = RougeScorer(list(overlap.ROUGE_TYPES))
    asked = [key for key in golds if golds[key]]
    best = [scorer.score_multi(golds[key], answers[key]) for key in asked]
    scores = overlap_scores(answers, golds)
    silent = sum(answers[key] == "" for key in golds if not golds[key])
    for kind in overlap.ROUGE_TYPES:
        total = sum(score[kind].fmeasure for score in best)
        assert scores[f"HasAns_{kind}"] == pytest.approx(total / len(asked))
        assert scores[kind] == pytest.approx((total + silent) / len(golds))


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_scores_equal_sacrebleu(written, name):
    from sacrebleu.metrics import BLEU, CHRF

    answers, golds = written
    scores = overlap_scores(answers, golds)
    metric = {"bleu": BLEU(effective_order=True), "chrf": CHRF()}[name]
    for prefix, keys in (("", list(golds)), ("HasAns_", [key for key in golds if golds[key]])):
        most = max(len(golds[key]) for key in keys)
        streams = [
            [dict(enumerate(golds[key] or [""])).get(number) for key in keys]
            for number in range(most)
        ]
        corpus = metric.corpus_score([answers[key] for key in keys], streams)
        assert scores[f"{prefix}{name}"] == pytest.approx(corpus.score / 100, abs=1e-9)
    assert overlap.bleu_signature().startswith("nrefs:var|case:mixed|eff:yes|tok:13a|smooth:exp|")


def test_bleu_of_short_right_answers_is_one():
    scores = overlap_scores({"1": "Paris", "2": "red house"}, {"1": ["Paris"], "2": ["red house"]})
    assert scores["bleu"] == scores["HasAns_bleu"] == pytest.approx(1)


def test_an_empty_answer_is_right_only_if_there_is_no_answer():
    golds = {"1": ["Paris"], "2": [], "3": []}
    scores = overlap_scores({"1": "", "2": "", "3": "Rome"}, golds)
    assert (scores["rouge1"], scores["HasAns_rouge1"]) == pytest.approx((1 / 3, 0))


def test_meteor_equals_nltk_on_word_lists():
    from nltk.translate.meteor_score import meteor_score as theirs

    found = find_wordnet()
    golds = ["the cats sat on the mat", "a cat sits"]
    for answer in ("the cat sat on the mat", "cats sit", "on the mat the cat sat"):
        expected = max(theirs([g.split()], answer.split(), wordnet=NoWordNet()) for g in golds)
        assert meteor_score(answer, golds, None) == pytest.approx(expected)
    assert meteor_score("Paris", ["Paris"], found) == 0.5
