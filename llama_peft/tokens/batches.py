"""Rows of token ids become batches: rows of similar length together, padded to the longest."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Piece = TypeVar("Piece")


def batches(
    rows: Sequence[tuple[str, Sequence[int]]], size: int
) -> Iterator[list[tuple[str, Sequence[int]]]]:
    """Yield rows in batches of similar length, longest first."""
    ordered = sorted(rows, key=lambda row: -len(row[1]))
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]


def grouped(
    rows: Sequence[tuple[Item, list[Piece]]], size: int
) -> Iterator[list[tuple[Item, list[Piece]]]]:
    """Yield groups of rows whose windows fit one batch; the windows of a row stay together."""
    group: list[tuple[Item, list[Piece]]] = []
    held = 0
    for row in rows:
        if group and held + len(row[1]) > size:
            yield group
            group, held = [], 0
        group.append(row)
        held += len(row[1])
    if group:
        yield group


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> "tuple[Tensor, Tensor]":
    """Return (B, T) integers and their attention mask; to generate, pad on the left."""
    import torch

    width = max(len(row) for row in rows)
    filled, masks = [], []
    for row in rows:
        gap = width - len(row)
        ids, mask = list(row), [1] * len(row)
        filled.append([value] * gap + ids if left else ids + [value] * gap)
        masks.append([0] * gap + mask if left else mask + [0] * gap)
    return torch.tensor(filled), torch.tensor(masks)
