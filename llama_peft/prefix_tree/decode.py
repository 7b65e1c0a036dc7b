"""Greedy decoding and log-likelihoods of many prompts, with shared prefixes computed once.

A tree row of prompts runs once into one key-value cache. Then each step feeds one token for each
unfinished branch into the same row and cache, side by side. A token sees the path of its branch:
the prompt's tokens up the tree, and the tokens that its own branch has generated. A paragraph is
never copied for each question. A finished branch is fed no more tokens, and no other branch sees
its keys. In float32 the result equals `model.generate` prompt by prompt, token for token (the plain
twin is `greedy_plain` in `tokens/generate.py`).

    keys      i A q r B s | q1 r1 s1 | q2 s2      r ended at its second token
    query s2  x . . . x x | .  .  x  | .  x
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from llama_peft.prefix_tree.loss import answer_logits
from llama_peft.prefix_tree.mask import Masks, attention_inputs, by_layer_type, dense_mask
from llama_peft.prefix_tree.pack import Example, TreeRow, collate, pack
from llama_peft.system.numbers import check_scores

# Shapes: K keys in the cache, Q queries of a step (one for each unfinished branch), V vocabulary.


class PromptLike(Protocol):
    """A prompt as token ids."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> tuple[int, ...]: ...


class _Branches(NamedTuple):
    """The unfinished branches of a row: their numbers, the keys that each sees, their positions."""

    index_Q: Tensor
    path_QK: Tensor
    position_Q: Tensor

    def keep(self, go_Q: Tensor) -> "_Branches":
        """Return the branches that go on."""
        return _Branches(*(tensor[go_Q] for tensor in self))


def greedy(
    model: PreTrainedModel,
    prompts: Sequence[PromptLike],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int,
    not_first: int | None = None,
    max_tokens_per_row: int = 2048,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (id, generated ids) in row order; generation ends with the first of `stop_token_ids`.

    not_first: the id of a token that no answer begins with.
    Rows get wider if a prompt is longer than `max_tokens_per_row`: a setting for speed must not
    decide which prompts can be answered.
    """
    requests = [Example(p.id, tuple(p.prompt)) for p in prompts]
    for row in _rows(requests, max_tokens_per_row):
        written = _decode(model, row, sorted(stop_token_ids), max_new_tokens, not_first)
        yield from zip(row["ids"], written, strict=True)


@torch.inference_mode()
def loglikelihoods(
    model: PreTrainedModel,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_tokens_per_row: int = 2048,
) -> list[float]:
    """Return log p(continuation | prompt) of each (prompt, continuation); each is a branch."""
    branches = [Example(str(i), tuple(p), tuple(c)) for i, (p, c) in enumerate(requests)]
    scores = [0.0] * len(branches)
    for row in _rows(branches, max_tokens_per_row):
        lengths = [row["subtree_end"][s] - s - 1 for s in row["starts"]]
        parts = _label_log_probabilities(model, row).split(lengths)
        for name, part in zip(row["ids"], parts, strict=True):
            scores[int(name)] = part.sum().item()
    return scores


def _rows(requests: Sequence[Example], max_tokens_per_row: int) -> Sequence[TreeRow]:
    longest = max((len(r.prompt) + len(r.completion) for r in requests), default=0)
    return pack(requests, max(max_tokens_per_row, longest))


@torch.inference_mode()
def _decode(
    model: PreTrainedModel,
    row: TreeRow,
    stop_token_ids: Sequence[int],
    max_new_tokens: int,
    not_first: int | None,
) -> list[tuple[int, ...]]:
    """Return the tokens that each branch of a row of prompts generates.

    Raises UserError if a score that decided on a token is no number.
    """
    config = model.config.get_text_config()
    cache = DynamicCache()  # without a config, its sliding layers evict nothing
    stop = torch.tensor(stop_token_ids, device=model.device)
    logits_QV, live, position_K = _prefill(model, row, cache)
    if not_first is not None:
        logits_QV[:, not_first] = -torch.inf
    generated: list[list[int]] = [[] for _ in row["starts"]]
    owners: list[str] = []
    scores = []  # looked at once, at the end: each look would wait for the device
    for step in range(max_new_tokens):
        token_Q = logits_QV.argmax(dim=-1)  # NaN counts as the highest
        scores.append(logits_QV.gather(-1, token_Q[:, None])[:, 0])
        for index, token in zip(live.index_Q.tolist(), token_Q.tolist(), strict=True):
            generated[index].append(token)
            owners.append(row["ids"][index])
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
    for name, score in zip(owners, torch.cat(scores).tolist(), strict=True):
        check_scores([score], name)
    return [tuple(tokens) for tokens in generated]


def _prefill(
    model: PreTrainedModel, row: TreeRow, cache: DynamicCache
) -> tuple[Tensor, _Branches, Tensor]:
    """Fill the cache with the row; return logits at branch ends, branches and positions of keys."""
    inputs, ends = _inputs(model, row), torch.tensor(row["starts"], device=model.device)
    position_K = inputs["position_ids"][0]
    logits = model(**inputs, past_key_values=cache, logits_to_keep=ends).logits
    key = torch.arange(len(position_K), device=model.device)
    subtree_end_K = torch.tensor(row["subtree_end"], device=model.device)
    path_QK = (key <= ends[:, None]) & (ends[:, None] < subtree_end_K)
    branches = _Branches(torch.arange(len(ends), device=model.device), path_QK, position_K[ends])
    return logits[0], branches, position_K


def _grown(live: _Branches) -> _Branches:
    """Return the branches with one more token each, which only its own branch sees."""
    own = torch.eye(len(live.index_Q), dtype=torch.bool, device=live.path_QK.device)
    return live._replace(
        path_QK=torch.cat([live.path_QK, own], dim=1), position_Q=live.position_Q + 1
    )


def _step_masks(
    config: PreTrainedConfig, live: _Branches, position_K: Tensor, dtype: torch.dtype
) -> Masks[Tensor]:
    """Return the mask of one step: each query sees the path of its branch."""
    distance_QK = live.position_Q[:, None] - position_K

    def build(window: int | None) -> Tensor:
        seen = live.path_QK if window is None else live.path_QK & (distance_QK < window)
        return dense_mask(config, seen[None, None], dtype)

    return by_layer_type(config, build)


def _label_log_probabilities(model: PreTrainedModel, row: TreeRow) -> Tensor:
    """Return the log-probabilities of a row's labels, in row order."""
    labels = torch.tensor([row["labels"]], device=model.device)
    logits_NV, labels_N = answer_logits(model, {**_inputs(model, row), "labels": labels})
    return logits_NV.float().log_softmax(dim=-1).gather(-1, labels_N[:, None])[:, 0]


def _inputs(model: PreTrainedModel, row: TreeRow) -> dict[str, Tensor]:
    """Return the arguments of the model's forward for a row."""
    batch = collate([row])
    position_ids = batch["position_ids"].to(model.device)
    subtree_end = batch["subtree_end"].to(model.device)
    config = model.config.get_text_config()
    return {
        "input_ids": batch["input_ids"].to(model.device),
        "position_ids": position_ids,
        **attention_inputs(config, subtree_end, position_ids, model.dtype),
    }
