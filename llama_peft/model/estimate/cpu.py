"""What a step takes on a CPU, where the whole process is counted, as the system sees it.

That is the libraries, the file of the base while it is read, and the holes that the C library's
heap keeps. A test compares the sum with the peak of a real training.
"""

from llama_peft.model.estimate.batch import Batch
from llama_peft.model.estimate.blocks import Blocks

OWN_PLACE = 32 * 2**20
"""From this size on, glibc gives a tensor pages of its own and returns them (mallopt(3)).

Smaller ones lie on the heap, where a place that is too small for the next tensor stays empty.
"""


def tensors(blocks: Blocks, batch: Batch, states: bool) -> list[int]:
    """Return the bytes that a token has in each tensor that is kept.

    states: whether the base only computes the states of a head alone.
    """
    count, hidden = blocks.c.num_hidden_layers, blocks.c.hidden_size
    last, inputs = [4 * hidden], [hidden * blocks.device.size] * count
    if states and blocks.recipe.head.layer == "auto":
        return [*blocks.kept(batch), *inputs, *last]
    if blocks.recipe.lora is None:
        return [*blocks.kept(batch), *last]
    if blocks.recipe.train.activation_checkpointing:
        return [*inputs, *blocks.kept(batch), *last]
    return [*(blocks.deep * blocks.kept(batch)), *last]


def kept(blocks: Blocks, batch: Batch, states: bool) -> int:
    """Return the bytes of a batch that autograd keeps, or those of one block if it keeps none."""
    return batch.tokens * sum(tensors(blocks, batch, states))


def holes(blocks: Blocks, batch: Batch, states: bool) -> int:
    """Return the bytes of the heap that stay empty between its tensors.

    A forward pass frees tensors between those that it keeps, and the next one finds these places
    too small: the heap grows to twice what is kept, and is not given back.
    """
    each = tensors(blocks, batch, states)
    return batch.tokens * sum(one for one in each if one * batch.tokens < OWN_PLACE)


def logits(blocks: Blocks, batch: Batch) -> int:
    """Return the bytes of the answers' logits in float32, their softmax and their gradient."""
    return 12 * blocks.c.vocab_size * batch.labels


def validation(blocks: Blocks, batch: Batch) -> int:
    """Return the bytes of a batch without a backward pass."""
    one_block = sum(blocks.kept(batch)) + 4 * blocks.c.hidden_size
    return batch.tokens * one_block + logits(blocks, batch)
