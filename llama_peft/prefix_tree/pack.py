"""Examples are packed as trees into rows, so that a shared prefix is computed once.

Seven questions on one paragraph need the paragraph once. A row holds a tree: tokens that prompts
share are stored (and computed) once, and every example is its own branch. A branch is the last
token of the prompt and the completion. It is never merged with another branch, so the first answer
token is always predicted inside its own branch. For example, two questions `q r` on paragraph `A`
and one question `s` on paragraph `B`, with the instruction `i` in front and the answers `a b c`,
give this row:

    index     0  1  2  3  4  5  6  7  8
    token     i  A  q  a  r  b  B  s  c
    position  0  1  2  3  2  3  1  2  3
    end       9  6  4  4  6  6  9  9  9
    label     .  .  .  a  .  b  .  .  c

The tree is laid out depth first, and end[k] is the index after the last descendant of k. `mask.py`
draws which tokens see each other. Positions are depths in the tree, so rotary embeddings see every
branch as if it stood alone. The predecessor of a label in the row is also its predecessor in its
branch, so the usual shift by one is right. Rows of one example each are the plain twin: they give the
same loss and the same gradients, and they take more tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import add
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from llama_peft.errors import UserError
from llama_peft.system.sequences.spool import Spool

_RUN = 4096
"""Examples that are sorted at once."""
IGNORE_INDEX = -100
"""The label that the losses of torch and transformers skip."""


class EncodedLike(Protocol):
    """An example as token ids. The completion ends in the end token, or is empty at inference."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> tuple[int, ...]: ...
    @property
    def completion(self) -> tuple[int, ...]: ...


class Example(NamedTuple):
    """An example as token ids."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()


class TreeRow(TypedDict):
    """One row; `ids` and `starts` have an entry per example, the other lists one per token."""

    input_ids: list[int]
    position_ids: list[int]
    labels: list[int]
    subtree_end: list[int]
    ids: list[str]
    starts: list[int]
    """Index of each branch's first token, which is the last token of its prompt."""


class Packing(NamedTuple):
    """Counts of what rows hold. `plain_tokens` counts rows of one example each, without padding."""

    rows: int
    examples: int
    tokens: int
    plain_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.examples:,} examples in {self.rows:,} rows: {self.examples / self.rows:.1f} "
            f"examples and {self.tokens / self.rows:,.0f} tokens per row, "
            f"{self.plain_tokens / self.tokens:.2f} times fewer tokens than one example per row"
        )


class _Node(NamedTuple):
    """A run of tokens and its children. A branch, which ends an example, has None.

    The tokens are those of one example from a depth on, and stay where the examples are.
    """

    example: int
    depth: int
    length: int
    children: Sequence["_Node"] | None
    size: int  # tokens in the whole subtree


def pack(examples: Iterable[EncodedLike], max_length: int) -> Sequence[TreeRow]:
    """Return rows of at most `max_length` tokens; no row stores a prefix twice.

    A tree that does not fit is split, and its prefix is repeated in each row. Raises UserError if
    an example does not fit a row or has an empty prompt.
    """
    ordered = Spool(_sorted(examples))
    _refuse_unpackable(ordered, max_length)
    pieces = _pieces(_tree(ordered, range(len(ordered))), max_length) if ordered else []
    return Spool(_row(ordered, piece) for piece in pieces)


def _sorted(examples: Iterable[EncodedLike]) -> Iterator[EncodedLike]:
    """Yield examples in the order of their prompts; equal ones in the order given.

    Each run is sorted in memory, and all are merged.
    """
    given, held, runs = iter(examples), Spool[EncodedLike](), list[range]()
    while run := sorted(islice(given, _RUN), key=_prompt):
        runs.append(range(len(held), len(held) + len(run)))
        held.extend(run)
    return merge(*(map(held.at, run) for run in runs), key=_prompt)


def _prompt(example: EncodedLike) -> tuple[int, ...]:
    return example.prompt[:-1]


def packing(rows: Iterable[TreeRow]) -> Packing:
    """Return counts for the log: the examples and tokens of the rows, and what sharing saves."""
    found = Packing(0, 0, 0, 0)
    for row in rows:
        ends, depths = row["subtree_end"], row["position_ids"]
        plain = sum(depths[ends[start] - 1] + 1 for start in row["starts"])
        own = Packing(1, len(row["starts"]), len(row["input_ids"]), plain)
        found = Packing(*map(add, found, own))
    return found


class TreeBatch(TypedDict):
    """Rows as tensors of shape (rows, tokens)."""

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    subtree_end: Tensor
    attention_mask: Tensor
    """1 for tokens, 0 for padding; the hook replaces it with the tree's mask."""


def collate(rows: Sequence[TreeRow], pad_token_id: int = 0, multiple: int = 1) -> TreeBatch:
    """Return the rows as a batch, padded on the right to a width that is a multiple of a number.

    Padding sees only itself, so no softmax is empty.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    width = -(-max(lengths) // multiple) * multiple

    def padded(values: Iterable[list[int]], fill: Callable[[int], Iterable[int]]) -> Tensor:
        return torch.tensor([[*value, *fill(len(value))] for value in values])

    def constant(value: int) -> Callable[[int], list[int]]:
        return lambda length: [value] * (width - length)

    return TreeBatch(
        input_ids=padded((row["input_ids"] for row in rows), constant(pad_token_id)),
        position_ids=padded((row["position_ids"] for row in rows), constant(0)),
        labels=padded((row["labels"] for row in rows), constant(IGNORE_INDEX)),
        subtree_end=padded(
            (row["subtree_end"] for row in rows), lambda length: range(length + 1, width + 1)
        ),
        attention_mask=padded(([1] * length for length in lengths), constant(0)),
    )


def _refuse_unpackable(examples: Sequence[EncodedLike], max_length: int) -> None:
    if empty := [example.id for example in examples if not example.prompt]:
        raise UserError(
            f"{len(empty)} examples have an empty prompt: {_some(empty)}; leave them out"
        )
    long = [e.id for e in examples if len(e.prompt) + len(e.completion) > max_length]
    if long:
        raise UserError(
            f"{len(long)} of {len(examples)} examples are longer than a row of {max_length} "
            f"tokens: {_some(long)}; raise train.max_length or leave them out"
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _fork(a: Sequence[int], b: Sequence[int], start: int) -> int:
    """Return the first index where two sequences differ; they are equal up to `start`."""
    stop = min(len(a), len(b))
    return next((i for i in range(start, stop) if a[i] != b[i]), stop)


def _tree(examples: Sequence[EncodedLike], own: range, depth: int = 0) -> _Node:
    """Return the trie of some examples, which are sorted by prompt and share their first tokens.

    In sorted order, the first and the last example share exactly the prefix that all of them share.
    The last token of a prompt belongs to the branch. depth: how many of those tokens are above.
    """
    first, last = examples[own[0]].prompt, examples[own[-1]].prompt
    fork = _fork(first[:-1], last[:-1], depth)
    children, token, start = [], None, own.start
    for number in own:
        example = examples[number]
        if len(example.prompt) == fork + 1:
            children.append(_branch(number, example))
            start = number + 1
        elif example.prompt[fork] != token:
            if number > start:
                children.append(_tree(examples, range(start, number), fork))
            token, start = example.prompt[fork], number
    if start < own.stop:
        children.append(_tree(examples, range(start, own.stop), fork))
    return _node(own[0], depth, fork - depth, children)


def _node(example: int, depth: int, length: int, children: Sequence[_Node]) -> _Node:
    return _Node(example, depth, length, children, length + sum(child.size for child in children))


def _branch(number: int, example: EncodedLike) -> _Node:
    length = 1 + len(example.completion)
    return _Node(number, len(example.prompt) - 1, length, None, length)


def _pieces(node: _Node, room: int) -> list[_Node]:
    """Return pieces of at most `room` tokens; each starts with the node's own tokens."""
    if node.size <= room:
        return [node]
    room -= node.length
    parts = [part for child in node.children or () for part in _pieces(child, room)]
    return [_node(node.example, node.depth, node.length, group) for group in _best_fit(parts, room)]


def _best_fit(parts: Iterable[_Node], room: int) -> list[list[_Node]]:
    """Return groups of parts, filled by best-fit decreasing.

    The largest part comes first, and each goes into the fullest group that has room for it. Two
    groups never fit together.
    """
    groups: list[list[_Node]] = []
    free: list[tuple[int, int]] = []  # (tokens left, group), ascending
    for part in sorted(parts, key=lambda part: part.size, reverse=True):
        fit = bisect_left(free, (part.size, -1))
        left, group = free.pop(fit) if fit < len(free) else (room, len(groups))
        if group == len(groups):
            groups.append([])
        groups[group].append(part)
        insort(free, (left - part.size, group))
    return groups


def _row(examples: Sequence[EncodedLike], tree: _Node) -> TreeRow:
    row = TreeRow(input_ids=[], position_ids=[], labels=[], subtree_end=[], ids=[], starts=[])
    _lay(examples, tree, row)
    return row


def _lay(examples: Sequence[EncodedLike], node: _Node, row: TreeRow) -> None:
    """Append a subtree to the row, depth first."""
    start, length, example = len(row["input_ids"]), node.length, examples[node.example]
    stop = node.depth + length
    completion = example.completion if node.children is None else ()
    row["input_ids"] += (*example.prompt, *completion)[node.depth : stop]
    row["position_ids"] += range(node.depth, stop)
    row["subtree_end"] += [start + node.size] * length
    row["labels"] += [IGNORE_INDEX] * (length - len(completion)) + list(completion)
    if node.children is None:
        row["ids"].append(example.id)
        row["starts"].append(start)
    for child in node.children or ():
        _lay(examples, child, row)
