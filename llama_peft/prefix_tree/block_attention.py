"""Attention over tree rows in blocks: a block of queries meets only keys that one of them sees.

A dense mask computes every pair of a row and throws most of them away: a row of seven paragraphs
has seven times the pairs that its questions need. The keys that a block of queries can see follow
from `subtree_end` alone. They are gathered and given to the library's own sdpa with their part of
the mask, so the sums are the same in another order. Batches that are not tree rows go to sdpa
unchanged.

    queries 4-7 of the tree drawn in `mask.py`    keys  0 1 2 3 4 5 6 7 8
                                                        x x . . x x x x .   gathered: 0 1 4 5 6 7
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_in_blocks"
QUERIES = 128
"""Queries in a block: fewer gather keys more often, more meet keys that few of them see."""

# Shapes: B rows, H heads, Q queries and K keys (tokens of a row), D head size.


class Block(NamedTuple):
    """Queries `start` to `stop`, and the indices of the keys that they see."""

    start: int
    stop: int
    keys: Tensor


def blocks(subtree_end_BK: Tensor) -> list[list[Block]]:
    """Return the blocks of each row."""
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
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return the output (B, Q, H, D) of sdpa, computed with each block's part of the mask.

    The signature is the one that transformers asks of an attention function.
    """
    if key_blocks is None or attention_mask is None:
        return sdpa_attention_forward(
            module, query_BHQD, key_BHKD, value_BHKD, attention_mask, **kwargs
        )
    outputs = []
    for row, row_blocks in enumerate(key_blocks):
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
            for start, stop, keys in row_blocks
        ]
        outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs), None


def use(config: PreTrainedConfig) -> None:
    """Change a config so that its models compute sdpa in blocks if a batch brings blocks."""
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation = NAME
