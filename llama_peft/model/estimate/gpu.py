"""What a step takes on a GPU: torch's allocator gives each tensor its size, and no more."""

from llama_peft.model.counts import Counts
from llama_peft.model.estimate.batch import Batch
from llama_peft.model.estimate.blocks import Blocks


class GpuStep:
    """A training step or a validation, as the bytes that are live at its highest point."""

    def __init__(self, blocks: Blocks, counted: Counts) -> None:
        self.blocks, self.counted = blocks, counted
        half = blocks.device.size == 2
        self.casts = 2 * counted.adapter if half else 0
        """Autocast keeps its copies of the adapters until the end of a forward pass."""

    def kept(self, batch: Batch) -> int:
        """Return what the forward pass keeps.

        The first norm's input needs no gradient, and the last norm's takes its place. Blocks below the
        lowest adapter keep nothing.
        """
        c, blocks, tokens = self.blocks.c, self.blocks, batch.tokens
        if not self.trains_blocks:
            return self._states(batch)
        if blocks.recipe.train.activation_checkpointing:
            inputs = c.num_hidden_layers * blocks.device.size * c.hidden_size * tokens
            return inputs + 4 * c.hidden_size * tokens + self._states(batch) + blocks.masks(batch)
        every = blocks.deep * tokens * sum(blocks.kept(batch))
        return every + self.casts + self._states(batch) + blocks.masks(batch)

    @property
    def trains_blocks(self) -> bool:
        return self.blocks.recipe.lora is not None

    def passing(self, batch: Batch) -> int:
        """Return what a step takes beside what was kept, at its most.

        The backward pass begins with the loss and the last norm, when nothing is freed yet, and
        goes on in the last block; with checkpointing, all that this block keeps is made again.
        """
        blocks, c = self.blocks, self.blocks.c
        if not self.trains_blocks:
            return max(0, blocks.forward(batch) - self.kept(batch))
        last = blocks.backward(batch) - 4 * c.hidden_size * batch.tokens
        if blocks.dora:
            # With checkpointing, gradients of the block's output are there while it is made again.
            sides = 2 if blocks.recipe.train.activation_checkpointing else 1
            states = sides * 4 * blocks.device.size * c.hidden_size * batch.tokens
            last = max(last, blocks.norms_of_weights() + states, blocks.scaled(batch))
        if blocks.recipe.train.activation_checkpointing:
            casts = self.casts // c.num_hidden_layers
            last += batch.tokens * sum(blocks.kept(batch)) + casts - self._states(batch)
        forward = self.validation(batch) - blocks.masks(batch)
        begin = max(blocks.final_norm(batch), blocks.loss(batch))
        if blocks.recipe.train.activation_checkpointing:
            return max(begin, last)
        return max(begin, last, forward - self.kept(batch))

    def whole(self, batch: Batch) -> int:
        """Return what a training step takes."""
        return self.kept(batch) + self.passing(batch)

    def validation(self, batch: Batch) -> int:
        """Return what a forward pass without gradients takes."""
        blocks = self.blocks
        seen = blocks.forward(batch) + self.casts
        return max(seen, self._states(batch) + blocks.loss(batch))

    def update(self) -> int:
        """Return what the optimizer takes for a moment: the gradients, and its own results twice.

        torch's AdamW, which is one kernel on a GPU, has no such results.
        """
        recipe = self.blocks.recipe
        whole = recipe.lora is not None and "lm_head" in (recipe.lora.modules_to_save or ())
        one_kernel = recipe.train.optim.startswith("adamw_torch") and not whole
        return (1 if one_kernel else 3) * 4 * self.counted.trainable

    def _states(self, batch: Batch) -> int:
        """Return the last states as float32, of which a span head reads every one."""
        every = self.blocks.recipe.kind.finds_spans
        return 4 * self.blocks.c.hidden_size * batch.tokens if every else 0
