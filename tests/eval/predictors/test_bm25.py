"""The search for words of the question in a passage: the right sentence, a short span of it, and doubt."""

import math

import pytest

from eval.predictors.bm25 import answer, bm25
from llama_peft.data import QuestionExample

PASSAGE = (
    "The mill stands on the river. Ada Byron built the mill in 1842. It has 12 wheels, e.g. of oak. "
    "A flood came in March 1901."
)


def ask(question: str, context: str = PASSAGE) -> QuestionExample:
    return QuestionExample(id="q", context=context, question=question, answers=())


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Who built the mill?", "Ada Byron"),
        ("When did the flood come?", "March 1901"),
        ("How many wheels does it have?", "12"),
    ],
)
def test_the_span_is_of_the_kind_that_is_asked_for(question: str, said: str) -> None:
    found = answer(ask(question))
    assert found.raw == said and found.start is not None
    assert PASSAGE[found.start :].startswith(said)


def test_the_span_is_the_nearest_one_and_not_the_longest() -> None:
    found = answer(
        ask("What is the river called?", "Long winding green roads reach the river Aire.")
    )
    assert found.raw == "Aire"


def test_a_question_on_something_else_is_likelier_to_have_no_answer() -> None:
    known, other = answer(ask("Who built the mill?")), answer(ask("Who painted the bridge?"))
    assert known.no_answer_probability is not None and other.no_answer_probability == 1.0
    assert known.no_answer_probability < 0.5 and known.prediction == "Ada Byron"
    assert other.prediction == ""


@pytest.mark.parametrize("context", ["", "...", "\n\n", "the of a", "猫が好き。犬も好き。"])
def test_any_passage_gets_an_answer_or_none(context: str) -> None:
    for question in ("Who?", "", "犬は?", "the of"):
        found = answer(ask(question, context))
        assert found.no_answer_probability is not None and 0 <= found.no_answer_probability <= 1
        assert found.raw in context


def test_scores_are_those_of_the_formula() -> None:
    """Equal lengths, and words that weigh the same: one occurs once or twice, the other nowhere."""
    scores = bm25({"a", "x"}, [["a", "b"], ["c", "d"], ["e", "f"]])
    rare, missing = math.log(1 + 2.5 / 1.5), math.log(1 + 3.5 / 0.5)
    assert scores == pytest.approx([rare / (rare + missing), 0, 0])
    scores = bm25({"a", "x"}, [["a", "a"], ["c", "d"], ["e", "f"]])
    assert scores[0] == pytest.approx(rare * 2 * 2.2 / (2 + 1.2) / (rare + missing))
    assert bm25({"a"}, [["b"]]) == [0.0] and bm25(set(), [["b"]]) == [0.0]
