"""The attention mask of tree rows: every token sees its own branch and the prefix above it.

This is the row that `pack.py` draws, with its mask:

    key      i  A  q  a  r  b  B  s  c
    index k  0  1  2  3  4  5  6  7  8
    end[k]   9  6  4  4  6  6  9  9  9
    query i  x
          A  x  x
          q  x  x  x
          a  x  x  x  x
          r  x  x  .  .  x
          b  x  x  .  .  x  x
          B  x  .  .  .  .  .  x
          s  x  .  .  .  .  .  x  x
          c  x  .  .  .  .  .  x  x  x

Query q sees key k if and only if k <= q < end[k], because the tree is laid out depth first. Gemma's
sliding layers also measure their window in positions, which are depths in the tree. A batch carries
the integer vector `subtree_end` and no mask; a pre-hook of the backbone (`install`) turns the
vector into the mask that the attention backend needs.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from llama_peft.errors import UserError
from llama_peft.prefix_tree import block_attention, flex, varlen
from llama_peft.prefix_tree.segments import Segments, segments
from llama_peft.system.memory import tree_kernel

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Shapes: B rows, K and Q tokens of a row as keys and queries.

Index: TypeAlias = Tensor | int
Rule: TypeAlias = Callable[[Index, Index, Index, Index], Tensor]
"""Whether a query sees a key, from the indices of row, head, query and key."""
T = TypeVar("T")
Masks: TypeAlias = T | dict[str, T]
"""One mask for all layers, or one for each layer type."""


class AttentionInputs(TypedDict):
    """The arguments of the backbone's forward that make it attend along tree rows."""

    attention_mask: "Masks[Tensor | BlockMask]"
    key_blocks: NotRequired[list[list[block_attention.Block]]]
    segments: NotRequired[Segments]


def mask_rule(subtree_end_BK: Tensor, position_ids_BK: Tensor, window: int | None = None) -> Rule:
    """Return the mask as a function of (row, head, query, key), as FlexAttention takes it."""

    def visible(row: Index, head: Index, query: Index, key: Index) -> Tensor:
        seen = (key <= query) & (query < subtree_end_BK[row, key])
        if window is None:
            return seen
        return seen & (position_ids_BK[row, query] - position_ids_BK[row, key] < window)

    return visible


def attention_inputs(
    config: PreTrainedConfig,
    subtree_end_BK: Tensor,
    position_ids_BK: Tensor,
    dtype: torch.dtype,
    compiled: bool = False,
    pieces: Segments | None = None,
) -> AttentionInputs:
    """Return the mask of whole rows and, on a CPU with sdpa, the blocks of keys that queries see.

    On CUDA, FlexAttention or varlen attention is the kernel that skips unseen pairs; nobody
    measured many small sdpa calls there.

    compiled: whether FlexAttention may be used, if `flex.use` has found that it compiles.
    pieces: the sequences of the rows, for varlen attention.
    """
    if pieces is not None and varlen.serves(config, pieces, subtree_end_BK.numel()):
        # The library passes any tensor of four dimensions on to every layer.
        passed = by_layer_type(config, lambda _: pieces["keys"][None, None, None])
        return AttentionInputs(attention_mask=passed, segments=pieces)
    usable = compiled and config._attn_implementation == flex.NAME and not flex.kernel.refused
    if usable and subtree_end_BK.numel() >= flex.BLOCK:
        return AttentionInputs(
            attention_mask=by_layer_type(
                config, lambda window: flex.block_mask(subtree_end_BK, position_ids_BK, window)
            )
        )
    mask = row_masks(config, subtree_end_BK, position_ids_BK, dtype)
    if subtree_end_BK.device.type == "cpu":
        block_attention.use(config)
        if config._attn_implementation == block_attention.NAME:
            key_blocks = block_attention.blocks(subtree_end_BK)
            return AttentionInputs(attention_mask=mask, key_blocks=key_blocks)
    return AttentionInputs(attention_mask=mask)


def row_masks(
    config: PreTrainedConfig, subtree_end_BK: Tensor, position_ids_BK: Tensor, dtype: torch.dtype
) -> "Masks[Tensor | BlockMask]":
    """Return the masks of whole rows as the attention backend and the layer types need them."""
    rows, width = subtree_end_BK.shape
    device = subtree_end_BK.device

    def build(window: int | None) -> "Tensor | BlockMask":
        rule = mask_rule(subtree_end_BK, position_ids_BK, window)
        if config._attn_implementation == "flex_attention":
            from torch.nn.attention.flex_attention import create_block_mask

            return create_block_mask(rule, rows, None, width, width, device=device)
        index = torch.arange(width, device=device)
        row = torch.arange(rows, device=device)[:, None, None, None]
        return dense_mask(config, rule(row, 0, index[:, None], index), dtype)

    return by_layer_type(config, build)


def dense_mask(config: PreTrainedConfig, visible_B1QK: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores, made once: sdpa would make it of booleans in every layer.

    No query of ours is blind, so sdpa gets the -inf that it would make. dtype: that of the queries.
    """
    eager = config._attn_implementation == "eager"
    unseen = torch.finfo(dtype).min if eager else -torch.inf
    zeros = torch.zeros(visible_B1QK.shape, dtype=dtype, device=visible_B1QK.device)
    return zeros.masked_fill(~visible_B1QK, unseen)


def by_layer_type(config: PreTrainedConfig, build: Callable[[int | None], T]) -> Masks[T]:
    """Return `build(window)`, or a dict by layer type if the model has several (Gemma 2, 3)."""
    kinds = getattr(config, "layer_types", None)  # Llama's config has no such key
    if kinds is None:
        return build(None)
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    if unknown := set(kinds) - set(windows):
        raise UserError(
            f"prefix trees cannot mask layers of type {', '.join(sorted(unknown))}: choose another "
            "base, or set train.packing: none, head.features: length_sorted, eval.decoding: plain"
        )
    return {kind: build(windows[kind]) for kind in set(kinds)}


def use_kernel(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, asked: str | None
) -> None:
    """Make models of a config compute tree rows by the fastest kernel of this GPU that works.

    dtype: that of the queries. asked: the recipe's model.attn_implementation. Raises UserError if
    that kernel can never compute this base.
    """
    found = tree_kernel()
    if asked is None and found == "flex" and flex.use(config, device, dtype):
        return
    if found is not None and asked in (None, varlen.NAME):
        varlen.use(config, device, dtype, asked is not None)


def install(model: torch.nn.Module) -> None:
    """Make a model (bare, with a head, or in PEFT) accept tree rows besides other batches."""
    backbone = next(
        m for m in model.modules() if isinstance(m, PreTrainedModel) and m.base_model is m
    )
    attention = backbone.config._attn_implementation
    known = "sdpa", block_attention.NAME, flex.NAME, varlen.NAME, "eager", "flex_attention"
    if attention not in known:
        raise UserError(
            f"prefix trees do not work with the attention {attention}: set model.attn_implementation "
            "to sdpa, eager, varlen or flex_attention, or set train.packing: none"
        )
    backbone.register_forward_pre_hook(_mask_from_vector, with_kwargs=True)


def _mask_from_vector(
    backbone: PreTrainedModel, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]] | None:
    """Replace `subtree_end` with the mask before each forward pass of the backbone.

    `segments` come with whole batches of a training; for pieces of these they are found here.
    """
    if "subtree_end" not in kwargs:
        return None
    others = {key: one for key, one in kwargs.items() if key not in ("subtree_end", "segments")}
    config = backbone.config.get_text_config()
    pieces = cast("Segments | None", kwargs.get("segments"))
    if pieces is None and config._attn_implementation == varlen.NAME:
        pieces = segments(kwargs["subtree_end"], kwargs["attention_mask"])
    inputs = attention_inputs(
        config,
        kwargs["subtree_end"],
        kwargs["position_ids"],
        backbone.dtype,
        compiled=True,
        pieces=pieces,
    )
    return args, {**others, **inputs}
