"""Laws of squad_v2: equal to the official definition, and honest about thresholds."""

import random
import re
import string
from collections import Counter

import pytest

from eval.metrics import squad_v2
from eval.metrics.catalogue import is_score
from tests.support.questions import HAND_ANSWERS, HAND_GOLDS, Golds, some_prediction


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
    assert {scores[name] for name in scores if is_score(name)} == {100.0}
    scores = squad_v2.squad_scores(silent, golds)
    assert (scores["exact"], scores["f1"]) == pytest.approx((share, share))
    assert (scores["NoAns_exact"], scores["HasAns_exact"]) == (100, 0)
    abstainer = {key: "wrong" if answers else "" for key, answers in golds.items()}
    assert squad_v2.squad_scores(abstainer, golds)["NoAns_f1"] == 100


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
    assert squad_v2.squad_scores({"1": left}, {"1": [right]})["exact"] == 100 * equal


def test_several_golds_count_by_the_best_one():
    def scores(answer, golds):
        found = squad_v2.squad_scores({"1": answer}, {"1": golds})
        return found["exact"], found["f1"]

    assert scores("Norman king", ["king", "the Norman king"]) == (100, 100)
    assert scores("a Norman king", ["king", "William"]) == pytest.approx((0, 200 / 3))
    assert scores("", []) == (100, 100)


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
        thresholds = (-1.0, *sorted(set(chance.values())))
        reached = [squad_v2.squad_scores(answers, golds, chance, threshold=t) for t in thresholds]
        best_f1 = max(found["f1"] for found in reached)
        assert scores["best_exact"] == pytest.approx(max(found["exact"] for found in reached))
        assert scores["best_f1"] == pytest.approx(best_f1)
        fitted = squad_v2.fit_threshold(answers, golds, chance)
        applied = squad_v2.apply_threshold(answers, chance, fitted)
        assert squad_v2.squad_scores(applied, golds)["f1"] == pytest.approx(best_f1)


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
