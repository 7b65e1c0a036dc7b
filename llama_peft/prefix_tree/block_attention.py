"""Attention over tree rows in blocks: a block of queries meets the keys that one of them sees, and no others.

A dense mask computes every pair of a row and throws most away: a row of seven paragraphs has seven times the pairs that its
questions need. Which keys a block of queries can see follows from `subtree_end` alone (`prefix_tree` draws the mask); they are
gathered and given to the library's own sdpa with their part of the mask, so the sums are the same in another order. Batches
that are no tree rows pass to sdpa untouched.

    queries 4-7 of the tree drawn in `prefix_tree`      keys  0 1 2 3 4 5 6 7 8
                                                              x x . . x x x x .     gathered: 0 1 4 5 6 7
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_in_blocks"
QUERIES = 128
"""Queries a block: fewer gather the same keys more often, more meet keys that few of them see."""

# Shapes: B rows, H heads, Q queries and K keys (tokens of a row), D head size.


class Block(NamedTuple):
    """Queries `start` to `stop`, and the indices of the keys that they see."""

    start: int
    stop: int
    keys: Tensor


def blocks(subtree_end_BK: Tensor) -> list[list[Block]]:
    """The blocks of each row."""
    width = subtree_end_BK.shape[1]
    index_K = torch.arange(width, device=subtree_end_BK.device)
    bounds = [(start, min(start + QUERIES, width)) for start in range(0, width, QUERIES)]
    return [
        [
            Block(start, stop, ((index_K < stop) & (end_K > start)).nonzero()[:, 0])
            for start, stop in bounds
        ]
        for end_K in subtree_end_BK
    ]


def attention(
    module: torch.nn.Module,
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    attention_mask: Tensor | None,
    key_blocks: list[list[Block]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """sdpa in transformers' form, with the mask's rows and columns of each block alone; output (B, Q, H, D)."""
    if key_blocks is None or attention_mask is None:
        return sdpa_attention_forward(
            module, query_BHQD, key_BHKD, value_BHKD, attention_mask, **kwargs
        )
    outputs = []
    for row, its in enumerate(key_blocks):
        one = slice(row, row + 1)
        parts = [
            sdpa_attention_forward(
                module,
                query_BHQD[one, :, start:stop],
                key_BHKD[one, :, keys],
                value_BHKD[one, :, keys],
                attention_mask[one, :, start:stop, keys],
                **kwargs,
            )[0]
            for start, stop, keys in its
        ]
        outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs), None


def use(config: PreTrainedConfig) -> None:
    """Let the models of a config compute sdpa in blocks where a batch comes with them."""
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation = NAME
