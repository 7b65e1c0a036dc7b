"""The recipe's `eval.decoding` chooses how prompts are continued, and both ways give the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from llama_peft.tokens import generate
from tests.support.tree_examples import VOCABULARY, Example, families, tiny_model


def bloom() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2)
    return BloomForCausalLM(config).eval()


def prompts() -> list[Example]:
    return [example._replace(completion=()) for example in families(4)]


@contextmanager
def tokens_fed(model: PreTrainedModel) -> Iterator[list[int]]:
    """The number of tokens that each forward pass computes."""
    counts: list[int] = []

    def count(
        module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
    ) -> None:
        counts.append((args[0] if args else kwargs["input_ids"]).numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    yield counts
    hook.remove()


@pytest.mark.parametrize("shares", [True, False])
def test_prefixes_are_shared_if_the_model_has_positions(shares: bool) -> None:
    """Bloom has no positions and takes distances from a plain mask, so it cannot read a tree."""
    model = tiny_model("llama-sdpa") if shares else bloom()
    requests = [(example.prompt, (4, 7)) for example in prompts()]
    fed, written, scores = {}, {}, {}
    for decoding in ("prefix_tree", "plain"):
        with tokens_fed(model) as counts:
            limits = {"stop_token_ids": {0}, "max_new_tokens": 3, "decoding": decoding}
            written[decoding] = dict(generate.greedy(model, prompts(), **limits))
            scores[decoding] = generate.loglikelihoods(model, requests, decoding=decoding)
        fed[decoding] = sum(counts)
    assert written["prefix_tree"] == written["plain"]
    assert scores["prefix_tree"] == pytest.approx(scores["plain"], abs=1e-4)
    assert (fed["prefix_tree"] < fed["plain"]) == shares


def test_positions_are_the_config_s_limit() -> None:
    assert generate.positions(tiny_model("llama-sdpa")) > 0
    assert generate.positions(bloom()) is None
