"""Greedy answers: `model.generate` on left-padded batches of like length, and shared prefixes.

The model's weights are random, so every sixth token of the vocabulary ends an answer: lengths then
vary as real answers do (mean 5; the longest of 16 decides how long a padded batch runs). In float32
both must write the same answers, token for token; in bfloat16 the share of equal ones is stated.
"""

from collections.abc import Callable, Iterator
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
    *_, found = turns(base, questions, repeats, row_tokens)
    return found


def turns(
    base: Base, questions: Questions, repeats: int, row_tokens: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the result so far after each sample."""
    row_tokens = row_tokens or 2048
    prompts = [Encoded(one.id, base.encoder.question(one)) for one in questions.examples]
    both = contestants(base, prompts, row_tokens)
    for contestant in contestants(base, prompts[:2], row_tokens):
        contestant.prepare().run()  # the first call of a code path costs more
    facts = {
        **questions.facts(),
        **base.facts(),
        "batch_size": BATCH_SIZE,
        "row_tokens": row_tokens,
        "rows_hold": str(
            packing(pack(prompts, max(row_tokens, *(len(p.prompt) for p in prompts))))
        ),
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    for measured in measure.turns(both, repeats):
        yield measure.result(
            "decoding",
            measure.rows(measured, len(prompts)),
            measure.ratios(measured, "tree", {"decode_vs_generate": "generate"}),
            **facts,
            **_checks(measured),
        )


def _checks(measured: dict[str, measure.Measured]) -> dict[str, Any]:
    """How long the answers are, and how many are equal. Raises AssertionError if float32 ones differ."""
    answers: list[Answers] = [each.outcome for each in measured.values() if each.samples]
    if len(answers) < 2:
        return {}
    plain, tree = answers
    equal = sum(plain[id_] == tree[id_] for id_ in plain)
    if equal < len(plain) and not torch.cuda.is_available():
        raise AssertionError(f"{len(plain) - equal} of {len(plain)} answers differ")
    lengths = [len(answer) for answer in plain.values()]
    return {
        "answer_tokens": {"mean": sum(lengths) / len(lengths), "max": max(lengths)},
        "checks": {"equal_answers": equal, "different_answers": len(set(plain.values()))},
    }


def stop_tokens(size: int) -> list[int]:
    """The tokens that end an answer, of a vocabulary of this size."""
    return list(range(0, size, STOP_EVERY))


def contestants(base: Base, prompts: list[Encoded], row_tokens: int) -> list[Contestant]:
    """Both ways to answer, on one model."""
    model = base.load()
    stop = stop_tokens(model.config.vocab_size)
    limits = {"stop_token_ids": set(stop), "max_new_tokens": MAX_NEW_TOKENS}

    def contestant(name: str, decode: Callable[..., Any], **how: Any) -> Contestant:
        def run() -> Answers:
            return dict(decode(model, prompts, **limits, **how))

        return Contestant(name=name, prepare=lambda: Prepared(model, run))

    return [
        contestant("generate", greedy_plain, batch_size=BATCH_SIZE),
        contestant("tree", greedy, max_tokens_per_row=row_tokens),
    ]
