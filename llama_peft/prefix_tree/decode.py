"""Greedy decoding and log-likelihoods of many prompts, their shared prefixes computed once.

A tree row of prompts is run once into one key-value cache. Then each step feeds one token per
unfinished branch into the same row and cache, side by side; a token sees its branch's path: the
prompt's tokens up the tree and what its own branch has generated. Paragraphs are never copied per
question. Finished branches leave: they are fed no longer, and nobody sees their keys. The result is
what `model.generate` gives one by one (`llama_peft.predict.greedy_plain`), token for token in float32.

    keys      i A q r B s | q1 r1 s1 | q2 s2      r ended at its second token
    query s2  x . . . x x | .  .  x  | .  x
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from llama_peft.prefix_tree.pack import (
    Row,
    answer_logits,
    attention_inputs,
    by_layer_type,
    collate,
    dense_mask,
    pack,
)

# Shapes: K keys in the cache, Q queries of a step (one a live branch), V vocabulary.


class PromptLike(Protocol):
    """A prompt as token ids."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> tuple[int, ...]: ...


class _Request(NamedTuple):
    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()


class _Branches(NamedTuple):
    """The unfinished branches of a row: which they are, the keys each sees, where each stands."""

    index_Q: Tensor
    path_QK: Tensor
    position_Q: Tensor

    def keep(self, go_Q: Tensor) -> "_Branches":
        return _Branches(*(tensor[go_Q] for tensor in self))


def greedy(
    model: PreTrainedModel,
    prompts: Sequence[PromptLike],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int,
    max_tokens_per_row: int = 2048,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (id, generated ids) in row order; generation ends with the first of `stop_token_ids`.

    A prompt longer than `max_tokens_per_row` widens the rows: a speed knob must not decide what can
    be answered.
    """
    requests = [_Request(p.id, tuple(p.prompt)) for p in prompts]
    for row in _rows(requests, max_tokens_per_row):
        yield from zip(
            row["ids"], _decode(model, row, sorted(stop_token_ids), max_new_tokens), strict=True
        )


@torch.inference_mode()
def loglikelihoods(
    model: PreTrainedModel,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_tokens_per_row: int = 2048,
) -> list[float]:
    """log p(continuation | prompt) of each (prompt, continuation); a continuation is a branch."""
    branches = [_Request(str(i), tuple(p), tuple(c)) for i, (p, c) in enumerate(requests)]
    scores = [0.0] * len(branches)
    for row in _rows(branches, max_tokens_per_row):
        lengths = [row["subtree_end"][s] - s - 1 for s in row["starts"]]
        parts = _label_log_probabilities(model, row).split(lengths)
        for name, part in zip(row["ids"], parts, strict=True):
            scores[int(name)] = part.sum().item()
    return scores


def _rows(requests: Sequence[_Request], max_tokens_per_row: int) -> list[Row]:
    longest = max((len(r.prompt) + len(r.completion) for r in requests), default=0)
    return pack(requests, max(max_tokens_per_row, longest))


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, row: Row, stop_token_ids: Sequence[int], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """What each branch of a row of prompts generates."""
    config = model.config.get_text_config()
    cache = DynamicCache()  # without a config its sliding layers evict nothing
    stop = torch.tensor(stop_token_ids, device=model.device)
    logits_QV, live, position_K = _prefill(model, config, row, cache)
    generated: list[list[int]] = [[] for _ in row["starts"]]
    for step in range(max_new_tokens):
        token_Q = logits_QV.argmax(dim=-1)
        for index, token in zip(live.index_Q.tolist(), token_Q.tolist(), strict=True):
            generated[index].append(token)
        go_Q = ~torch.isin(token_Q, stop)
        live, token_Q = live.keep(go_Q), token_Q[go_Q]
        if not len(token_Q) or step == max_new_tokens - 1:
            break
        live = _grown(live)
        position_K = torch.cat([position_K, live.position_Q])
        logits_QV = model(
            input_ids=token_Q[None],
            position_ids=live.position_Q[None],
            attention_mask=_step_masks(config, live, position_K, model.dtype),
            past_key_values=cache,
        ).logits[0]
    return [tuple(tokens) for tokens in generated]


def _prefill(
    model: PreTrainedModel, config: PreTrainedConfig, row: Row, cache: DynamicCache
) -> tuple[Tensor, _Branches, Tensor]:
    """Fill the cache with the row; logits at each branch's end, branches, positions of the keys."""
    batch = {key: value.to(model.device) for key, value in collate([row]).items()}
    ends, position_K = torch.tensor(row["starts"], device=model.device), batch["position_ids"][0]
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        past_key_values=cache,
        logits_to_keep=ends,
        **attention_inputs(config, batch["subtree_end"], batch["position_ids"], model.dtype),
    ).logits
    key = torch.arange(len(position_K), device=model.device)
    path_QK = (key <= ends[:, None]) & (ends[:, None] < batch["subtree_end"])
    branches = _Branches(torch.arange(len(ends), device=model.device), path_QK, position_K[ends])
    return logits[0], branches, position_K


def _grown(live: _Branches) -> _Branches:
    """Each branch takes one more token, which it alone sees."""
    own = torch.eye(len(live.index_Q), dtype=torch.bool, device=live.path_QK.device)
    return live._replace(
        path_QK=torch.cat([live.path_QK, own], dim=1), position_Q=live.position_Q + 1
    )


def _step_masks(
    config: PreTrainedConfig, live: _Branches, position_K: Tensor, dtype: torch.dtype
) -> Any:
    distance_QK = live.position_Q[:, None] - position_K

    def build(window: int | None) -> Tensor:
        seen = live.path_QK if window is None else live.path_QK & (distance_QK < window)
        return dense_mask(config, seen[None, None], dtype)

    return by_layer_type(config, build)


def _label_log_probabilities(model: PreTrainedModel, row: Row) -> Tensor:
    """Log-probabilities of a row's labels, in row order."""
    batch = {key: value.to(model.device) for key, value in collate([row]).items()}
    config, end = model.config.get_text_config(), batch.pop("subtree_end")
    batch |= attention_inputs(config, end, batch["position_ids"], model.dtype)
    return _gathered(*answer_logits(model, batch))


def _gathered(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return logits_NV.float().log_softmax(dim=-1).gather(-1, labels_N[:, None])[:, 0]
