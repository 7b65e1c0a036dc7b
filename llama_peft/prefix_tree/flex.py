"""FlexAttention over tree rows on a GPU: a compiled kernel that skips blocks that nobody sees.

sdpa reads a mask of every pair, and computes the pairs that it then throws away. FlexAttention
computes only blocks of 128 x 128 in which a query sees a key. It is compiled on the machine, for
any length of a row: once for training and once for validation. If that fails, or takes more than
`MOST` compilations, one line says so, and varlen attention takes its place, or in the middle of a
run sdpa with the mask of `mask.py`; that is the plain twin. Batches that are not tree rows go to
sdpa.

The rows of a batch stand behind one another as one long row, because a kernel for one row is not
one for several. Subtrees end within their row, so no query sees a key of another one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llama_peft.system.compiling.counted import Counted

NAME = "flex_on_trees"
BLOCK = 128
"""Queries, and keys, of a block. Shorter batches have no use for blocks."""
MOST = 3
"""Compilations in a run: training, validation, and one for what was not foreseen."""
_NO_WINDOW = 2**30
_OTHERWISE = "FlexAttention does not compile here (%s): tree rows are computed without it, which takes longer"
_WARM = 37
"""Blocks of a first batch: a length that no other number of the model is taken for."""

# Shapes: B rows of W tokens, K keys in all rows, N blocks of them, H heads, D head size.


def _attend(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
    return of_torch.flex_attention(query, key, value, **options)


class Kernel(Counted[Tensor]):
    """The compiled kernel, and how often it was compiled."""

    def __init__(self, backend: str = "inductor") -> None:
        """backend: the compiler of torch.compile."""
        super().__init__(_attend, MOST, _OTHERWISE, backend)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float
    ) -> Tensor | None:
        """Return the output (1, H, K, D), or None if the kernel does not compile."""
        # The inputs have one type already, and each state of autocast would be compiled for.
        with torch.autocast(query.device.type, enabled=False):
            return self.compiled(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


kernel = Kernel()
"""That of this process."""


def block_mask(subtree_end_BW: Tensor, position_ids_BW: Tensor, window: int | None) -> BlockMask:
    """Return which blocks of all rows, as one row, see which, and the rule inside them.

    A block of queries sees a block of keys if it is not before it and a subtree of it is still
    open where it starts; it sees all of it if all subtrees are open until its own end. Windows have
    no blocks of their own, so that one rule serves every layer: it is a number of the rule.
    """
    rows, width = subtree_end_BW.shape
    device, count = subtree_end_BW.device, rows * width
    offset_B1 = torch.arange(rows, device=device)[:, None] * width
    # Copies, because what a view is of would be compiled for, too.
    end_K, position_K = (
        one.flatten().clone() for one in (subtree_end_BW + offset_B1, position_ids_BW)
    )
    reach = torch.full((), window or _NO_WINDOW, device=device)

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = position_K[query] - position_K[key] < reach
        return (key <= query) & (query < end_K[key]) & near

    blocks = -(-count // BLOCK)
    missing = blocks * BLOCK - count
    start_N = torch.arange(blocks, device=device) * BLOCK
    last_N = torch.nn.functional.pad(end_K, (0, missing), value=0).view(-1, BLOCK).amax(1)
    first_N = torch.nn.functional.pad(end_K, (0, missing), value=count).view(-1, BLOCK).amin(1)
    past_NN = start_N[:, None] > start_N
    whole_NN = past_NN & (first_N >= (start_N[:, None] + BLOCK).clamp(max=count))
    if window is not None:
        whole_NN = torch.zeros_like(whole_NN)
    open_NN = (past_NN & (last_N > start_N[:, None])) | (start_N[:, None] == start_N)
    return BlockMask.from_kv_blocks(
        *_indexed(open_NN & ~whole_NN),
        *_indexed(whole_NN),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(count, count),
    )


def _indexed(chosen_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row of blocks has, and their indices, those first."""
    order = chosen_NN.int().argsort(dim=1, descending=True, stable=True).int()
    return chosen_NN.sum(1, dtype=torch.int32)[None, None], order[None, None].contiguous()


def attention(
    module: torch.nn.Module,
    query_BHWD: Tensor,
    key_BHWD: Tensor,
    value_BHWD: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return the output (B, W, H, D) of the kernel, and of sdpa if the mask is not one of blocks.

    The signature is the one that transformers asks of an attention function.
    """
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(
            module, query_BHWD, key_BHWD, value_BHWD, attention_mask, scaling=scaling, **kwargs
        )
    query, key, value = map(_one_row, (query_BHWD, key_BHWD, value_BHWD))
    output = kernel(query, key, value, attention_mask, scaling or query.shape[3] ** -0.5)
    if output is None:  # it failed just now, so this batch has no other mask
        dense = _dense(attention_mask, query)
        found = sdpa_attention_forward(module, query, key, value, dense, scaling=scaling, **kwargs)
        output_KHD = found[0][0]
    else:
        output_KHD = output[0].transpose(0, 1)
    rows, _, width, _ = query_BHWD.shape
    return output_KHD.unflatten(0, (rows, width)).contiguous(), None


def _one_row(given_BHWD: Tensor) -> Tensor:
    """Return (1, H, K, D), in the order of memory that projections read, so that of the output.

    It is a copy, also of one row: whatever is a view of something else would be compiled for. In a
    compiled block nothing is, and the number of rows would be.
    """
    given_BWHD = given_BHWD.transpose(1, 2)
    if torch.compiler.is_compiling():
        return given_BWHD.reshape(1, -1, *given_BWHD.shape[2:]).transpose(1, 2)
    return torch.cat(given_BWHD.split(1), dim=1).transpose(1, 2)


def _dense(mask: BlockMask, query: Tensor) -> Tensor:
    """Return what sdpa adds to the scores of all rows as one."""
    index = torch.arange(query.shape[2], device=query.device)
    seen = mask.mask_mod(index.new_zeros(()), index.new_zeros(()), index[:, None], index)
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, -torch.inf)[None, None]


def use(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Make models of a config compute tree rows by the kernel, and compile it, if it does compile.

    dtype: that of the queries. Returns whether it does.
    """
    if config._attn_implementation != "sdpa" or not _warm_up(config, device, dtype):
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    return True


def _warm_up(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Compile the kernel for training and for validation. Returns whether that worked."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shapes: Sequence[int] = (heads, config.num_key_value_heads, config.num_key_value_heads)
    for trains in (True, False):
        count = _WARM * BLOCK
        index = torch.arange(count, device=device)[None]
        mask = block_mask(torch.full_like(index, count), index, None)
        query, key, value = (
            _one_row(torch.zeros(1, shape, count, size, dtype=dtype, device=device)).requires_grad_(
                trains
            )
            for shape in shapes
        )
        with torch.set_grad_enabled(trains):
            output = kernel(query, key, value, mask, size**-0.5)
        if output is None:
            return False
        if trains:
            output.sum().backward()
    return True
