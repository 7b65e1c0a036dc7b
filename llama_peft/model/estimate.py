"""What a run will take, from the recipe and the base's config alone: memory, disk and download.

Activations are what autograd keeps for the backward pass, counted tensor by tensor as the family's
block makes them; a test compares the formula with what a real model keeps. The rest is arithmetic
on exact parameter counts. Batches are taken as full, so that every row is `max_length` tokens long:
a run takes less than this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from llama_peft.model import counts
from llama_peft.model.counts import Counts, TextConfig
from llama_peft.recipe import Recipe

PACKED = {"4bit": 0.516, "8bit": 1.002}
"""Bytes of a packed weight with its constants.

4-bit blocks have 64 weights, and their scales are packed to 8 bits again.
"""
OPTIMIZER = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 1}
"""Bytes of state for each trained weight; any other optimizer has Adam's two float32 moments."""
LABELS = 0.25
"""Share of a row's tokens that the LM head is applied to, the answers. In SQuAD it is a fifth."""
FEATURE_ROW = 1024
LIBRARIES = {"cpu": 800_000_000, "cuda": 600_000_000}
"""The interpreter with torch, transformers and trl; on a GPU, CUDA's context and kernels."""
_OF_BATCHES = ("activations", "logits", "validation")
_SHARED_INPUT = {"gate_proj": "up", "up_proj": "up", "q_proj": "q", "k_proj": "q", "v_proj": "q"}
"""Layers that read the same tensor."""


class Term(NamedTuple):
    """A part of a sum, and how it is computed."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The terms of one run."""

    memory: tuple[Term, ...]
    smallest: int
    """The memory that the run needs if every batch is split down to one row."""
    disk: tuple[Term, ...]
    download: int

    @property
    def memory_total(self) -> int:
        return sum(term.bytes for term in self.memory)

    @property
    def disk_total(self) -> int:
        return sum(term.bytes for term in self.disk)


def estimate(recipe: Recipe, config: Mapping[str, object], dtype: str, device: str) -> Estimate:
    """Return the terms of training a recipe on a base with this config.json.

    dtype: of the weights that are not packed, for example "bfloat16".
    device: "cuda" or "cpu".
    Raises counts.UncountedFamily and counts.BadConfig.
    """
    whole = counts.text_config(config)
    c = counts.cut(whole, recipe.head.layer)
    counted = counts.count_text(
        c, recipe.kind.name, len(recipe.dataset.labels or "ab"), recipe.lora
    )
    size = 4 if dtype == "float32" else 2
    kept = Activations(recipe, c, size, device)
    memory = (
        *_weights_memory(recipe, counted, size),
        *_batch_memory(recipe, kept),
        *_other_memory(recipe, c, size, device),
    )
    fixed = sum(term.bytes for term in memory if term.name not in _OF_BATCHES)
    return Estimate(
        memory=memory,
        smallest=fixed + kept.bytes(1) + kept.logits(1),
        disk=_disk(recipe, counted),
        download=2 * counts.count_text(whole).base,
    )


def _weights_memory(recipe: Recipe, counted: Counts, size: int) -> tuple[Term, ...]:
    """Return what the weights take, and what learning adds to each trained one."""
    packed = _bytes_packed(recipe)
    frozen = counted.backbone if counted.head else counted.base
    if packed:
        frozen -= counted.quantized
    weights = round(counted.quantized * packed) + frozen * size
    split = f"{counted.quantized:,} packed at {packed} bytes, {frozen:,} at {size}"
    trained, state = counted.trainable, _optimizer_state(recipe)
    each = f"{state} bytes for each trained weight ({recipe.train.optim})"
    return (
        Term("weights", weights, split if packed else f"{frozen:,} at {size} bytes"),
        Term("trained weights", 4 * trained, f"{trained:,} in float32"),
        Term("gradients", 4 * trained, "the same number, in float32"),
        Term("optimizer", state * trained, each),
    )


def _batch_memory(recipe: Recipe, kept: "Activations") -> tuple[Term, ...]:
    """Return the terms that grow with the rows of a batch."""
    length, rows = recipe.train.max_length, recipe.train.per_device_train_batch_size
    validated = recipe.train.validation_batch_size
    step = kept.bytes(rows) + kept.logits(rows)
    return (
        Term("activations", kept.bytes(rows), f"{kept.why}; {rows} x {length} tokens"),
        Term("logits", kept.logits(rows), kept.logits_why),
        Term(
            "validation",
            max(0, kept.validation(validated) - step),
            f"what a batch of {validated} x {length} tokens takes more than a training step",
        ),
    )


def _other_memory(recipe: Recipe, c: TextConfig, size: int, device: str) -> tuple[Term, ...]:
    largest = max(i * o for i, o in counts.linear_shapes(c).values())
    return (
        Term(
            "dequantised layer",
            2 * size * largest if _bytes_packed(recipe) else 0,
            "the largest linear layer unpacked, forward and backward",
        ),
        Term("libraries", LIBRARIES[device], "Python, torch and its kernels"),
    )


def _disk(recipe: Recipe, counted: Counts) -> tuple[Term, ...]:
    checkpoint = (4 + _optimizer_state(recipe)) * counted.trainable
    held = recipe.train.save_total_limit + 2
    return (
        Term(
            "checkpoints",
            held * checkpoint,
            f"{held} of {checkpoint:,} bytes: those that are kept, the best and a new one",
        ),
        Term("export", 4 * counted.trainable, "adapter and head"),
    )


def _optimizer_state(recipe: Recipe) -> int:
    return OPTIMIZER.get(recipe.train.optim, 8)


def _bytes_packed(recipe: Recipe) -> float:
    """Return the bytes of a packed weight; 0 if nothing is packed."""
    if recipe.quantization.load_in_4bit:
        return PACKED["4bit"]
    return PACKED["8bit"] if recipe.quantization.load_in_8bit else 0.0


class Activations:
    """What autograd keeps of a batch.

    For each token in each block it keeps, in the compute type: gate, up and their activation (3 I),
    queries, keys, values and the attention's output (2 Q + 2 K), the inputs of the adapted layers,
    and r numbers of each adapter. It keeps the norms' inputs in float32. Layers that share an input
    keep it once, but autocast and dropout make a copy for each.
    """

    def __init__(self, recipe: Recipe, c: TextConfig, size: int, device: str) -> None:
        self.recipe, self.c, self.size, self.device = recipe, c, size, device
        cached = recipe.kind.caches_features and recipe.head.features != "none"
        self.frozen = recipe.lora is None
        self.on_features = self.frozen and cached

    @property
    def why(self) -> str:
        if self.on_features:
            return f"those of one block: states are computed once, in rows of {FEATURE_ROW} tokens"
        if self.frozen:
            return "those of one block: a frozen backbone keeps none"
        if self.recipe.train.activation_checkpointing:
            return "the input of each block, and those of one block"
        return "all that the backward pass reads; train.activation_checkpointing keeps far less"

    def bytes(self, rows: int) -> int:
        """Return the bytes of `rows` full rows."""
        tokens = FEATURE_ROW if self.on_features else rows * self.recipe.train.max_length
        blocks, hidden = self.c.num_hidden_layers, self.c.hidden_size
        last = 4 * hidden
        if self.frozen:
            return tokens * (self.a_token() + last)
        if self.recipe.train.activation_checkpointing:
            return tokens * (blocks * hidden * self.size + self.a_token() + last)
        return tokens * (blocks * self.a_token() + last)

    def validation(self, rows: int) -> int:
        """Return the bytes of `rows` full rows without a backward pass."""
        if self.on_features:
            return 0
        tokens = rows * self.recipe.train.max_length
        return tokens * (self.a_token() + 4 * self.c.hidden_size) + self.logits(rows)

    def a_token(self) -> int:
        """Return the bytes of one token in one block."""
        c, size = self.c, self.size
        shapes = counts.linear_shapes(c)
        queries = shapes["model.layers.0.self_attn.q_proj"][1]
        keys = shapes["model.layers.0.self_attn.k_proj"][1]
        normed = len(c.family.norms) * c.hidden_size
        if c.family.head_norms:
            normed += queries + keys
        own = size * (3 * c.intermediate_size + 2 * queries + 2 * keys)
        return own + 4 * normed + self._scores() + self._adapters(shapes)

    def _adapters(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Return the bytes that the adapters of one block add for one token."""
        lora = self.recipe.lora
        if lora is None:
            return 0
        adapted = {
            name.rsplit(".", 1)[1]: inputs
            for name, (inputs, _) in shapes.items()
            if counts.matches(name, lora.target_modules)
        }
        copies = sum(adapted.values())
        dropped = lora.lora_dropout > 0
        if dropped or self.size == 2:
            read = copies
        else:  # one tensor serves all that read it; the attention's output is counted already
            once = {_SHARED_INPUT.get(name, name): width for name, width in adapted.items()}
            read = sum(width for name, width in once.items() if name != "o_proj")
        mask = copies * (1 if self.device == "cuda" else 4) if dropped else 0
        return self.size * read + mask + self.size * lora.r * len(adapted)

    def _scores(self) -> int:
        """Return the bytes of a token's attention weights before and after their softmax.

        Only eager attention keeps them: (heads, T) for each token.
        """
        default = "eager" if self.c.model_type == "gemma2" else "sdpa"
        if (self.recipe.model.attn_implementation or default) != "eager":
            return 0
        length = FEATURE_ROW if self.on_features else self.recipe.train.max_length
        return 2 * 4 * self.c.num_attention_heads * length

    def logits(self, rows: int) -> int:
        """Return the bytes of the answers' logits in float32, their softmax and their gradient."""
        if self.recipe.kind.head is not None:
            return 0
        return round(12 * self.c.vocab_size * LABELS * rows * self.recipe.train.max_length)

    @property
    def logits_why(self) -> str:
        if self.recipe.kind.head is not None:
            return "a head has very few"
        return (
            f"12 x {self.c.vocab_size:,} bytes for each label, labels on {LABELS:.0%} of the tokens"
        )
