"""A text that is too long loses the end of its longest field first, and never a whole field."""

import itertools
import random

import pytest

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Model, Prompt
from llama_peft.tokens.cut import cut
from llama_peft.tokens.prompts import PromptEncoder

TEXT = "the film is warm and funny but far too long naïve 日本 😀 for what it has to say"
PROMPT = Prompt(
    template="First: {premise}\nSecond: {hypothesis}\nEnd.",
    zero_shot="{premise}\nQuestion: {hypothesis}, yes or no?\nAnswer:",
)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(backbone.load_tokenizer(Model(model_name_or_path="tiny")), PROMPT)


def text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(TEXT.split(), k=count))


def between(whole: str, before: str, after: str) -> str:
    return whole.partition(before)[2].rpartition(after)[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_field_loses_its_end_first(encoder: PromptEncoder, seed: int) -> None:
    rng = random.Random(seed)
    premise, hypothesis = text(rng, rng.choice([3, 40, 90])), text(rng, rng.choice([4, 50, 80]))
    texts = {"premise": premise, "hypothesis": hypothesis}
    for room in (30, 60, 100, 1000):
        ids = encoder.head_input(texts, room)
        written = encoder.text(list(ids))
        first = between(written, "First: ", "\nSecond: ")
        second = between(written, "\nSecond: ", "\nEnd.")
        assert len(ids) <= room and written.endswith("\nEnd."), "the template stays whole"
        assert premise.startswith(first) and hypothesis.startswith(second)
        assert first.strip() and second.strip(), "no field is lost"
        kept, given = (
            [len(encoder.ids(one)) for one in ones] for ones in ((first, second), texts.values())
        )
        for one, other in itertools.permutations(range(2)):
            if kept[one] < given[one] - 1:  # it was cut, so the other one is not longer
                assert kept[other] <= kept[one] + 3
        if (first, second) == (premise, hypothesis):
            assert ids == encoder.head_input(texts)
        else:
            assert len(ids) > room - 8, "not more is cut than needed"


def test_zero_shot_and_worked_examples_keep_both_fields(encoder: PromptEncoder) -> None:
    rng = random.Random(1)
    texts = {"premise": text(rng, 200), "hypothesis": "It is good"}
    shots = [({"premise": "Bad.", "hypothesis": "It is bad"}, "yes")]
    written = encoder.text(list(encoder.zero_shot(texts, 100, shots, 150)))
    assert "Bad.\nQuestion: It is bad, yes or no?\nAnswer: yes\n\n" in written
    assert written.endswith("\nQuestion: It is good, yes or no?\nAnswer:")
    assert len(encoder.zero_shot(texts, 100)) <= 100


def test_no_room_for_every_field_is_one_line(encoder: PromptEncoder) -> None:
    texts = {"premise": "a good film " * 9, "hypothesis": "a bad film " * 9}
    with pytest.raises(UserError, match=r"^train.max_length 9 has no room for prompt.template and"):
        encoder.head_input(texts, 9)
    with pytest.raises(UserError, match=r"^train.max_length 9 has no room for prompt.zero_shot"):
        encoder.zero_shot(texts, 9)


def test_one_text_is_cut_as_before(encoder: PromptEncoder) -> None:
    tokenizer = encoder.tokenizer
    one = PromptEncoder(tokenizer, Prompt(template="A: {text} :Z"))
    whole = one.head_input("word " * 50)
    assert one.head_input("word " * 50, 20) == whole[:20]
    assert one.head_input({"text": "word " * 50}, 20) == whole[:20]


def test_many_tokens_go_at_once() -> None:
    """The prompt is measured a few times, and not once for each token that goes."""
    measured = []

    def length(texts: object) -> int:
        measured.append(texts)
        return sum(map(len, texts.values()))  # type: ignore[attr-defined]

    texts = {"a": "x" * 30_000, "b": "y" * 10_000, "c": "z" * 10}
    kept = cut(texts, 5_000, length, lambda text: range(len(text)))
    assert kept is not None
    assert [len(one) for one in kept.values()] == [2495, 2495, 10]
    assert len(measured) == 2
    assert cut(texts, 2, length, lambda text: range(len(text))) is None
