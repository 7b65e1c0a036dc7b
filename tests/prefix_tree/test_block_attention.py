"""Attention in blocks: a block of queries gathers the keys that they see, and few others."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_peft.prefix_tree import block_attention
from llama_peft.prefix_tree.mask import mask_rule
from llama_peft.prefix_tree.pack import collate, pack
from tests.support.tree_examples import Example, families, lists_of_examples


@settings(max_examples=200, deadline=None)
@given(lists_of_examples, st.integers(0, 12), st.integers(1, 9))
def test_a_block_gathers_the_keys_that_its_queries_see(
    examples: list[Example], slack: int, queries: int
) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    batch = collate(pack(examples, room))
    end, index = batch["subtree_end"], torch.arange(batch["input_ids"].shape[1])
    block_attention.QUERIES = queries  # the fixture puts it back
    for row, blocks in enumerate(block_attention.blocks(end)):
        seen = mask_rule(end, batch["position_ids"])(row, 0, index[:, None], index)
        assert [i for block in blocks for i in range(block.start, block.stop)] == index.tolist()
        for block in blocks:
            assert torch.equal(block.keys, seen[block.start : block.stop].any(0).nonzero()[:, 0])


def test_blocks_leave_most_pairs_of_a_long_row_out() -> None:
    examples = families(30)
    [row] = pack(examples, 10_000)
    width = len(row["input_ids"])
    blocks = block_attention.blocks(torch.tensor([row["subtree_end"]]))[0]
    assert sum((b.stop - b.start) * len(b.keys) for b in blocks) < width * width / 8
