"""A batch of short rows is computed as tree rows: without padding, and with shared prefixes once.

A head reads the states of whole examples. So the batch stays as it is, with its padding, its labels
and its order, and carries its tokens a second time as tree rows (`Packed`). The backbone reads only
these, and `unpacked` brings its states back to where the padded rows have them. Loss, weights and
optimizer steps are those of the padded batch, in another order of summation.

    rows      i a b    tree rows   i a b c d    paths   0 1 2
              i a c                                     0 1 3
              i d .                                     0 4 0     (0 at padding is never read)
"""

from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict

import numpy
import torch
from torch import Tensor

from llama_peft.prefix_tree.pack import Example, TreeRow, collate, pack
from llama_peft.prefix_tree.segments import Segments

ROW_TOKENS = 1024
"""Most tokens in a row, unless an example is longer: longer rows share little more."""
WORTH = 0.95
"""Tree rows are used if they have fewer tokens than this share of the padded batch."""

# Shapes: B examples of T tokens, R tree rows of W tokens, X any size.


class Packed(TypedDict):
    """The tokens of a batch as tree rows (R, W)."""

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    attention_mask: Tensor
    paths: Tensor
    """(B, T): the index, among the R * W tokens, of each token of each example."""
    segments: NotRequired[Segments]


def paths(row: TreeRow) -> list[list[int]]:
    """Return the indices of the tokens of each example of a row, in the order of `ids`."""
    ends = row["subtree_end"]
    return [
        [k for k in range(start) if ends[k] > start] + list(range(start, ends[start]))
        for start in row["starts"]
    ]


def packed(texts: Sequence[Sequence[int]], pad_token_id: int, multiple: int = 1) -> Packed | None:
    """Return the token ids of a batch as tree rows, or None if padded rows are as good.

    multiple: of it the width of the tree rows is.
    """
    padded = len(texts) * max(map(len, texts))
    trees = _rows([Example(str(i), tuple(text)) for i, text in enumerate(texts)])
    batch = collate(trees, pad_token_id, multiple)
    if batch["input_ids"].numel() > WORTH * padded:
        return None
    return Packed(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        subtree_end=batch["subtree_end"],
        attention_mask=batch["attention_mask"],
        paths=_paths(trees, len(texts), batch["input_ids"].shape[1]),
    )


def _rows(examples: Sequence[Example]) -> Sequence[TreeRow]:
    """Return the tree rows with the least padding: as few as hold all, of about equal width."""
    total = len(pack(examples, sum(len(one.prompt) for one in examples))[0]["input_ids"])
    longest = max(len(one.prompt) for one in examples)
    widest = max(ROW_TOKENS, longest)
    even = -(-total // -(-total // widest))
    choices = [pack(examples, max(longest, room)) for room in {widest, min(widest, even + 64)}]
    return min(choices, key=_padded)


def _padded(rows: Sequence[TreeRow]) -> int:
    return len(rows) * max(len(row["input_ids"]) for row in rows)


def _paths(trees: Sequence[TreeRow], count: int, width: int) -> Tensor:
    found: list[Iterable[int]] = [()] * count
    for number, tree in enumerate(trees):
        for name, path in zip(tree["ids"], paths(tree), strict=True):
            found[int(name)] = [number * width + k for k in path]
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(path) for path in found], True, 0)


def origins(packed: Packed, mask_BT: Tensor) -> Tensor:
    """Return (R, W): the index, among the B * T tokens of the padded rows, of each token of the tree
    rows; of a shared one, that of its first example. Padding has 0, whose state nothing reads.
    """
    found_RW = numpy.zeros(packed["input_ids"].shape, numpy.int64)
    real = numpy.flatnonzero(mask_BT.numpy())[::-1]
    found_RW.reshape(-1)[packed["paths"].numpy().reshape(-1)[real]] = real  # the last one stays
    return torch.from_numpy(found_RW)


def as_trees(states_BTX: Tensor, origins_RW: Tensor) -> Tensor:
    """Return (R, W, X): the states of the examples, where tree rows have their tokens."""
    flat = states_BTX.flatten(0, 1).index_select(0, origins_RW.flatten())
    return flat.unflatten(0, origins_RW.shape)


def unpacked(states_RWX: Tensor, paths_BT: Tensor) -> Tensor:
    """Return (B, T, X): the states of the examples, where padded rows have them."""
    flat = states_RWX.flatten(0, 1).index_select(0, paths_BT.flatten())
    return flat.unflatten(0, paths_BT.shape)
