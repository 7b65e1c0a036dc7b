"""How a causal model continues prompts: what they share is computed once, or each prompt alone.

The recipe's `eval.decoding` chooses. The plain functions are the slow twins of those in
`prefix_tree/decode.py`: in float32 both write the same tokens.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from llama_peft.model import backbone
from llama_peft.system.numbers import check_scores
from llama_peft.tokens.batches import batches, pad
from llama_peft.tokens.prompts import Encoded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Decoding = Literal["prefix_tree", "plain"]
Written = tuple[str, tuple[int, ...]]
"""The id of a prompt, and the token ids that a model wrote after it."""
Request = tuple[Sequence[int], Sequence[int]]
"""A prompt and a continuation of it, as token ids."""


def positions(model: "PreTrainedModel") -> int | None:
    """Return the largest number of tokens that a model reads; None if its config sets no limit."""
    return backbone.positions(model.config)


def greedy(
    model: "PreTrainedModel",
    prompts: Sequence[Encoded],
    *,
    decoding: Decoding,
    stop_token_ids: Collection[int],
    max_new_tokens: int,
    not_first: int | None = None,
) -> Iterator[Written]:
    """Yield (id, generated ids) of each prompt, in the order in which they are computed.

    not_first: the id of a token that no answer begins with.
    Raises UserError if the model's scores are not numbers: it would write token 0 for ever.
    """
    from llama_peft.prefix_tree import decode

    write: Callable[..., Iterator[Written]]
    write = decode.greedy if _shares_prefixes(model, decoding) else greedy_plain
    return write(
        model,
        prompts,
        stop_token_ids=stop_token_ids,
        max_new_tokens=max_new_tokens,
        not_first=not_first,
    )


def loglikelihoods(
    model: "PreTrainedModel", requests: Sequence[Request], *, decoding: Decoding
) -> list[float]:
    """Return log p(continuation | prompt) of each request; NaN if it is infinite."""
    from llama_peft.prefix_tree import decode

    shared = _shares_prefixes(model, decoding)
    scores = (decode.loglikelihoods if shared else loglikelihoods_plain)(model, requests)
    return [score if math.isfinite(score) else math.nan for score in scores]


def _shares_prefixes(model: "PreTrainedModel", decoding: Decoding) -> bool:
    """Whether prompts are computed as a tree.

    A model without positions (Bloom) takes distances from a plain mask, so it cannot read a tree.
    """
    return decoding == "prefix_tree" and positions(model) is not None


def greedy_plain(
    model: "PreTrainedModel",
    prompts: Sequence[Encoded],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int,
    not_first: int | None = None,
    batch_size: int = 1,
) -> Iterator[Written]:
    """Yield (id, generated ids) by `model.generate`, on left-padded batches of similar length.

    The first stop id ends an answer and belongs to it: a token may hold text before a line break
    (".\\n").
    """
    import torch
    from transformers import GenerationConfig

    best: list[Tensor] = []

    def note_best(ids: "Tensor", scores: "Tensor") -> "Tensor":
        best.append(scores.amax(-1))  # NaN counts as the highest
        return scores

    stop = sorted(stop_token_ids)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop[0],
        begin_suppress_tokens=None if not_first is None else [not_first],
    )
    for batch in batches([(prompt.id, prompt.prompt) for prompt in prompts], batch_size):
        input_ids, mask = pad([ids for _, ids in batch], stop[0], left=True)
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=[note_best],
            )
        for (id_, _), scores in zip(batch, torch.stack(best, dim=1).tolist(), strict=True):
            check_scores(scores, id_)
        best.clear()
        written = output[:, input_ids.shape[1] :].tolist()
        for (id_, _), ids in zip(batch, written, strict=True):
            last = next((i for i, token in enumerate(ids) if token in stop_token_ids), len(ids))
            yield id_, tuple(ids[: last + 1])


def loglikelihoods_plain(model: "PreTrainedModel", requests: Sequence[Request]) -> list[float]:
    """Return log p(continuation | prompt) of each request, with one forward pass for each."""
    import torch

    scores = []
    for prompt, continuation in requests:
        ids = torch.tensor([[*prompt, *continuation]], device=model.device)
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            each = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
        scores.append(each.sum().item())
    return scores
