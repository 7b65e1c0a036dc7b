"""Attention over tree rows by torch's flash kernel for sequences of any length.

The sequences are those of `segments.py`, and their keys are gathered: those of one example per row,
5.8 times the tokens of SQuAD's rows, while every token is a query once.

FlexAttention, which computes fewer blocks, is the kernel where it compiles. This one needs no
compiler. It computes 16 bits on NVIDIA's GPUs from 8.0 on, and half of the blocks of a dense mask
for SQuAD's rows. If it fails, one line says so, and sdpa with the mask of `mask.py` takes its
place. On a CPU the same sequences are computed one by one: that is the plain twin.
"""

import inspect
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen as of_torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llama_peft.errors import UserError
from llama_peft.prefix_tree.segments import Segments, on_device, segments
from llama_peft.system.memory import is_out_of_memory

log = logging.getLogger(__name__)

NAME = "varlen"
"""Also the value of model.attn_implementation that asks for it."""
MOST = 8
"""Keys for each token, above which a batch gets a dense mask: many branches on a long prefix.

In rows of 1,024 tokens more of them make more blocks of 128 queries and keys than the whole row has.
They also take more room than keys that sdpa repeats for groups of up to 8 heads.
"""
_WIDEST = 256
"""Numbers of a head that the kernel takes, in steps of 8."""
_TRIED = 24
"""Tokens of the first call, which shows whether the kernel runs here."""


def _groups(function: Callable[..., object]) -> dict[str, bool]:
    """Return what tells torch that there are fewer heads of keys: nothing did before 2.12."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(function).parameters else {}


_GROUPS = _groups(of_torch.varlen_attn)

# Shapes: B rows of W tokens, Q tokens in all rows, K keys of all sequences, H heads, D head size.


def serves(config: PreTrainedConfig, found: Segments, tokens: int) -> bool:
    """Return whether models of a config compute a batch of so many tokens this way."""
    return config._attn_implementation == NAME and len(found["keys"]) <= MOST * tokens


def attention(
    module: torch.nn.Module,
    query_BHWD: Tensor,
    key_BHWD: Tensor,
    value_BHWD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return the output (B, W, H, D) of the kernel, and of sdpa if a batch brings no segments.

    The signature is the one that transformers asks of an attention function. sliding_window: how
    many keys a query of this layer sees, itself included, as the library gives it to flash kernels.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query_BHWD, key_BHWD, value_BHWD, attention_mask, scaling=scaling, **kwargs
        )
    rows, _, width, size = query_BHWD.shape
    query_QHD, key_QHD, value_QHD = (
        one.transpose(1, 2).flatten(0, 1) for one in (query_BHWD, key_BHWD, value_BHWD)
    )
    compute = _one_by_one if query_QHD.device.type == "cpu" else _kernel
    output_QHD = compute(
        query_QHD,
        _gathered(key_QHD, segments["keys"]),
        _gathered(value_QHD, segments["keys"]),
        segments,
        scaling or size**-0.5,
        sliding_window,
    )
    return output_QHD.unflatten(0, (rows, width)), None


def _gathered(given_QHD: Tensor, index_K: Tensor) -> Tensor:
    """Return (K, H, D).

    An embedding's derivative adds up in float32 and in one order. That of an index would add to
    16 bits, in an order that changes from run to run.
    """
    return functional.embedding(index_K, given_QHD.flatten(1)).unflatten(1, given_QHD.shape[1:])


def _kernel(
    query_QHD: Tensor,
    key_KHD: Tensor,
    value_KHD: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
) -> Tensor:
    output: Tensor = of_torch.varlen_attn(
        query_QHD,
        key_KHD,
        value_KHD,
        segments["query_starts"],
        segments["key_starts"],
        segments["most_queries"],
        segments["most_keys"],
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),  # keys before its own that one sees
        **_GROUPS,
    )
    return output


def _one_by_one(
    query_QHD: Tensor,
    key_KHD: Tensor,
    value_KHD: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
) -> Tensor:
    """Return what `_kernel` does, from sdpa of one sequence after the other."""
    queries = segments["query_starts"].diff().tolist()
    keys = segments["key_starts"].diff().tolist()
    outputs = []
    for count, width, query, key, value in zip(
        queries,
        keys,
        query_QHD.split(queries),
        key_KHD.split(keys),
        value_KHD.split(keys),
        strict=True,
    ):
        before = torch.arange(width - count, width)[:, None] - torch.arange(width)
        seen = (before >= 0) & (before < (window or width))
        output = functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=seen,
            scale=scale,
            enable_gqa=True,
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def use(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, asked: bool = False
) -> None:
    """Make models of a config compute tree rows by the kernel, if it runs here.

    dtype: that of the queries. asked: whether the recipe names it. Raises UserError if it does, and
    the kernel can never compute this base.
    """
    if trouble := _trouble(config, dtype):
        if asked:
            raise UserError(
                f"model.attn_implementation: varlen does not compute this base, because {trouble}: "
                "remove it"
            )
        return
    if _runs(config, device, dtype):
        register(config)


def register(config: PreTrainedConfig) -> None:
    """Make models of a config take segments. Other batches go to sdpa."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME


def _trouble(config: PreTrainedConfig, dtype: torch.dtype) -> str | None:
    """Return what the kernel has not, and this base needs."""
    size = _head_size(config)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its scores are capped (attn_logit_softcapping)"
    if config._attn_implementation != "sdpa":
        return f"the library computes its attention by {config._attn_implementation}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in {str(dtype).removeprefix('torch.')}, and the kernel in 16 bits"
    if size % 8 or size > _WIDEST:
        return f"its heads have {size} numbers"
    if getattr(config, "attention_dropout", 0.0):
        return "it drops weights of attention (attention_dropout)"
    return None


def _head_size(config: PreTrainedConfig) -> int:
    found = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(found)


def _runs(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernel computes one row here, forward and backward."""
    end = torch.full((1, _TRIED), _TRIED)
    found = on_device(segments(end, torch.ones_like(end)), device)
    heads, size = config.num_attention_heads, _head_size(config)
    query, key = (
        torch.zeros(_TRIED, count, size, dtype=dtype, device=device, requires_grad=True)
        for count in (heads, config.num_key_value_heads)
    )
    window = getattr(config, "sliding_window", None)
    try:
        _kernel(query, key, key, found, size**-0.5, window).sum().backward()
    except Exception as error:  # libraries raise whatever they like
        if is_out_of_memory(error):
            raise
        _refuse(error)
        return False
    return True


def _refuse(error: Exception) -> None:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    log.warning(
        "varlen attention does not run here (%s): tree rows are computed by sdpa with a mask, which "
        "takes longer",
        lines[0] if lines else type(error).__name__,
    )
