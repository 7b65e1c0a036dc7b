"""Law 6 for spans: characters to tokens and back, and the search for the best span."""

import random
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eval.metrics.squad_v2 import normalise
from llama_peft import tiny
from llama_peft.data import Answer, QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Prompt, Recipe
from llama_peft.tokens import spans
from llama_peft.tokens.prompts import PromptEncoder
from tests.tokens.test_prompts import squad


@pytest.fixture(scope="module")
def prompt(make_recipe: Callable[..., Recipe]) -> Prompt:
    return make_recipe("extractive_qa", "tiny").prompt


@pytest.fixture(scope="module")
def encoder(prompt: Prompt) -> PromptEncoder:
    return PromptEncoder(AutoTokenizer.from_pretrained(tiny.MODEL_DIR), prompt)


def back(rows: list[spans.Window], example: QuestionExample, answer: Answer) -> set[str]:
    """Return the texts that an answer's labels stand for, in the windows that hold all of it."""
    found = set()
    for window in rows:
        start, end = spans.label(window, answer)
        if start != window.null:
            found.add(spans.text(window, start, end, example.context))
    return found


def test_every_real_answer_comes_back(shared: Path, prompt: Prompt) -> None:
    """With the real tokenizer, an answer comes back as it is, or as its smallest cover."""
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(shared / "llama-3.2-1b"), prompt)
    exact = covered = other_word = 0
    for example in squad(shared):
        rows = list(spans.windows(encoder, example, 384, 128))
        for answer in set(example.answers):
            found = back(rows, example, answer)
            assert len(found) == 1, f"{example.id}: {answer} is whole in a window"
            text = found.pop()
            exact += text == answer.text
            covered += text != answer.text
            assert answer.text.strip() in text and len(text) - len(answer.text) < 16
            other_word += normalise(text) != normalise(answer.text)
    assert (exact, covered, other_word) == (EXACT, COVERED, OTHER_WORD)


# Counts of the distinct gold answers of the real file. EXACT ones start and end with a token. COVERED
# ones end inside a token, nearly always before closing punctuation. OTHER_WORD counts those of them
# that are part of a word, so that no span of tokens scores 100 on them.
EXACT, COVERED, OTHER_WORD = 3161, 38, 6


def test_windows_cover_the_context_and_share_the_stride(encoder: PromptEncoder) -> None:
    context = " ".join(f"word{i}" for i in range(300))
    example = QuestionExample(id="q", question="Which?", context=context, answers=())
    rows = list(spans.windows(encoder, example, 120, 32))
    _, ids, offsets, *_ = encoder.span_text(example)
    assert len(rows) > 3
    joined = list(rows[0].offsets)
    for before, after in pairwise(rows):
        assert before.offsets[-32:] == after.offsets[:32]
        joined += after.offsets[32:]
    assert tuple(joined) == offsets
    for window in rows:
        assert len(window.input_ids) <= 120
        held = window.input_ids[window.context_start : window.context_start + len(window.offsets)]
        first = offsets.index(window.offsets[0])
        assert held == ids[first : first + len(held)]
        mask = window.span_mask()
        assert sum(mask) == len(window.offsets) + 1 and mask[-1] == 1, "context and the last token"


def test_question_comes_first_and_null_last(encoder: PromptEncoder) -> None:
    example = QuestionExample(id="q", question="Who?", context="Ada did.", answers=())
    (window,) = spans.windows(encoder, example, 200, 32)
    text = encoder.text(list(window.input_ids))
    assert text.index("Who?") < text.index("Ada did.") < text.rindex("Answer:")
    assert spans.label(window, None) == (window.null, window.null)
    assert window.null == len(window.input_ids) - 1


def test_answer_split_between_windows_is_no_answer_in_either(encoder: PromptEncoder) -> None:
    context = " ".join(f"word{i}" for i in range(300))
    example = QuestionExample(id="q", question="Which?", context=context, answers=())
    rows = list(spans.windows(encoder, example, 120, 8))
    border = rows[0].offsets[-1][1]
    text = context[border - 60 : border + 60].strip()
    answer = Answer(text, context.index(text))
    assert spans.label(rows[0], answer) == (rows[0].null,) * 2
    assert spans.label(rows[1], answer) == (rows[1].null,) * 2


def test_a_question_without_room_is_named(encoder: PromptEncoder) -> None:
    example = QuestionExample(id="q7", question="why " * 50, context="word " * 200, answers=())
    with pytest.raises(UserError, match=r"q7.*doc_stride"):
        list(spans.windows(encoder, example, 80, 32))


def test_best_span_equals_the_exhaustive_search(encoder: PromptEncoder) -> None:
    context = " ".join(f"w{i}" for i in range(60))
    example = QuestionExample(id="q", question="Which?", context=context, answers=())
    rows = list(spans.windows(encoder, example, 60, 16))
    rng = random.Random(1)
    for _ in range(20):
        scores = [[[rng.gauss(0, 3) for _ in w.input_ids] for w in rows] for _ in range(2)]
        found = spans.best_span(rows, *scores, context, n_best_size=10_000, max_answer_length=7)
        best = max(
            (starts[i] + ends[j], spans.text(w, i, j, context))
            for w, starts, ends in zip(rows, *scores, strict=True)
            for i, j in product(range(len(w.offsets)), repeat=2)
            if i <= j < i + 7
            for i, j in [(i + w.context_start, j + w.context_start)]
        )
        assert found.text == best[1]
        null = min(s[w.null] + e[w.null] for w, s, e in zip(rows, *scores, strict=True))
        assert (found.no_answer_probability > 0.5) == (null > best[0])


def test_probability_of_no_answer_never_overflows(encoder: PromptEncoder) -> None:
    example = QuestionExample(id="q", question="Who?", context="Ada did.", answers=())
    (window,) = spans.windows(encoder, example, 200, 32)
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        scores = [[0.0] * len(window.input_ids)]
        scores[0][window.null] = sign * 1e4
        assert spans.best_span([window], scores, scores, "Ada did.", 5, 5)[2] == expected
