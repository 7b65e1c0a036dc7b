"""The blocks of a base, compiled: what stands between two matrix products becomes one kernel.

Only blocks are compiled, never the model: the embedding, the head, the loss, the hooks that turn
`subtree_end` into masks and the wrappers around a model stay as they are, and so do the names of
the weights. All blocks run one compiled function, because their weights are its inputs. A batch
that fills a cache of keys, as decoding does, takes the plain way, and so does all that follows a
failure of the compiler.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from llama_peft.system.compiling.counted import Backend, Counted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

MOST = 16
"""Compilations in a run. The first block's input needs no gradient, and validation keeps nothing: with a
mask that makes 3, and 5 by varlen attention on Gemma's two kinds of layers. A run may need both, and
a row alone is compiled for apart from several. No length is."""
_OTHERWISE = (
    "train.torch_compile: the blocks of this base do not compile here (%s): they are computed as "
    "they are, which gives the same numbers"
)


def compile_blocks(base: "PreTrainedModel", backend: Backend = "inductor") -> Counted["Tensor"]:
    """Make the blocks of a base run compiled, and return the function that all of them run.

    base: the model without PEFT's wrapper, to whose layers an adapter may be added already.
    backend: the compiler of torch.compile, by name or as a function.
    """
    import torch._dynamo

    # Scales and epsilons are numbers of the code, and DDP's buckets are no reason to cut a block.
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.optimize_ddp = False
    # Small kernels that need nothing of one another, as the casts of adapters, become one.
    one = Counted(_forward, MOST, _OTHERWISE, backend, combo_kernels=True)
    for block in _blocks(base):
        block.forward = partial(_run, one, block)
    return one


@contextmanager
def as_they_are(base: "PreTrainedModel") -> Iterator[None]:
    """Compute the blocks of a base as they are meanwhile, compiled or not."""
    compiled = {
        block: block.forward
        for block in _blocks(base)
        if isinstance(block.forward, partial) and block.forward.func is _run
    }
    for block in compiled:
        del block.forward  # what is left is that of its class
    try:
        yield
    finally:
        for block, forward in compiled.items():
            block.forward = forward


def _blocks(base: "PreTrainedModel") -> "list[GradientCheckpointingLayer]":
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = base.get_decoder().modules()
    return [one for one in modules if isinstance(one, GradientCheckpointingLayer)]


def _forward(block: "GradientCheckpointingLayer", *args: object, **kwargs: object) -> "Tensor":
    """Run the forward of a block's class, without its checkpointing around it."""
    found: Tensor = type(block).forward.__wrapped__(block, *args, **kwargs)
    return found


def _run(
    one: Counted["Tensor"],
    block: "GradientCheckpointingLayer",
    *args: object,
    **kwargs: object,
) -> "Tensor":
    if kwargs.get("past_key_values") is not None:
        found: Tensor = type(block).forward(block, *args, **kwargs)
        return found
    if block.gradient_checkpointing and block.training:
        found = block._gradient_checkpointing_func(_Pass(one, block, kwargs), *args)
        return found
    return _Pass(one, block, kwargs)(*args)


class _Pass:
    """A pass through a block. Made again by checkpointing, it goes the way that it went before."""

    def __init__(
        self,
        one: Counted["Tensor"],
        block: "GradientCheckpointingLayer",
        kwargs: dict[str, object],
    ) -> None:
        self._one, self._block, self._kwargs = one, block, kwargs
        # Blocks of keys are as many as a row is long, and each number would be compiled for.
        self._whole = {key: value for key, value in kwargs.items() if key != "key_blocks"}
        self._is_compiled: bool | None = None

    def __call__(self, *args: object) -> "Tensor":
        if self._is_compiled:
            return self._one.again(self._block, *args, **self._whole)
        if self._is_compiled is None:
            found = self._one.compiled(self._block, *args, **self._whole)
            self._is_compiled = found is not None
            if found is not None:
                return found
        return _forward(self._block, *args, **self._kwargs)
