"""What a GPU's own kernels do, where a CPU build of torch or of a library has none.

A fake kernel gives the shapes of what it returns. What else a real one takes while it runs is
written down here, with the place in the library's source that says so.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from llama_peft.rehearsal.device import inductor, replace
from llama_peft.rehearsal.device.values import really, value_of

_UNPACKED_FROM = 5
"""Tokens from which bitsandbytes may unpack a 4-bit weight before it multiplies.

backends/cuda/ops.py decides by card and shape up to 1,536 tokens; here it always does.
"""
_BLOCK = 64
"""Weights with one scale in 4-bit storage."""


class Scratch(NamedTuple):
    """What a kernel takes beside its inputs and outputs."""

    bytes: int = 0
    kernels: int = 0
    """How many more kernels it is made of."""


def _gemm_4bit(args: Sequence[object]) -> Scratch:
    """`_dequant_linear_fallback` in bitsandbytes: the unpacked weight, and its scales twice."""
    given, _, shape = args[:3]
    assert isinstance(given, Tensor) and isinstance(shape, Sequence)
    tokens = given.numel() // given.shape[-1]
    if tokens < _UNPACKED_FROM:
        return Scratch()
    weights = shape[0] * shape[1]
    return Scratch(weights * given.element_size() + weights // _BLOCK * 8, kernels=3)


def _int8_mm(args: Sequence[object]) -> Scratch:
    """`int8_scaled_mm` in bitsandbytes: the product in int32 before it is scaled."""
    given, weight = [arg for arg in args if isinstance(arg, Tensor) and arg.dtype == torch.int8]
    return Scratch(4 * given.numel() // given.shape[-1] * weight.shape[0], kernels=1)


def _efficient_backward(args: Sequence[object]) -> Scratch:
    """Sums in float32: of the queries always, of keys and values if a head is wider than a block.

    `workspace_size` in ATen's mem_eff_attention/kernel_backward.h.
    """
    query, key = args[1], args[2]
    assert isinstance(query, Tensor) and isinstance(key, Tensor)
    if query.dtype == torch.float32:
        return Scratch()
    wide = key.shape[-1] > 128
    return Scratch(4 * (query.numel() + (2 * key.numel() if wide else 0)))


def _flash_backward(args: Sequence[object]) -> Scratch:
    """`mha_bwd` in ATen's flash_attn: sums of the queries in float32, repeated keys and values."""
    query, key = args[1], args[2]
    assert isinstance(query, Tensor) and isinstance(key, Tensor)
    repeated = 2 * query.numel() * query.element_size() if key.shape[1] != query.shape[1] else 0
    return Scratch(4 * query.numel() + repeated)


def _varlen_backward(args: Sequence[object]) -> Scratch:
    """`mha_varlen_bwd` in ATen's flash_attn: sums of the queries in float32 with 128 more for each
    sequence, and repeated keys and values.
    """
    query, key, starts = args[1], args[2], args[6]
    assert isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(starts, Tensor)
    count, heads, size = query.shape
    step = 32 if size <= 128 else 64
    sums = 4 * (count + 128 * (len(starts) - 1)) * heads * (-(-size // step) * step + 1)
    repeated = 2 * len(key) * heads * size * key.element_size() if key.shape[1] != heads else 0
    return Scratch(sums + repeated, kernels=2)


_SCRATCH: Mapping[str, Callable[[Sequence[object]], Scratch]] = {
    "bitsandbytes::gemm_4bit": _gemm_4bit,
    "bitsandbytes::int8_scaled_mm": _int8_mm,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_mm,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "torch_attn::_varlen_attn_backward": _varlen_backward,
}


def scratch(name: str, args: Sequence[object]) -> Scratch:
    """Return what a kernel takes beside its inputs and outputs."""
    found = _SCRATCH.get(name)
    return found(args) if found else Scratch()


def _int8_quantised(given: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """int8_vectorwise_quant as if no column held an outlier: how many there are depends on data."""
    rows = given.numel() // given.shape[-1]
    return (
        given.new_empty(given.shape, dtype=torch.int8),
        given.new_empty(rows, dtype=torch.float32),
        given.new_empty(0, dtype=torch.int64) if threshold else None,
    )


def _int8_mixed(
    given: Tensor, packed: Tensor, weight: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    """int8_mixed_scaled_mm without outliers."""
    return given.new_empty((*packed.shape[:-1], weight.shape[0])), given.new_empty(0)


STAND_INS: Mapping[str, Callable[..., object]] = {
    "bitsandbytes::int8_vectorwise_quant": _int8_quantised,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_mixed,
}
"""In place of the libraries' own fakes, which cannot say how many outliers there are."""
WAITS = {"bitsandbytes::int8_vectorwise_quant": "look for outliers"}
"""Kernels whose callers wait for what they find."""
_LINEAR, _FLEX = "4-bit and 8-bit linear", "llama_peft::flex_attention"
_VARLEN = "torch_attn::_varlen_attn"
FLOP: Mapping[str, tuple[str, Callable[..., int]]] = {
    "bitsandbytes::gemm_4bit": (
        _LINEAR,
        lambda given, _, shape, *__, **___: 2 * given.numel() * shape[0],
    ),
    "bitsandbytes::int8_scaled_mm": (
        _LINEAR,
        lambda given, weight, *_, **__: 2 * given.numel() * weight.shape[0],
    ),
    "bitsandbytes::int8_mixed_scaled_mm": (
        _LINEAR,
        lambda _, given, weight, *__, **___: 2 * given.numel() * weight.shape[0],
    ),
    _FLEX: ("attention", lambda query, *_: 4 * _flex_pairs(query, *_)),
    f"{_FLEX}_backward": ("attention", lambda query, *_: 10 * _flex_pairs(query, *_)),
    _VARLEN: (
        "attention",
        lambda query, key, value, *starts, **_: 4 * _varlen_pairs(query, *starts[:2]),
    ),
    f"{_VARLEN}_backward": (
        "attention",
        lambda _, query, *others, **__: 10 * _varlen_pairs(query, *others[4:6]),
    ),
}
"""What a kernel computes, and its multiplications and additions: attention has two products forward,
and five backward.
"""


def _flex_pairs(query: Tensor, *others: object) -> int:
    """Return the pairs of all heads, times the head size, in the blocks that are computed."""
    count = 0
    for blocks in others[-2:]:
        if isinstance(blocks, Tensor):
            counts = value_of(blocks)
            assert counts is not None
            count += really(lambda counts=counts: int(counts.sum()))
    return count * _FLEX_BLOCK**2 * query.shape[1] * query.shape[3]


_FLEX_BLOCK = 128


def _varlen_pairs(query: Tensor, *starts: object) -> int:
    """Return the same of sequences with gathered keys: a block of one holds none of another."""
    lengths = [value_of(one) for one in starts if isinstance(one, Tensor)]
    assert all(one is not None for one in lengths)
    return really(_blocks, *lengths) * _FLEX_BLOCK**2 * query.shape[1] * query.shape[2]


def _blocks(query_starts: Tensor, key_starts: Tensor) -> int:
    total = 0
    for queries, keys in zip(query_starts.diff().tolist(), key_starts.diff().tolist(), strict=True):
        for last in range(_FLEX_BLOCK, queries + _FLEX_BLOCK, _FLEX_BLOCK):
            total += -(-min(keys, keys - queries + last) // _FLEX_BLOCK)
    return total


def _define_flex() -> "torch.library.Library":
    """Define FlexAttention as one operation, and its derivative. Return what must stay alive."""
    library = torch.library.Library("llama_peft", "DEF")
    given, made = "Tensor q, Tensor k, Tensor v", "(Tensor, Tensor, Tensor)"
    library.define(f"flex_attention({given}, Tensor b, Tensor? w) -> (Tensor, Tensor)")
    library.define(
        f"flex_attention_backward({given}, Tensor o, Tensor s, Tensor g, Tensor b, Tensor? w) -> {made}"
    )

    def forward(query: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        return torch.empty_like(query), sums

    def backward(
        query: Tensor, key: Tensor, value: Tensor, *_: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    library.impl("flex_attention", forward, "Meta")
    library.impl("flex_attention_backward", backward, "Meta")
    return library


class _Flex(torch.autograd.Function):
    """What a compiled FlexAttention keeps and returns: inputs that are not repeated, the output and
    the logarithms of the sums.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Tensor,
        whole: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, sums = torch.ops.llama_peft.flex_attention(query, key, value, blocks, whole)
        ctx.save_for_backward(query, key, value, output, sums, blocks, whole)
        return output, sums

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        *kept, b, w = ctx.saved_tensors
        torch.empty_like(kept[-1])
        inputs = *kept, gradient, b, w
        return (*torch.ops.llama_peft.flex_attention_backward(*inputs), None, None)


def _flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: object,
    block_mask: BlockMask | None,
    return_lse: bool = False,
    return_aux: object = None,
    **__: object,
) -> object:
    whole = None
    if block_mask is None:  # decoding adds its mask to the scores, so every block is computed
        rows, columns = (-(-one.shape[2] // _FLEX_BLOCK) for one in (query, key))
        blocks = torch.full((rows,), columns, dtype=torch.int32, device=query.device)
    else:
        blocks, whole = block_mask.kv_num_blocks, block_mask.full_kv_num_blocks
    output, sums = _Flex.apply(query, key, value, blocks, whole)
    if return_lse:
        return output, sums
    return output if return_aux is None else (output, SimpleNamespace(lse=sums))


def _fails(_: object, error: Exception) -> None:
    """Take the place of a fall-back: what fails on fakes is a mistake, and no lack of a compiler."""
    raise error


class _InPlace:
    """A Triton kernel that works on a tile in place, and allocates nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *_, **__: None


def replace_paged() -> None:
    """Make the paged optimizers of bitsandbytes keep their states in tensors of the GPU.

    On a GPU they lie in memory that both sides see, and leave the GPU's only where room is lacking.
    """
    from bitsandbytes import functional

    def paged(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    replace(functional, "get_paged", paged)
    replace(functional, "fill", lambda tensor, value: tensor.fill_(value))


@cache
def replace_compiled() -> "torch.library.Library":
    """Replace kernels that are compiled on the machine: FlexAttention's and Triton's, for the whole process.

    Returns what must stay alive.

    FlexAttention is one kernel in a compiled block, too; for what else `torch.compile` gets there
    is `inductor`.
    """
    import torch.nn.attention.flex_attention as flex
    import transformers.integrations.flex_attention as transformers_flex
    import trl.kernels.chunked_logprob as chunked

    from llama_peft.prefix_tree import varlen
    from llama_peft.system.compiling.counted import Counted

    replace(Counted, "_refuse", _fails)
    replace(varlen, "_refuse", lambda error: _fails(None, error))
    for module in (flex, transformers_flex):
        replace(module, "flex_attention", _flex_attention)
    inductor.replace_compiler()
    replace(chunked, "_TRITON_AVAILABLE", True)
    for name in ("_forward_kernel", "_backward_kernel"):
        replace(chunked, name, _InPlace())
    chunked.triton = SimpleNamespace(cdiv=lambda one, other: -(-one // other))
    return _define_flex()
