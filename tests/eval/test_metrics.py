"""Laws of eval.metrics: equal to the definitions and libraries they name, honest about doubt."""

import hashlib
import json
import random
import re
import string
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from math import comb
from pathlib import Path

import numpy as np
import pytest

from eval.metrics import bootstrap, classification, ids, measure, names, overlap, squad_v2, wordnet
from eval.metrics.meteor import meteor_score
from eval.metrics.wordnet import find_wordnet, install
from tests.support.paths import ROOT

Golds = dict[str, list[str]]


# The official squad_v2 evaluation, from its published definition, question by question.
def plain_normalise(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def plain_f1(gold: str, prediction: str) -> float:
    gold_words, words = plain_normalise(gold).split(), plain_normalise(prediction).split()
    same = sum((Counter(gold_words) & Counter(words)).values())
    if len(gold_words) == 0 or len(words) == 0:
        return float(gold_words == words)
    if same == 0:
        return 0.0
    precision, recall = same / len(words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def plain_best(
    predictions: dict[str, str], scores: dict[str, float], chance: dict[str, float], golds: Golds
) -> tuple[float, float]:
    current = best = float(sum(1 for answers in golds.values() if not answers))
    threshold = 0.0
    for key in sorted(chance, key=lambda key: chance[key]):
        if golds[key]:
            current += scores[key]
        elif predictions[key]:
            current -= 1
        if current > best:
            best, threshold = current, chance[key]
    return 100 * best / len(scores), threshold


def plain_squad(
    predictions: dict[str, str], golds: Golds, chance: dict[str, float]
) -> dict[str, float]:
    exact, f1 = {}, {}
    for key, answers in golds.items():
        texts = [text for text in answers if plain_normalise(text)] or [""]
        given = predictions[key]
        exact[key] = float(max(plain_normalise(t) == plain_normalise(given) for t in texts))
        f1[key] = max(plain_f1(text, given) for text in texts)
    groups = {
        "": list(golds),
        "HasAns_": [key for key in golds if golds[key]],
        "NoAns_": [key for key in golds if not golds[key]],
    }
    result: dict[str, float] = {}
    for prefix, keys in groups.items():
        if keys:
            result[f"{prefix}exact"] = 100 * sum(exact[key] for key in keys) / len(keys)
            result[f"{prefix}f1"] = 100 * sum(f1[key] for key in keys) / len(keys)
            result[f"{prefix}total"] = len(keys)
    for name, scores in (("exact", exact), ("f1", f1)):
        best, threshold = plain_best(predictions, scores, chance, golds)
        result |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return result


@pytest.fixture(scope="module")
def squad(shared: Path) -> dict[str, tuple[str, list[str]]]:
    """Context and answers of each real question."""
    data = json.loads((shared / "data/squad/squad_v2.json").read_text("utf-8"))["data"]
    return {
        question["id"]: (paragraph["context"], [a["text"] for a in question["answers"]])
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }


def some_prediction(context: str, answers: list[str], draw: random.Random) -> str:
    """Right, nearly right, wrong or empty, with the dressing that normalisation is about."""
    words = context.split()
    start = draw.randrange(len(words))
    span = " ".join(words[start : start + draw.randint(1, 6)])
    right = draw.choice(answers) if answers else ""
    dressed = [f"the {right}", f"{right}.", f'"{right}"', right.upper(), f" {right}  indeed"]
    odd = ["The", "a", ".", "Ünïcödé — naïve", "\u00a0", "日本", "unanswerable", f"{right}\u2013x"]
    partial = " ".join(right.split()[: draw.randint(0, 3)])
    return draw.choice([right, right, "", span, partial, draw.choice(dressed), draw.choice(odd)])


def test_equals_the_official_definition_on_1000_random_prediction_sets(squad):
    draw = random.Random(0)
    questions = list(squad)
    for _ in range(1000):
        chosen = draw.sample(questions, draw.randint(1, 14))
        golds = {key: squad[key][1] for key in chosen}
        predictions = {key: some_prediction(*squad[key], draw) for key in chosen}
        chance = {key: draw.random() for key in chosen}
        ours = squad_v2.squad_scores(predictions, golds, chance)
        theirs = plain_squad(predictions, golds, chance)
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=0, abs=1e-9)


def test_perfect_silent_and_abstaining_systems(squad):
    golds = {key: answers for key, (_, answers) in squad.items()}
    share = 100 * sum(not answers for answers in golds.values()) / len(golds)
    perfect = {key: answers[0] if answers else "" for key, answers in golds.items()}
    silent = dict.fromkeys(golds, "")
    scores = squad_v2.squad_scores(perfect, golds)
    assert {scores[name] for name in names.score_names(scores)} == {100.0}
    scores = squad_v2.squad_scores(silent, golds)
    assert (scores["exact"], scores["f1"]) == pytest.approx((share, share))
    assert (scores["NoAns_exact"], scores["HasAns_exact"]) == (100, 0)
    abstainer = {key: "wrong" if answers else "" for key, answers in golds.items()}
    assert squad_v2.squad_scores(abstainer, golds)["NoAns_f1"] == 100


HAND_GOLDS = {"1": ["Paris"], "2": ["France"], "3": ["1789", "in 1789"], "4": [], "5": []}
HAND_ANSWERS = {"1": "paris.", "2": "north of western France", "3": "never", "4": "", "5": "Rome"}


def test_hand_counted_rows():
    assert squad_v2.squad_scores(HAND_ANSWERS, HAND_GOLDS) == pytest.approx(
        {
            "exact": 40,
            "f1": 48,
            "total": 5,
            "HasAns_exact": 100 / 3,
            "HasAns_f1": 140 / 3,
            "HasAns_total": 3,
            "NoAns_exact": 50,
            "NoAns_f1": 50,
            "NoAns_total": 2,
        }
    )


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("U.S.", "US", True),
        ("$5", "5", True),
        ("1,000", "1000", True),
        ("The", "", True),
        ("1990\u20132000", "1990\u20142000", False),
        ("twenty-one", "twenty one", False),
        ("café", "cafe", False),
    ],
)
def test_what_is_equal_after_normalisation(left, right, equal):
    assert (squad_v2.normalise(left) == squad_v2.normalise(right)) is equal
    assert squad_v2.exact_match(left, [right]) == float(equal)


def test_several_golds_count_by_the_best_one():
    assert squad_v2.exact_match("Norman king", ["king", "the Norman king"]) == 1
    assert squad_v2.token_f1("a Norman king", ["king", "William"]) == pytest.approx(2 / 3)
    assert squad_v2.token_f1("", []) == squad_v2.exact_match("", []) == 1


def tied(draw: random.Random) -> tuple[dict[str, str], Golds, dict[str, float]]:
    golds = {str(i): [] if draw.random() < 0.5 else ["red house"] for i in range(60)}
    answers = {key: draw.choice(["", "red house", "house", "blue"]) for key in golds}
    return answers, golds, {key: draw.choice([0.1, 0.2, 0.5, 0.9]) for key in golds}


def test_best_thresholds_ignore_row_order_and_are_reached_by_applying_them():
    draw = random.Random(1)
    for _ in range(20):
        answers, golds, chance = tied(draw)
        scores = squad_v2.squad_scores(answers, golds, chance)
        order = draw.sample(list(golds), len(golds))
        shuffled = squad_v2.squad_scores(answers, {key: golds[key] for key in order}, chance)
        assert shuffled == pytest.approx(scores, abs=1e-12)
        for name in ("exact", "f1"):
            reached = [
                squad_v2.squad_scores(answers, golds, chance, threshold=t)[name]
                for t in (-1.0, *sorted(set(chance.values())))
            ]
            assert scores[f"best_{name}"] == pytest.approx(max(reached))
            fitted = squad_v2.fit_threshold(answers, golds, chance, name)
            applied = squad_v2.apply_threshold(answers, chance, fitted)
            assert squad_v2.squad_scores(applied, golds)[name] == pytest.approx(max(reached))


def test_a_threshold_silences_what_lies_above_it_and_leaves_the_oracle_alone():
    chance = {"1": 0.1, "2": 0.9, "3": 0.2, "4": 0.8, "5": 0.7}
    scores = squad_v2.squad_scores(HAND_ANSWERS, HAND_GOLDS, chance, threshold=0.5)
    assert (scores["HasAns_f1"], scores["NoAns_f1"]) == pytest.approx((100 / 3, 100))
    silenced = squad_v2.apply_threshold(HAND_ANSWERS, chance, 0.5)
    assert scores == squad_v2.squad_scores(silenced, HAND_GOLDS, chance, before=HAND_ANSWERS)
    raw = squad_v2.squad_scores(HAND_ANSWERS, HAND_GOLDS, chance)
    assert scores["best_f1"] == raw["best_f1"]
    with pytest.raises(ValueError, match="needs"):
        squad_v2.squad_scores(HAND_ANSWERS, HAND_GOLDS, threshold=0.5)


@pytest.mark.parametrize("score", [squad_v2.squad_scores, overlap.overlap_scores])
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({k: v for k, v in HAND_ANSWERS.items() if k != "2"}, "1 of 5 have no prediction: '2'"),
        (HAND_ANSWERS | {"6": "x"}, "no known id: '6'"),
    ],
)
def test_ids_match_one_for_one_or_nothing_is_scored(score, answers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        score(answers, HAND_GOLDS)


def test_nothing_duplicate_or_half_given_is_scored():
    with pytest.raises(ValueError, match="nothing to score"):
        squad_v2.squad_scores({}, {})
    with pytest.raises(ValueError, match="no prediction"):
        squad_v2.squad_scores(HAND_ANSWERS, HAND_GOLDS, {"1": 0.5})
    with pytest.raises(ValueError, match="'a'"):
        ids.check_unique(["a", "b", "a"], "predictions")
    with pytest.raises(ValueError, match="2 predictions for 1"):
        classification.classification_scores(["a", "b"], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"gold label.*'c'"):
        classification.classification_scores(["a"], ["c"], ["a", "b"])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_classification_equals_scikit_learn(size):
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    draw = random.Random(size)
    labels = [f"label {i}" for i in range(size)]
    kinds = ("precision", "recall", "f1")
    for _ in range(40):
        count = draw.randint(1, 40)
        golds = draw.choices(labels[: draw.randint(1, size)], k=count)
        given = draw.choices([*labels, "none of them"], k=count)
        ours = classification.classification_scores(given, golds, labels)
        assert ours["accuracy"] == pytest.approx(accuracy_score(golds, given))
        assert ours["unparsable"] == pytest.approx(given.count("none of them") / count)

        def theirs(average, labels, golds=golds, given=given):
            scores = precision_recall_fscore_support(
                golds, given, labels=labels, average=average, zero_division=0
            )
            return dict(zip(kinds, scores[:3], strict=True))

        each = theirs(None, labels)
        macro = theirs("macro", [label for label in labels if label in {*golds, *given}])
        plain = theirs(None, labels[-1:]) if size == 2 else macro
        per_class = classification.per_class_scores(given, golds, labels)
        for kind in kinds:
            assert ours[kind] == pytest.approx(float(np.squeeze(plain[kind])))
            assert ours[f"{kind}_macro"] == pytest.approx(macro[kind])
            assert ours[f"{kind}_weighted"] == pytest.approx(theirs("weighted", labels)[kind])
            assert [per_class[label][kind] for label in labels] == pytest.approx(list(each[kind]))


def test_confusion_counts_gold_by_prediction_and_what_is_no_label():
    counts = classification.confusion(["a", "b", "?", "b"], ["a", "a", "b", "b"], ["a", "b"])
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1]]


@pytest.fixture(scope="module")
def written(squad) -> tuple[dict[str, str], Golds]:
    """Written answers to 150 real questions."""
    draw = random.Random(2)
    keys = draw.sample(list(squad), 150)
    return {k: some_prediction(*squad[k], draw) for k in keys}, {k: squad[k][1] for k in keys}


def test_rouge_equals_rouge_score(written):
    from rouge_score.rouge_scorer import RougeScorer

    answers, golds = written
    scorer = RougeScorer(list(overlap.ROUGE_TYPES))
    asked = [key for key in golds if golds[key]]
    best = [scorer.score_multi(golds[key], answers[key]) for key in asked]
    scores = overlap.overlap_scores(answers, golds)
    silent = sum(answers[key] == "" for key in golds if not golds[key])
    for kind in overlap.ROUGE_TYPES:
        total = sum(score[kind].fmeasure for score in best)
        assert scores[f"HasAns_{kind}"] == pytest.approx(total / len(asked))
        assert scores[kind] == pytest.approx((total + silent) / len(golds))


def test_bleu_equals_sacrebleu(written):
    from sacrebleu.metrics import BLEU

    answers, golds = written
    scores = overlap.overlap_scores(answers, golds)
    for prefix, keys in (("", list(golds)), ("HasAns_", [key for key in golds if golds[key]])):
        most = max(len(golds[key]) for key in keys)
        streams = [
            [dict(enumerate(golds[key] or [""])).get(number) for key in keys]
            for number in range(most)
        ]
        corpus = BLEU(effective_order=True).corpus_score([answers[key] for key in keys], streams)
        assert scores[f"{prefix}bleu"] == pytest.approx(corpus.score / 100)
    assert overlap.bleu_signature().startswith("nrefs:var|case:mixed|eff:yes|tok:13a|smooth:exp|")


def test_bleu_of_short_right_answers_is_one():
    scores = overlap.overlap_scores(
        {"1": "Paris", "2": "red house"}, {"1": ["Paris"], "2": ["red house"]}
    )
    assert scores["bleu"] == scores["HasAns_bleu"] == pytest.approx(1)


def test_silence_is_right_where_there_is_no_answer_and_only_there():
    golds = {"1": ["Paris"], "2": [], "3": []}
    scores = overlap.overlap_scores({"1": "", "2": "", "3": "Rome"}, golds)
    assert (scores["rouge1"], scores["HasAns_rouge1"]) == pytest.approx((1 / 3, 0))


MINI_NOUNS = [
    "00000000 06 n 02 car 0 auto 0 000 | a motor vehicle  \n",
    "00000048 06 n 01 boat 0 000 | a vessel for travel on water  \n",
]


@pytest.fixture
def mini_wordnet(tmp_path: Path) -> Path:
    """A real WordNet database, of three nouns."""
    source = tmp_path / "database"
    source.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        for kind in ("data", "index"):
            (source / f"{kind}.{part}").write_text("", "ascii")
        (source / f"{part}.exc").write_text("", "ascii")
    (source / "data.adj").write_text("  1 WordNet 3.0 Copyright 2006\n", "ascii")
    offset = len(MINI_NOUNS[0])
    data = MINI_NOUNS[0] + MINI_NOUNS[1].replace("00000048", f"{offset:08d}")
    (source / "data.noun").write_text(data, "ascii")
    index = f"car n 1 0 1 0 00000000\nauto n 1 0 1 0 00000000\nboat n 1 0 1 0 {offset:08d}\n"
    (source / "index.noun").write_text(index, "ascii")
    return source


@pytest.fixture
def fresh_nltk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An nltk that looks for data in one empty folder only and has loaded none yet."""
    import nltk.corpus
    import nltk.data
    from nltk.corpus.reader import CorpusReader, WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    other = LazyCorpusLoader("omw", CorpusReader, r".*")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    lazy = LazyCorpusLoader("wordnet", WordNetCorpusReader, other)
    monkeypatch.setattr(nltk.corpus, "wordnet", lazy)
    yield tmp_path / "nltk_data"


def test_meteor_without_wordnet_says_so_in_its_name(fresh_nltk):
    scores = overlap.overlap_scores({"1": "the old car"}, {"1": ["the old auto"]})
    assert find_wordnet() is None
    assert "meteor" not in scores and scores["meteor_no_wordnet"] < 0.7
    assert "HasAns_meteor_no_wordnet" in scores


def test_meteor_with_wordnet_matches_synonyms_as_nltk_does(fresh_nltk, mini_wordnet):
    from nltk.translate.meteor_score import single_meteor_score

    assert install(mini_wordnet, fresh_nltk) == fresh_nltk / "corpora" / "wordnet"
    found = find_wordnet()
    scores = overlap.overlap_scores({"1": "the old car"}, {"1": ["the old auto"]})
    theirs = single_meteor_score(["the", "old", "auto"], ["the", "old", "car"], wordnet=found)
    assert scores["meteor"] == pytest.approx(theirs) and theirs > 0.9
    assert meteor_score("the old boat", ["the old auto"], found) < 0.7


def test_the_archive_is_checked_before_it_is_unpacked(
    fresh_nltk, mini_wordnet, tmp_path, monkeypatch
):
    path = tmp_path / "WordNet-3.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(mini_wordnet, "WordNet-3.0/dict")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(wordnet, "DEBIAN", tmp_path / "none")
    with pytest.raises(ValueError, match=f"sha256 {digest}, not 640db279"):
        wordnet.get(fresh_nltk, path.as_uri())
    with pytest.raises(ValueError, match=r"cannot be had.*wordnet-base"):
        wordnet.get(fresh_nltk, (tmp_path / "gone").as_uri())
    assert find_wordnet() is None, "nothing was installed"
    assert wordnet.get(fresh_nltk, path.as_uri(), digest).is_dir()
    assert find_wordnet() is not None


def test_a_broken_wordnet_is_an_error_and_no_database_is_none_to_install(
    fresh_nltk, mini_wordnet, tmp_path
):
    (install(mini_wordnet, fresh_nltk) / "lexnames").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        find_wordnet()
    with pytest.raises(ValueError, match=r"data\.noun is missing"):
        install(tmp_path, fresh_nltk)


def test_meteor_equals_nltk_on_word_lists():
    from nltk.translate.meteor_score import meteor_score as theirs

    found = find_wordnet()
    golds = ["the cats sat on the mat", "a cat sits"]
    for answer in ("the cat sat on the mat", "cats sit", "on the mat the cat sat"):
        expected = max(theirs([g.split()], answer.split(), wordnet=_Silent()) for g in golds)
        assert meteor_score(answer, golds, None) == pytest.approx(expected)
    assert meteor_score("Paris", ["Paris"], found) == 0.5


class _Silent:
    def synsets(self, lemma):
        return []


def test_the_interval_of_a_mean_is_that_of_plain_resampling():
    values = np.random.default_rng(0).exponential(size=400)
    draw = np.random.default_rng(1)
    means = values[draw.integers(0, 400, size=(4000, 400))].mean(axis=1)
    low, high = bootstrap.confidence_interval(values, resamples=4000)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert bootstrap.confidence_interval(values[::-1], resamples=4000) == (low, high)
    assert bootstrap.confidence_interval(values, resamples=4000, seed=1) != (low, high)
    narrow = bootstrap.confidence_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_a_95_percent_interval_holds_the_truth_in_95_percent_of_cases():
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        low, high = bootstrap.confidence_interval(draw.random(200) < 0.3, resamples=500)
        held += low <= 0.3 <= high
    assert 0.92 < held / 400 < 0.975


def test_intervals_of_scores_that_are_no_means_recompute_them_on_each_resample():
    draw = random.Random(4)
    labels = ["a", "b", "c"]
    golds = draw.choices(labels, weights=[5, 3, 1], k=120)
    given = [g if draw.random() < 0.7 else draw.choice(labels) for g in golds]
    keyed = {str(i): g for i, g in enumerate(golds)}
    evidence = classification.classification_evidence(
        {str(i): p for i, p in enumerate(given)}, keyed, labels
    )
    plain = []
    for _ in range(800):
        picks = draw.choices(range(120), k=120)
        scores = classification.classification_scores(
            [given[i] for i in picks], [golds[i] for i in picks], labels
        )
        plain.append(scores["f1_macro"])
    found = bootstrap.intervals(evidence, resamples=4000)["f1_macro"]
    assert found == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.02)


def evidence_of(correct: list[int]) -> bootstrap.Evidence:
    answers = {str(i): "yes" if right else "no" for i, right in enumerate(correct)}
    return classification.classification_evidence(
        answers, dict.fromkeys(answers, "yes"), ["no", "yes"]
    )


def test_a_paired_test_counts_wins_and_equals_the_exact_sign_test():
    draw = random.Random(5)
    first = [int(draw.random() < 0.6) for _ in range(300)]
    second = [right if draw.random() < 0.8 else int(draw.random() < 0.8) for right in first]
    wins = sum(b > a for a, b in zip(first, second, strict=True))
    losses = sum(b < a for a, b in zip(first, second, strict=True))
    found = bootstrap.paired(evidence_of(first), evidence_of(second), resamples=5000)["accuracy"]
    assert (found.wins, found.losses, found.ties) == (wins, losses, 300 - wins - losses)
    assert found.difference == pytest.approx((wins - losses) / 300)
    assert found.low < found.difference < found.high
    changed, more = wins + losses, max(wins, losses)
    exact = min(1.0, 2 * sum(comb(changed, k) for k in range(more, changed + 1)) / 2**changed)
    assert found.p_value == pytest.approx(exact, abs=0.02)


def test_paired_extremes():
    same = evidence_of([1, 0, 1, 1, 0] * 20)
    found = bootstrap.paired(same, same)["f1"]
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    better = evidence_of([1] * 100)
    found = bootstrap.paired(same, better)["accuracy"]
    assert found.p_value == pytest.approx(1 / 1001) and found.low > 0
    assert bootstrap.paired(same, better)["f1"].wins is None


def test_a_paired_test_needs_the_same_examples_but_not_the_same_order(written):
    answers, golds = written
    other = {key: text if i % 3 else "" for i, (key, text) in enumerate(answers.items())}
    backwards = {key: golds[key] for key in reversed(golds)}
    first = squad_v2.squad_evidence(answers, golds)
    forth = bootstrap.paired(first, squad_v2.squad_evidence(other, golds))
    back = bootstrap.paired(first, squad_v2.squad_evidence(other, backwards))
    assert forth == back
    assert forth["HasAns_exact"].ties < forth["exact"].ties < len(golds)
    few = {key: golds[key] for key in list(golds)[1:]}
    with pytest.raises(ValueError, match="same examples"):
        bootstrap.paired(first, squad_v2.squad_evidence({key: answers[key] for key in few}, few))


def test_chance_differences_are_called_significant_in_5_percent_of_cases():
    draw = random.Random(6)
    false_alarms = 0
    for _ in range(150):
        first = [int(draw.random() < 0.7) for _ in range(150)]
        second = [int(draw.random() < 0.7) for _ in range(150)]
        found = bootstrap.paired(evidence_of(first), evidence_of(second), resamples=200)
        false_alarms += found["accuracy"].p_value <= 0.05
    assert false_alarms / 150 < 0.1


def test_every_score_has_an_interval_around_it_and_counts_have_none(written):
    answers, golds = written
    chance = {key: number / len(golds) for number, key in enumerate(golds)}
    labels = ["neg", "pos"]
    truth = {str(i): labels[i % 2] for i in range(30)}
    given = {key: label if int(key) % 5 else "pos" for key, label in truth.items()}
    for results in (
        measure.answer_results(
            squad_v2.apply_threshold(answers, chance, 0.9), golds, chance, before=answers
        ),
        measure.classification_results(given, truth, labels),
    ):
        for name in names.score_names(results):
            low, high = results[f"{name}_ci95"]
            assert low <= results[name] <= high, name
        for name in results:
            if not names.is_score(name):
                assert f"{name}_ci95" not in results
        json.dumps(results, allow_nan=False)


def test_a_threshold_holds_for_overlap_too():
    chance = dict.fromkeys(HAND_GOLDS, 1.0)
    silenced = squad_v2.apply_threshold(HAND_ANSWERS, chance, 0.5)
    results = measure.answer_results(silenced, HAND_GOLDS, chance, before=HAND_ANSWERS)
    assert (results["HasAns_rouge1"], results["rouge1"], results["exact"]) == (0, 0.4, 40)


def test_which_way_is_better():
    assert names.higher_is_better("f1") and not names.higher_is_better("unparsable")
    with pytest.raises(ValueError, match="not a score"):
        names.higher_is_better("best_f1_thresh")


def test_drop_in_metrics_equal_the_functions(tmp_path, written):
    from eval.metrics import drop_in

    answers, golds = written
    references = [
        {"id": key, "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for key, texts in golds.items()
    ]
    given = [
        {"id": key, "prediction_text": text, "no_answer_probability": number / 150}
        for number, (key, text) in enumerate(answers.items())
    ]
    chance = {row["id"]: row["no_answer_probability"] for row in given}
    v2 = drop_in.SquadV2(cache_dir=tmp_path)
    found = v2.compute(predictions=given[::-1], references=references)
    assert found == squad_v2.squad_scores(answers, golds, chance)
    found = v2.compute(predictions=given, references=references, no_answer_threshold=0.5)
    assert found == squad_v2.squad_scores(answers, golds, chance, threshold=0.5)
    other, unasked = given[0] | {"id": "other"}, references[0] | {"id": "other"}
    with pytest.raises(ValueError, match="predictions: 1 id"):
        v2.compute(predictions=[*given, given[0]], references=[*references, unasked])
    with pytest.raises(ValueError, match="references: 1 id"):
        v2.compute(predictions=[*given, other], references=[*references, references[0]])
    v1 = drop_in.Squad(cache_dir=tmp_path)
    pairs = [{key: row[key] for key in ("id", "prediction_text")} for row in given]
    found = v1.compute(predictions=pairs, references=references)
    assert found["exact_match"] == squad_v2.squad_scores(answers, golds)["exact"]


def test_drop_in_overlap_takes_the_hubs_arguments(tmp_path):
    """Those that the libraries take; another is refused by name."""
    from nltk.translate import meteor_score as nltk_meteor
    from rouge_score.rouge_scorer import RougeScorer

    from eval.metrics import drop_in, meteor
    from eval.metrics.wordnet import find_wordnet

    texts = {
        "predictions": ["the cats were running", "", "a dog"],
        "references": [["the cat ran", "cats run fast"], [], ["dogs"]],
    }

    def compute(metric, **keys):
        return metric(cache_dir=tmp_path).compute(**texts, **keys)

    kinds = ["rouge1", "rouge3", "rougeL"]
    each = compute(drop_in.Rouge, rouge_types=kinds, use_stemmer=True, use_aggregator=False)
    scorer = RougeScorer(kinds, use_stemmer=True)
    best = scorer.score_multi(texts["references"][0], texts["predictions"][0])
    assert list(each) == kinds and each["rouge1"][0] == best["rouge1"].fmeasure > 0.5
    assert [each[kind][1] for kind in kinds] == [1.0, 1.0, 1.0]
    means = compute(drop_in.Rouge, rouge_types=kinds, use_stemmer=True)
    assert means == pytest.approx({kind: sum(row) / 3 for kind, row in each.items()})
    assert compute(drop_in.Rouge)["rouge1"] < compute(drop_in.Rouge, use_stemmer=True)["rouge1"]

    weights = {"alpha": 0.5, "beta": 2.0, "gamma": 0.1}
    lexicon = find_wordnet() or meteor._NoWordNet()
    golds = [[g.split() for g in gold] for gold in texts["references"]]
    singles = [
        nltk_meteor.meteor_score(gold, text.split(), wordnet=lexicon, **weights)
        for gold, text in zip(golds, texts["predictions"], strict=True)
        if gold
    ]
    (found,) = compute(drop_in.Meteor, **weights).values()
    assert found == pytest.approx((sum(singles) + 1) / 3)
    assert compute(drop_in.Meteor).values() != {found}

    for metric, key in [(drop_in.Bleu, "max_order"), (drop_in.Rouge, "tokenizer")]:
        with pytest.raises(ValueError, match=f"{metric.__name__} takes no {key}"):
            compute(metric, **{key: 2})


def test_drop_in_overlap_and_label_metrics(tmp_path):
    from eval.metrics import drop_in

    def compute(metric, **arguments):
        return metric(cache_dir=tmp_path).compute(**arguments)

    texts = {"predictions": ["the cat sat", "x"], "references": [["a cat sat", "cats"], ["y"]]}
    scores = overlap.overlap_scores(
        dict(enumerate(texts["predictions"])), dict(enumerate(texts["references"]))
    )
    assert compute(drop_in.Bleu, **texts)["bleu"] == scores["bleu"]
    assert compute(drop_in.Rouge, **texts)["rougeLsum"] == scores["rougeLsum"]
    (name, meteor), *none = compute(drop_in.Meteor, **texts).items()
    assert meteor == scores[name] and not none
    one = compute(drop_in.Rouge, predictions=["a b"], references=["a b"])
    assert one["rouge2"] == 1
    labels = {"predictions": [1, 0, 1, 1], "references": [1, 0, 0, 1]}
    assert compute(drop_in.Accuracy, **labels) == {"accuracy": 0.75}
    assert compute(drop_in.Precision, **labels)["precision"] == pytest.approx(2 / 3)
    assert compute(drop_in.Recall, **labels) == {"recall": 1.0}
    words = {"predictions": ["a", "b", "b"], "references": ["a", "b", "a"]}
    ours = classification.classification_scores(
        words["predictions"], words["references"], ["a", "b"]
    )
    found = compute(drop_in.F1, **words, average="macro")
    assert found["f1"] == pytest.approx(ours["f1_macro"])
    assert compute(drop_in.F1, **words, pos_label="b")["f1"] == pytest.approx(ours["f1"])


def test_scoring_imports_no_torch_and_nothing_of_training():
    code = (
        "import sys; from eval.metrics.measure import answer_results, classification_results;"
        "answer_results({'1': 'a b'}, {'1': ['a b']});"
        "classification_results({'1': 'a'}, {'1': 'a'}, ['a', 'b']);"
        "print(*{'torch', 'evaluate', 'llama_peft'} & sys.modules.keys())"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_labels_that_nobody_says_or_means_count_for_nothing():
    """As in scikit-learn's default: of four labels three occur, and a perfect system scores 1."""
    from sklearn.metrics import precision_recall_fscore_support

    labels, golds = ["a", "b", "c", "d"], ["a", "b", "c", "a"]
    for given in (golds, ["a", "a", "c", "b"], ["a", "d", "c", "a"]):
        ours = classification.classification_scores(given, golds, labels)
        theirs = precision_recall_fscore_support(golds, given, average="macro", zero_division=0)
        assert [ours[kind] for kind in ("precision", "recall", "f1")] == pytest.approx(theirs[:3])
    truth = {str(number): gold for number, gold in enumerate(golds)}
    found = measure.classification_results(truth, truth, labels)
    assert found["f1_macro_ci95"] == [1, 1]
