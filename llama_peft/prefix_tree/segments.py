"""Tree rows as sequences with more keys than queries, which kernels compute that know no trees.

The last query of such a sequence sees all of its keys, and each one before it sees one key less. So
a row is cut behind the last token of each branch. The queries of a piece are its own tokens, and
its keys are the path from the root to its end. This is the row that `pack.py` draws:

    queries    i A q a      r b      B s c
    keys       i A q a  i A r b    i B s c

Every token is a query once, in the order of the row. Padding continues the last path of its row, so
it adds no sequence; what it sees, nobody reads.
"""

from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional

# Shapes: B rows of W tokens, Q tokens in all rows, N sequences, K keys of all sequences.


class Segments(TypedDict):
    """The sequences of a batch of tree rows, in a form that a batch may carry."""

    keys: Tensor
    """(K,): which of the Q tokens each key is, sequence by sequence."""
    query_starts: Tensor
    """(N + 1,), int32: where the queries of each sequence begin, and Q."""
    key_starts: Tensor
    """(N + 1,), int32: where its keys begin, and K."""
    most_queries: int
    """Of a sequence. These two are known without the GPU, which would have to be waited for."""
    most_keys: int


def segments(subtree_end_BW: Tensor, attention_mask_BW: Tensor) -> Segments:
    """Return the sequences of tree rows. attention_mask: 1 for tokens, 0 for padding.

    On a GPU this waits for it, so collators do it before a batch moves there.
    """
    width = subtree_end_BW.shape[1]
    index_W = torch.arange(width)
    queries, counts, keys = list[Tensor](), list[Tensor](), list[Tensor]()
    for row, (end_W, real_W) in enumerate(
        zip(subtree_end_BW.cpu(), attention_mask_BW.cpu().bool(), strict=True)
    ):
        stop_N = index_W[(end_W == index_W + 1) & real_W] + 1
        stop_N[-1] = width
        start_N = functional.pad(stop_N[:-1], (1, 0))
        own_NW = (index_W >= start_N[:, None]) & (index_W < stop_N[:, None])
        above_NW = (index_W < start_N[:, None]) & (end_W > start_N[:, None])
        path_NW = own_NW | above_NW
        queries.append(stop_N - start_N)
        counts.append(path_NW.sum(1))
        keys.append(path_NW.nonzero()[:, 1] + row * width)
    lengths_N, counts_N = torch.cat(queries), torch.cat(counts)
    found = Segments(
        keys=torch.cat(keys),
        query_starts=_starts(lengths_N),
        key_starts=_starts(counts_N),
        most_queries=int(lengths_N.max()),
        most_keys=int(counts_N.max()),
    )
    return on_device(found, subtree_end_BW.device)


def on_device(given: Segments, device: torch.device) -> Segments:
    """Return the sequences with their tensors on a device."""
    return Segments(
        keys=given["keys"].to(device),
        query_starts=given["query_starts"].to(device),
        key_starts=given["key_starts"].to(device),
        most_queries=given["most_queries"],
        most_keys=given["most_keys"],
    )


def _starts(lengths_N: Tensor) -> Tensor:
    return functional.pad(lengths_N.cumsum(0), (1, 0)).int()
