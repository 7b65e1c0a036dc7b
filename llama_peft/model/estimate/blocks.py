"""What the blocks of a model hold for one batch: kept for the backward pass, or for a moment.

The tensors are counted one by one as the libraries make them, in bytes for each token. Autograd
keeps, in the compute type: gate, up, their activation and their product (the input of an adapted
down_proj), the rotated queries, keys, values and the attention's output, the normed inputs of
adapted layers, and r numbers of each adapter. The norms' inputs are kept in float32. A compiled
block keeps neither these nor the activation of gate: its backward pass makes them again from what
they were made of. A test compares the sums with what a rehearsal and a CPU hold.
"""

from typing import NamedTuple

from llama_peft.model import counts
from llama_peft.model.counts import TextConfig
from llama_peft.model.estimate.batch import Batch, trains_trees, uses_varlen
from llama_peft.recipe import Recipe
from llama_peft.system.memory import TreeKernel

QUERIES = 128
"""`block_attention.QUERIES`, which cannot be imported without torch; a test compares the two."""
MOST = 8
"""`varlen.MOST`, likewise."""
_SHARED_INPUT = {"gate_proj": "up", "up_proj": "up", "q_proj": "q", "k_proj": "q", "v_proj": "q"}
"""Layers that read the same tensor."""
TILE = 32_768, 4_096
"""Columns and positions of a tile of logits in trl's fused loss (`kernels.chunked_logprob`)."""


class Device(NamedTuple):
    """What decides which kernels run."""

    kind: str
    """cuda or cpu."""
    size: int
    """Bytes of a number of the compute type."""
    flash: bool = True
    """Whether attention without a mask keeps keys that are not repeated. GPUs before 8.0 cannot."""
    kernel: TreeKernel | None = None
    """Which one computes tree rows."""


class Blocks:
    """The tensors of a batch in the blocks of a base with a recipe's adapters."""

    def __init__(self, recipe: Recipe, c: TextConfig, device: Device) -> None:
        self.recipe, self.c, self.device = recipe, c, device
        shapes = counts.linear_shapes(c)
        self.shapes = {name.rsplit(".", 1)[1]: shape for name, shape in shapes.items()}
        self.queries, self.keys = self.shapes["q_proj"][1], self.shapes["k_proj"][1]
        lora = recipe.lora
        adapted = {
            name.rsplit(".", 1)[1]: shape
            for name, shape in shapes.items()
            if lora is not None and counts.matches(name, lora.target_modules)
        }
        self.adapted = {name: inputs for name, (inputs, _) in adapted.items()}
        self.dora = adapted.values() if lora is not None and lora.use_dora else ()
        """Inputs and outputs of the layers whose magnitude is trained alone."""

    @property
    def deep(self) -> int:
        """Return how many blocks gradients pass: all from the lowest one with an adapter."""
        lora, count = self.recipe.lora, self.c.num_hidden_layers
        if lora is None:
            return 0
        chosen = lora.layers_to_transform
        lower = lora.modules_to_save or lora.trainable_token_indices or chosen in (None, [])
        first = chosen if isinstance(chosen, int) else min(chosen or [0])
        return count if lower else max(count - first, 0)

    @property
    def is_eager(self) -> bool:
        default = "eager" if self.c.model_type == "gemma2" else "sdpa"
        return (self.recipe.model.attn_implementation or default) == "eager"

    @property
    def on_gpu(self) -> bool:
        return self.device.kind == "cuda"

    @property
    def is_compiled(self) -> bool:
        """Return whether the blocks are compiled for a GPU. On a CPU this changes less."""
        asked = self.recipe.train.torch_compile and not self.recipe.on_states
        return asked and self.on_gpu

    def kept(self, batch: Batch) -> list[int]:
        """Return the bytes that a token has in each tensor that one block keeps."""
        c, size = self.c, self.device.size
        factors, wide = (2, size) if self.is_compiled else (3, 4)
        norms = dict.fromkeys(c.family.norms, c.hidden_size)
        norms |= dict(zip(c.family.head_norms, (self.queries, self.keys), strict=False))
        lora = self.recipe.lora
        whole = tuple(lora.modules_to_save or ()) if lora is not None else ()
        trained = [width for norm, width in norms.items() if norm.endswith(whole)]
        return [
            *[size * c.intermediate_size] * factors,
            size * self.queries,  # the attention's output
            *(
                wide * width for width in (*norms.values(), *trained)
            ),  # what a trained one multiplies
            *(self._attention(batch) if self.on_gpu else self._attention_on_cpu(batch)),
            self._scores(batch),
            *self._adapters(),
        ]

    def _attention(self, batch: Batch) -> list[int]:
        """Return the bytes of queries, keys and values, and of what the kernel keeps beside them.

        A kernel that takes a mask takes no groups of heads, so keys and values are repeated. The
        library's mask has booleans, of which sdpa makes numbers in every layer.
        """
        size, heads = self.device.size, self.c.num_attention_heads
        if self.is_eager:
            return [size * self.queries] * 3
        if self.is_plain(batch):
            return [4 * self.queries] * 3 + [4 * heads * batch.width]
        sums, one_head = 4 * heads, self.c.num_key_value_heads == 1  # to repeat it copies nothing
        grouped = batch.mask == "none" and self.device.flash
        numbers = size * batch.width if batch.mask == "padding" else 0
        if self.is_varlen(batch):
            gathered = size * self.keys * batch.keys // batch.tokens
            return [size * self.queries, gathered, gathered, sums]
        if grouped or one_head or self.is_flexible(batch):
            return [size * self.queries, *[size * self.keys] * 2, sums, numbers]
        return [size * self.queries] * 3 + [sums, numbers]

    def is_flexible(self, batch: Batch) -> bool:
        """Return whether FlexAttention computes a batch: without a mask, and without repeated keys."""
        asked = self.recipe.model.attn_implementation
        trees = batch.mask == "tree" and self.device.kernel == "flex" and trains_trees(self.recipe)
        default = asked is None and trees and not self.is_eager
        return asked == "flex_attention" or default

    def is_varlen(self, batch: Batch) -> bool:
        """Return whether varlen attention computes a batch: without a mask, on gathered keys."""
        trees = batch.mask == "tree" and uses_varlen(self.recipe, self.device.kernel)
        able = self.on_gpu and self.device.size == 2 and not self.is_eager
        return trees and able and 0 < batch.keys <= MOST * batch.tokens

    def is_plain(self, batch: Batch) -> bool:
        """Return whether attention is plain matrix products in float32 that keep every weight.

        That is what torch has for groups of heads on a GPU without flash attention.
        """
        groups = self.queries > self.keys and not self.device.flash
        return self.on_gpu and groups and batch.mask == "none" and not self.is_eager

    def _attention_on_cpu(self, batch: Batch) -> list[int]:
        """Return the bytes of queries, keys and values, and of the mask that sdpa keeps beside them.

        In a prefix tree each block of queries has its own copy of the keys before it, half of the
        row on average, and its own output.
        """
        size, queries = self.device.size, self.device.size * self.queries
        if self.is_eager:
            return [queries, *[size * self.keys] * 2]
        if batch.mask != "tree":
            return [queries] * 3 + [size * batch.width]
        blocks = -(-batch.width // QUERIES)
        seen = QUERIES * (blocks + 1) // 2
        return [queries, queries, *[queries * seen // batch.width] * (2 * blocks), size * seen]

    def _adapters(self) -> list[int]:
        """Return the bytes that a token has in each tensor that the adapters of one block add.

        Layers that share an input keep it once. Dropout makes a copy for each, with a mask of
        bytes on a GPU and of numbers on a CPU. So does a cast of 16 bits on a CPU, to float32:
        autocast, which spares it, runs on a GPU only.
        """
        lora, size = self.recipe.lora, self.device.size
        if lora is None:
            return []
        dropped, widened = lora.lora_dropout > 0, size == 2 and not self.on_gpu
        wide = 4 if widened else size
        if dropped or widened:
            read = list(self.adapted.values())
        else:  # the attention's output is counted already
            once = {_SHARED_INPUT.get(name, name): width for name, width in self.adapted.items()}
            read = [width for name, width in once.items() if name != "o_proj"]
        masks = [width * (1 if self.on_gpu else 4) for width in self.adapted.values()]
        ranks = [wide * lora.r] * len(self.adapted)
        # The magnitude's gradient needs what the base and the adapter gave.
        scaled = [2 * size * outputs for _, outputs in self.dora]
        return [*(wide * width for width in read), *(masks if dropped else ()), *ranks, *scaled]

    def scaled(self, batch: Batch) -> int:
        """Return what DoRA's products with magnitudes take: three of the widest, in float32."""
        return 3 * 4 * self.c.intermediate_size * batch.tokens

    def norms_of_weights(self) -> int:
        """Return what DoRA takes to find the norms of a layer's weights, whatever the batch is.

        PEFT multiplies the adapter with the identity matrix of all inputs, in float32 and then in
        the compute type, which is kept until the weights and their sum with the adapter are there.
        """
        size, most = self.device.size, 0
        for inputs, outputs in self.dora:
            identity, wide = inputs**2, 4 if size == 2 else 0
            sums = (4 * size + 4) * inputs * outputs
            most = max(most, size * identity + max(wide * identity, sums))
        return most

    def _scores(self, batch: Batch) -> int:
        """Return the bytes of a token's attention weights before and after their softmax.

        Only eager attention keeps them: (heads, T) for each token.
        """
        heads = self.c.num_attention_heads * batch.width
        return 2 * 4 * heads if self.is_eager else 0

    def masks(self, batch: Batch) -> int:
        """Return the bytes of the masks that all layers share, on a GPU."""
        if not self.on_gpu or batch.mask == "none" or self.is_flexible(batch):
            return 0
        if self.is_varlen(batch):
            return 8 * batch.keys  # their indices
        kinds = 2 if self.c.model_type in ("gemma2", "gemma3_text") else 1
        size = self.device.size if batch.mask == "tree" else 1
        return kinds * size * batch.rows * batch.width**2

    # What a pass holds for a moment, on a GPU

    def backward(self, batch: Batch) -> int:
        """Return what the backward pass of a block takes beside what was kept, at its most.

        That is in the MLP, whose product with up is the widest: down_proj's weight is unpacked
        while the product's gradient is made, or later that gradient becomes those of both factors.
        Gemma's blocks end in a norm. Beside these are gradients of the block's output. One kernel
        of a compiled block reads that product's gradient as two parts, of down_proj and of its
        adapter, and writes those of both factors.
        """
        size, tokens, inner = self.device.size, batch.tokens, self.c.intermediate_size
        unpacked = size * inner * self.c.hidden_size if self.is_packed else 0
        widest = size * inner * tokens
        norm = self.final_norm(batch) if len(self.c.family.norms) > 2 else 0
        scores = self._weights(batch) - 4 * widest  # of the MLP, nothing is left by then
        varlen = self._varlen(batch) - (3 + ("down_proj" in self.adapted)) * widest
        most = max(unpacked + widest, 2 * widest, norm, scores, varlen)
        if self.is_compiled:
            most = max(3 * widest + max(widest, unpacked), norm, scores, varlen)
            return most + 8 * size * self.c.hidden_size * tokens
        return most + 2 * size * self.c.hidden_size * tokens

    def final_norm(self, batch: Batch) -> int:
        """Return what the backward pass of a norm takes: five tensors in float32."""
        return 5 * 4 * self.c.hidden_size * batch.tokens

    def forward(self, batch: Batch) -> int:
        """Return what a forward pass without gradients holds at its most: in an MLP.

        Activation and up are there, and their product or an unpacked weight; an adapter adds its
        own output, before and after it is scaled. The residual, its norm and casts are beside them.
        A compiled block multiplies activation and up in the place of one of them.
        """
        size, tokens, inner = self.device.size, batch.tokens, self.c.intermediate_size
        widest = size * inner * tokens
        unpacked = size * inner * self.c.hidden_size if self.is_packed else 0
        lora = 4 * widest if self.adapted else 0
        hidden = 4 * size * self.c.hidden_size * tokens
        attention = 0
        if self.is_plain(batch):  # queries, keys, values, and the scaled keys, in float32
            attention = self._weights(batch) + (4 * 4 + size) * self.queries * tokens
        dora = 0
        if self.dora:
            dora = max(self.norms_of_weights() + 2 * widest, 4 * widest + self.scaled(batch))
        factors = (2 if self.is_compiled else 3) * widest
        most = max(factors, 2 * widest + unpacked, lora, attention, dora)
        return most + hidden + self.masks(batch)

    def _weights(self, batch: Batch) -> int:
        """Return the attention weights of plain products and their scores, in float32."""
        each = 4 * self.c.num_attention_heads * batch.width
        return 2 * each * batch.tokens if self.is_plain(batch) else 0

    def _varlen(self, batch: Batch) -> int:
        """Return what the derivative of varlen attention takes.

        The kernel has sums of the queries in float32, with 128 more for each sequence, and what it
        gathered once more, repeated for groups of heads. Beside it are the gradients of all it got.
        """
        if not self.is_varlen(batch):
            return 0
        size, heads = self.device.size, self.c.num_attention_heads
        sums = 4 * (self.queries + heads) * (batch.tokens + 128 * batch.sequences)
        repeated = 2 * size * self.queries * batch.keys if self.queries > self.keys else 0
        gradients = 2 * size * (self.keys * batch.keys + self.queries * batch.tokens)
        return sums + repeated + gradients

    @property
    def is_packed(self) -> bool:
        quantization = self.recipe.quantization
        return quantization.load_in_4bit or quantization.load_in_8bit

    def loss(self, batch: Batch) -> int:
        """Return what trl's fused loss takes: a tile of logits, and the states' gradient in float32.

        The tile has all its columns, however small the vocabulary is.
        """
        lora = self.recipe.lora
        if lora is not None and lora.trainable_token_indices is not None:
            # All logits at once, and a copy of the embedding with the trained tokens in it; then the
            # gradient of the logits, and that of the copy.
            copy = self.device.size * self.c.hidden_size
            return self.c.vocab_size * max(12 * batch.labels + copy, 4 * batch.labels + 2 * copy)
        columns, positions = TILE
        tile = self.device.size * min(batch.labels, positions) * columns
        return tile + 2 * 4 * batch.labels * self.c.hidden_size
