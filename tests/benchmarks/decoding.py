"""Greedy answers: `model.generate` on left-padded batches of like length, and shared prefixes.

The model's weights are random, so every sixth token of the vocabulary ends an answer: lengths then
vary as real answers do (mean 5; the longest of 16 decides how long a padded batch runs). In float32
both must write the same answers, token for token; in bfloat16 the share of equal ones is stated.
"""

from collections.abc import Callable
from typing import Any

import torch

from llama_peft.prefix_tree.decode import greedy
from llama_peft.prefix_tree.pack import pack, packing
from llama_peft.tokens.generate import greedy_plain
from llama_peft.tokens.prompts import Encoded

from . import measure
from .material import Base, Questions
from .measure import Contestant, Prepared

BATCH_SIZE = 16
MAX_NEW_TOKENS = 16
STOP_EVERY = 6

Answers = dict[str, tuple[int, ...]]


def run(base: Base, questions: Questions, repeats: int, row_tokens: int | None) -> dict[str, Any]:
    """Measure, compare the answers, and return the result."""
    row_tokens = row_tokens or 2048
    prompts = [Encoded(one.id, base.encoder.question(one)) for one in questions.examples]
    contestants = _contestants(base, prompts, row_tokens)
    for contestant in _contestants(base, prompts[:2], row_tokens):
        contestant.prepare().run()  # the first call of a code path costs more
    measured = measure.in_turns(contestants, repeats)
    plain, tree = measured["generate"].outcome, measured["tree"].outcome
    equal = sum(plain[prompt.id] == tree[prompt.id] for prompt in prompts)
    if equal < len(prompts) and not torch.cuda.is_available():
        raise AssertionError(f"{len(prompts) - equal} of {len(prompts)} answers differ")
    lengths = [len(answer) for answer in plain.values()]
    return measure.result(
        "decoding",
        [each.row(len(prompts)) for each in measured.values()],
        measure.ratios(measured, "tree", {"decode_vs_generate": "generate"}),
        **questions.facts(),
        **base.facts(),
        batch_size=BATCH_SIZE,
        row_tokens=row_tokens,
        rows_hold=str(packing(pack(prompts, max(row_tokens, *(len(p.prompt) for p in prompts))))),
        max_new_tokens=MAX_NEW_TOKENS,
        answer_tokens={"mean": sum(lengths) / len(lengths), "max": max(lengths)},
        checks={"equal_answers": equal, "different_answers": len(set(plain.values()))},
    )


def _contestants(base: Base, prompts: list[Encoded], row_tokens: int) -> list[Contestant]:
    model = base.load()
    stop = set(range(0, model.config.vocab_size, STOP_EVERY))
    limits = {"stop_token_ids": stop, "max_new_tokens": MAX_NEW_TOKENS}

    def contestant(name: str, decode: Callable[..., Any], **how: Any) -> Contestant:
        def run() -> Answers:
            return dict(decode(model, prompts, **limits, **how))

        return Contestant(name=name, prepare=lambda: Prepared(model, run))

    return [
        contestant("generate", greedy_plain, batch_size=BATCH_SIZE),
        contestant("tree", greedy, max_tokens_per_row=row_tokens),
    ]
