"""Shared prefixes computed once: examples packed as trees into rows, and the mask between them.

Seven questions on one paragraph need the paragraph once. A row holds a tree: what prompts share is
stored (and computed) once, and every example is a branch of its own - the last token of its prompt
and its completion, never merged with another's, so that the first answer token is always predicted
inside its own branch. Two questions `q r` on paragraph `A`, one question `s` on paragraph `B`, the
instruction `i` in front, answers `a b c`:

    index     0  1  2  3  4  5  6  7  8          i  A  q  a  r  b  B  s  c     (keys)
    token     i  A  q  a  r  b  B  s  c       i  x
    position  0  1  2  3  2  3  1  2  3       A  x  x
    end       9  6  4  4  6  6  9  9  9       q  x  x  x
    label     .  .  .  a  .  b  .  .  c       a  x  x  x  x
                                              r  x  x  .  .  x
    Key k is visible to query q iff           b  x  x  .  .  x  x
    k <= q < end[k]: a tree laid out          B  x  .  .  .  .  .  x
    depth first, where end[k] is the index    s  x  .  .  .  .  .  x  x
    after the last descendant of k.           c  x  .  .  .  .  .  x  x  x

Positions are depths, so rotary embeddings see every branch as if it stood alone; Gemma's sliding
layers measure their window in positions too. A label's predecessor in the row is its predecessor in
its branch, so the usual shift by one is right. A batch carries the integer vector `subtree_end` and
no mask; a pre-hook of the backbone (`install`) turns it into the mask that the attention backend
wants. Rows of one example each (`plain_rows`) are the plain twin: same loss, same gradients, more
tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from llama_peft.errors import UserError
from llama_peft.prefix_tree import block_attention

IGNORE_INDEX = -100  # what torch's and transformers' losses skip

# Shapes: B rows, K and Q tokens of a row as keys and queries, N labelled positions, V vocabulary.


class EncodedLike(Protocol):
    """An example as token ids; the completion ends in EOS in training, may be empty later."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> tuple[int, ...]: ...
    @property
    def completion(self) -> tuple[int, ...]: ...


class Row(TypedDict):
    """One row of a batch: the first four per token, `ids` and `starts` per example."""

    input_ids: list[int]
    position_ids: list[int]
    labels: list[int]
    subtree_end: list[int]
    ids: list[str]
    starts: list[int]  # index of each branch's first token: the last token of its prompt


class Packing(NamedTuple):
    """What rows hold; `plain_tokens` is what one example a row would have cost, without padding."""

    rows: int
    examples: int
    tokens: int
    plain_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.examples:,} examples in {self.rows:,} rows: {self.examples / self.rows:.1f} "
            f"examples and {self.tokens / self.rows:,.0f} tokens a row, "
            f"{self.plain_tokens / self.tokens:.2f} times fewer tokens than one example a row"
        )


class _Node(NamedTuple):
    """A run of tokens and what branches off behind it; a branch has an example, no children."""

    tokens: tuple[int, ...]
    children: Sequence["_Node"]
    example: EncodedLike | None
    size: int  # tokens in the whole subtree


def pack(
    examples: Iterable[EncodedLike], max_length: int, max_branches: int | None = None
) -> list[Row]:
    """Rows of at most `max_length` tokens in which no prefix is stored twice.

    A family that does not fit is split and its prefix repeated in each row. `max_branches` caps how
    many examples of one family (examples that share more than half of their prompts) a row may
    hold, for better mixed batches at the price of more tokens.
    """
    ordered = sorted(examples, key=lambda example: example.prompt[:-1])
    _refuse_unpackable(ordered, max_length)
    groups = [ordered] if max_branches is None else _spread(ordered, max_branches)
    trees = [_tree(group) for group in groups if group]
    return [_row(piece) for tree in trees for piece in _pieces(tree, max_length)]


def plain_rows(examples: Iterable[EncodedLike]) -> list[Row]:
    """The plain twin: one example a row, in the order given."""
    return [_row(_tree([example])) for example in examples]


def oversized(examples: Iterable[EncodedLike], max_length: int) -> list[str]:
    """Ids of the examples that do not fit a row even alone."""
    return [e.id for e in examples if len(e.prompt) + len(e.completion) > max_length]


def packing(rows: Iterable[Row]) -> Packing:
    """Counts for the log: how many examples and tokens a row holds and what sharing saves."""
    rows = list(rows)
    depths = [r["position_ids"][r["subtree_end"][s] - 1] + 1 for r in rows for s in r["starts"]]
    tokens = sum(len(row["input_ids"]) for row in rows)
    return Packing(len(rows), len(depths), tokens, sum(depths))


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> dict[str, Tensor]:
    """A batch of rows, padded on the right; padding sees itself only, so no softmax is empty.

    `attention_mask` serves the token counters: the hook puts the tree's mask in its place.
    """
    width = max(len(row["input_ids"]) for row in rows)
    lengths = [len(row["input_ids"]) for row in rows]

    def padded(key: str, fill: Callable[[int], Iterable[int]]) -> Tensor:
        return torch.tensor([[*row[key], *fill(len(row[key]))] for row in rows])

    return {
        "input_ids": padded("input_ids", lambda length: [pad_token_id] * (width - length)),
        "position_ids": padded("position_ids", lambda length: [0] * (width - length)),
        "labels": padded("labels", lambda length: [IGNORE_INDEX] * (width - length)),
        "subtree_end": padded("subtree_end", lambda length: range(length + 1, width + 1)),
        "attention_mask": torch.tensor([[1] * n + [0] * (width - n) for n in lengths]),
    }


def _refuse_unpackable(examples: Sequence[EncodedLike], max_length: int) -> None:
    if empty := [example.id for example in examples if not example.prompt]:
        raise UserError(f"{len(empty)} examples have an empty prompt: {_some(empty)}")
    if long := oversized(examples, max_length):
        raise UserError(
            f"{len(long)} of {len(examples)} examples are longer than a row of {max_length} tokens "
            f"(train.max_length): {_some(long)}. Raise it or leave them out."
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _shared(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """Where two sequences that agree up to `start` part."""
    stop = min(len(a), len(b))
    return next((i for i in range(start, stop) if a[i] != b[i]), stop)


def _tree(examples: Sequence[EncodedLike], depth: int = 0) -> _Node:
    """The trie of examples sorted by prompt that agree on their first `depth` tokens.

    In sorted order the first and the last agree exactly as far as all do. A prompt's last token
    belongs to the branch.
    """
    first, last = examples[0].prompt, examples[-1].prompt
    fork = _shared(first[:-1], last[:-1], depth)
    ends = [_branch(e) for e in examples if len(e.prompt) == fork + 1]
    deeper = groupby(examples[len(ends) :], key=lambda e: e.prompt[fork])
    return _node(first[depth:fork], [*ends, *(_tree(list(group), fork) for _, group in deeper)])


def _node(tokens: tuple[int, ...], children: Sequence[_Node]) -> _Node:
    return _Node(tokens, children, None, len(tokens) + sum(child.size for child in children))


def _branch(example: EncodedLike) -> _Node:
    tokens = (example.prompt[-1], *example.completion)
    return _Node(tokens, (), example, len(tokens))


def _pieces(node: _Node, room: int) -> list[_Node]:
    """A subtree cut into pieces of at most `room` tokens, the node's own in front of each."""
    if node.size <= room:
        return [node]
    room -= len(node.tokens)
    parts = [part for child in node.children for part in _pieces(child, room)]
    return [_node(node.tokens, group) for group in _best_fit(parts, room)]


def _best_fit(parts: Iterable[_Node], room: int) -> list[list[_Node]]:
    """Best-fit decreasing: the largest part first, each into the fullest group that still takes it.

    Two groups never fit together, so no prefix is repeated inside a row.
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


def _spread(ordered: Sequence[EncodedLike], max_branches: int) -> list[list[EncodedLike]]:
    """Groups to be packed apart, none with more than `max_branches` examples of one family."""
    families: list[list[EncodedLike]] = []
    for example in ordered:
        if families and _same_family(families[-1][-1].prompt, example.prompt):
            families[-1].append(example)
        else:
            families.append([example])
    counts = [-(-len(family) // max_branches) for family in families]
    groups: list[list[EncodedLike]] = [[] for _ in range(max(counts, default=0))]
    for turn, (family, count) in enumerate(zip(families, counts, strict=True)):
        for part in range(count):  # `turn` spreads the families evenly over the groups
            groups[(turn + part) % len(groups)] += family[part::count]
    return [sorted(group, key=lambda example: example.prompt[:-1]) for group in groups]


def _same_family(a: Sequence[int], b: Sequence[int]) -> bool:
    return 2 * _shared(a, b) > max(len(a), len(b))


def _row(tree: _Node) -> Row:
    row = Row(input_ids=[], position_ids=[], labels=[], subtree_end=[], ids=[], starts=[])
    _lay(tree, 0, row)
    return row


def _lay(node: _Node, depth: int, row: Row) -> None:
    """Append a subtree, depth first; its first token stands at position `depth`."""
    start, length = len(row["input_ids"]), len(node.tokens)
    row["input_ids"] += node.tokens
    row["position_ids"] += range(depth, depth + length)
    row["subtree_end"] += [start + node.size] * length
    completion = node.example.completion if node.example else ()
    row["labels"] += [IGNORE_INDEX] * (length - len(completion)) + list(completion)
    if node.example:
        row["ids"].append(node.example.id)
        row["starts"].append(start)
    for child in node.children:
        _lay(child, depth + length, row)


def mask_rule(
    subtree_end_BK: Tensor, position_ids_BK: Tensor, window: int | None = None
) -> Callable[[Any, Any, Any, Any], Any]:
    """The mask as a function of (row, head, query, key) indices, as FlexAttention takes it."""

    def visible(row: Any, head: Any, query: Any, key: Any) -> Any:
        seen = (key <= query) & (query < subtree_end_BK[row, key])
        if window is None:
            return seen
        return seen & (position_ids_BK[row, query] - position_ids_BK[row, key] < window)

    return visible


def attention_inputs(
    config: PreTrainedConfig, subtree_end_BK: Tensor, position_ids_BK: Tensor, dtype: torch.dtype
) -> dict[str, Any]:
    """What the backbone's forward takes to attend along whole rows: the mask, and on a CPU with sdpa its blocks.

    On CUDA FlexAttention is the kernel that skips what nobody sees; many small sdpa calls were not measured there.
    """
    inputs = {"attention_mask": row_masks(config, subtree_end_BK, position_ids_BK, dtype)}
    if subtree_end_BK.device.type == "cpu":
        block_attention.use(config)
        if config._attn_implementation == block_attention.NAME:
            inputs["key_blocks"] = block_attention.blocks(subtree_end_BK)
    return inputs


def row_masks(
    config: PreTrainedConfig, subtree_end_BK: Tensor, position_ids_BK: Tensor, dtype: torch.dtype
) -> Any:
    """The masks of whole rows, as the model's attention backend and layer types want them."""
    rows, width = subtree_end_BK.shape
    device = subtree_end_BK.device

    def build(window: int | None) -> Any:
        rule = mask_rule(subtree_end_BK, position_ids_BK, window)
        if config._attn_implementation == "flex_attention":
            from torch.nn.attention.flex_attention import create_block_mask

            return create_block_mask(rule, rows, None, width, width, device=device)
        index = torch.arange(width, device=device)
        row = torch.arange(rows, device=device)[:, None, None, None]
        return dense_mask(config, rule(row, 0, index[:, None], index), dtype)

    return by_layer_type(config, build)


def dense_mask(config: PreTrainedConfig, visible_B1QK: Tensor, dtype: torch.dtype) -> Tensor:
    """Booleans for sdpa; numbers to add for eager, which would add True as 1 without a word."""
    if config._attn_implementation in ("sdpa", block_attention.NAME):
        return visible_B1QK
    zeros = torch.zeros(visible_B1QK.shape, dtype=dtype, device=visible_B1QK.device)
    return zeros.masked_fill(~visible_B1QK, torch.finfo(dtype).min)


def by_layer_type(config: PreTrainedConfig, build: Callable[[int | None], Any]) -> Any:
    """`build(window)`, or a dict of it by layer type where a model has several (Gemma 2, 3)."""
    kinds = getattr(config, "layer_types", None)  # Llama's config has no such key
    if kinds is None:
        return build(None)
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    if unknown := set(kinds) - set(windows):
        raise UserError(f"prefix trees cannot mask layers of type {', '.join(sorted(unknown))}")
    return {kind: build(windows[kind]) for kind in set(kinds)}


def install(model: torch.nn.Module) -> None:
    """Let a model (bare, with a head, in PEFT) take tree rows; other batches pass untouched."""
    backbone = next(
        m for m in model.modules() if isinstance(m, PreTrainedModel) and m.base_model is m
    )
    attention = backbone.config._attn_implementation
    if attention not in ("sdpa", block_attention.NAME, "eager", "flex_attention"):
        raise UserError(
            f"prefix trees need the attention sdpa, eager or flex_attention, not {attention}: "
            "change it or set train.packing: none"
        )
    backbone.register_forward_pre_hook(_mask_from_vector, with_kwargs=True)


def _mask_from_vector(
    backbone: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if "subtree_end" not in kwargs:
        return None
    kwargs = dict(kwargs)
    end = kwargs.pop("subtree_end")
    kwargs |= attention_inputs(backbone.config, end, kwargs["position_ids"], backbone.dtype)
    return args, kwargs


def answer_logits(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits (N, V) at the N positions that predict a label, and those labels (N).

    Goes through the model's own forward, so that DDP, PEFT and Gemma's soft-capping stay in charge.
    """
    targets = functional.pad(inputs["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
    predicts = targets != IGNORE_INDEX
    arguments = {key: value for key, value in inputs.items() if key != "labels"}
    outputs = model(**{**arguments, "use_cache": False, "logits_to_keep": predicts})
    return outputs.logits, targets[predicts]
