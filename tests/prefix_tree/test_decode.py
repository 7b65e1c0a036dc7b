"""Law 5: decoding on shared prefixes gives what `model.generate` gives one by one in float32."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from llama_peft.prefix_tree import decode
from llama_peft.prefix_tree.decode import greedy, loglikelihoods
from llama_peft.prefix_tree.pack import pack, packing
from llama_peft.tokens.generate import greedy_plain, loglikelihoods_plain
from tests.support.tree_examples import (
    MODELS,
    VOCABULARY,
    WINDOW,
    Example,
    families,
    real_questions,
    tiny_model,
)

STOP = frozenset(range(0, VOCABULARY, 8))  # one token in eight: branches end at different steps


def prompts() -> list[Example]:
    """Families, a prompt that is another's prefix, one asked twice, one that shares nothing."""
    examples = families(6)
    prefix = examples[0]._replace(id="prefix", prompt=examples[0].prompt[:-1])
    return [e._replace(completion=()) for e in (*examples, prefix, Example("alone", (5, 7, 9)))]


@contextmanager
def tokens_fed(model: PreTrainedModel) -> Iterator[list[int]]:
    """How many tokens each forward pass of the model was given."""
    counts: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield counts
    hook.remove()


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_equals_generate_one_by_one(kind: str) -> None:
    model, asked = tiny_model(kind), prompts()
    plain = dict(greedy_plain(model, asked, stop_token_ids=STOP, max_new_tokens=9))
    assert len({len(tokens) for tokens in plain.values()}) > 4  # branches leave at many steps
    assert len(set(plain.values())) > len(plain) / 2
    for room in (64, 1024):  # families split over rows; everything in one row
        tree = greedy(model, asked, stop_token_ids=STOP, max_new_tokens=9, max_tokens_per_row=room)
        assert dict(tree) == plain
    assert max(len(row["input_ids"]) for row in pack(asked, 1024)) > 10 * WINDOW


def test_greedy_under_peft_on_sliding_layers() -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model("gemma3-sdpa"), lora).eval()
    settings = {"stop_token_ids": STOP, "max_new_tokens": 5}
    assert dict(greedy(model, prompts(), **settings)) == dict(
        greedy_plain(model, prompts(), **settings)
    )


def test_greedy_plain_in_batches_is_the_same() -> None:
    model, asked = tiny_model("llama-sdpa"), prompts()
    settings = {"stop_token_ids": STOP, "max_new_tokens": 9}
    alone = dict(greedy_plain(model, asked, **settings))
    assert dict(greedy_plain(model, asked, batch_size=8, **settings)) == alone


def test_nothing_is_fed_twice_and_finished_branches_leave() -> None:
    model, asked = tiny_model("llama-sdpa"), prompts()
    found = dict(greedy_plain(model, asked, stop_token_ids=STOP, max_new_tokens=9))
    with tokens_fed(model) as counts:
        list(greedy(model, asked, stop_token_ids=STOP, max_new_tokens=9))
    assert counts[0] == packing(pack(asked, 1024)).tokens
    lengths = [sum(token not in STOP for token in tokens) for tokens in found.values()]
    steps = [sum(length > step for length in lengths) for step in range(8)]
    assert counts[1:] == [live for live in steps if live]  # a token is fed once, the last never


def test_a_branch_sees_its_own_path_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that lets branches see one another is noticed by the test of equality."""
    model, asked = tiny_model("llama-sdpa"), prompts()
    plain = dict(greedy_plain(model, asked, stop_token_ids=STOP, max_new_tokens=9))
    right = decode._grown

    def leaky(live: decode._Branches) -> decode._Branches:
        grown = right(live)
        grown.path_QK[:, live.path_QK.shape[1] :] = True
        return grown

    monkeypatch.setattr(decode, "_grown", leaky)
    assert dict(greedy(model, asked, stop_token_ids=STOP, max_new_tokens=9)) != plain


def test_limits() -> None:
    model, asked = tiny_model("llama-sdpa"), prompts()
    for limit in (1, 2):
        plain = dict(greedy_plain(model, asked, stop_token_ids=STOP, max_new_tokens=limit))
        assert dict(greedy(model, asked, stop_token_ids=STOP, max_new_tokens=limit)) == plain
    everything = range(VOCABULARY)
    stopped = dict(greedy(model, asked, stop_token_ids=everything, max_new_tokens=5))
    assert {id_: len(ids) for id_, ids in stopped.items()} == {e.id: 1 for e in asked}
    assert list(greedy(model, [], stop_token_ids=STOP, max_new_tokens=5)) == []


def test_a_prompt_longer_than_a_row_is_answered() -> None:
    model, asked = tiny_model("llama-sdpa"), prompts()
    plain = dict(greedy_plain(model, asked, stop_token_ids=STOP, max_new_tokens=4))
    tree = greedy(model, asked, stop_token_ids=STOP, max_new_tokens=4, max_tokens_per_row=5)
    assert dict(tree) == plain


@pytest.mark.parametrize("kind", MODELS)
def test_loglikelihoods_equal_one_request_a_pass(kind: str) -> None:
    model, rng = tiny_model(kind), random.Random(0)
    continuations = [(4,), (9, 8, 7), (9, 8), ()]
    requests = [(e.prompt, c) for e in families(6) for c in continuations]
    rng.shuffle(requests)
    plain = torch.tensor(loglikelihoods_plain(model, requests))
    for room in (64, 1024):
        tree = torch.tensor(loglikelihoods(model, requests, max_tokens_per_row=room))
        assert torch.allclose(tree, plain, atol=1e-4, rtol=0)
    assert plain.min() < -5 and (plain == 0).sum() == len(families(6))


def test_real_questions_on_a_trained_model(shared: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shared / "llama-mini", dtype=torch.float32)
    asked = [e._replace(completion=()) for e in real_questions(shared, 20)]
    settings = {"stop_token_ids": {model.config.eos_token_id}, "max_new_tokens": 4}
    assert dict(greedy(model, asked, **settings)) == dict(greedy_plain(model, asked, **settings))


def test_real_questions_on_a_model_that_answers_each_differently(shared: Path) -> None:
    model = tiny_model("llama-sdpa", vocabulary=8192)
    asked = [e._replace(completion=()) for e in real_questions(shared, 60)]
    settings = {"stop_token_ids": set(range(0, 8192, 8)), "max_new_tokens": 6}
    plain = dict(greedy_plain(model, asked, **settings))
    assert len(set(plain.values())) > 30
    assert dict(greedy(model, asked, **settings)) == plain
