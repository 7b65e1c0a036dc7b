"""Law 8: nothing is scored unless predictions and references have the same unique ids."""

import re

import pytest

from eval.metrics import classification, ids, squad_v2
from eval.metrics.words import overlap
from tests.support.questions import HAND_ANSWERS, HAND_GOLDS


@pytest.mark.parametrize("score", [squad_v2.squad_scores, overlap.overlap_evidences])
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({k: v for k, v in HAND_ANSWERS.items() if k != "2"}, "1 of 5 have no prediction: '2'"),
        (HAND_ANSWERS | {"6": "x"}, "have an unknown id: '6'"),
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
    with pytest.raises(ValueError, match=r"1 .* have an unknown id"):
        classification.classification_evidence({"1": "a", "2": "b"}, {"1": "a"}, ["a", "b"])
    with pytest.raises(ValueError, match=r"gold label.*'c'"):
        classification.classification_evidence({"1": "a"}, {"1": "c"}, ["a", "b"])
