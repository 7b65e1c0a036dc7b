"""What a run will take, from the recipe and the base's config alone: memory, disk and download.

Activations are what autograd keeps for the backward pass, counted tensor by tensor as the family's
block makes them; a test compares the formula with what a real model keeps. The rest is arithmetic
on exact parameter counts. Batches are taken as full, so that every row is `max_length` tokens long:
a run takes less than this. On a CPU the whole process is counted, as the system sees it: the
libraries, the file of the base while it is read, and the holes that the C library's heap keeps.
A test compares this with the peak of a real training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from llama_peft.model import counts
from llama_peft.model.counts import Counts, TextConfig
from llama_peft.model.quantize import packed_form
from llama_peft.recipe import Recipe

PACKED = {"4bit": 0.516, "8bit": 1.002, "fp8": 1.002}
"""Bytes of a packed weight with its constants.

4-bit blocks have 64 weights, and their scales are packed to 8 bits again.
"""
_SINGLE_4BIT = 0.5625
"""The same if the scales stay in float32 (bnb_4bit_use_double_quant: false)."""
OPTIMIZER = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 1}
"""Bytes of state for each trained weight; any other optimizer has Adam's two float32 moments."""
LABELS = 0.25
"""Share of a row's tokens that the LM head is applied to, the answers. In SQuAD it is a fifth."""
FEATURE_ROW = 1024
LIBRARIES = {"cpu": 800_000_000, "cuda": 600_000_000}
"""The interpreter with torch, transformers and trl; on a GPU, CUDA's context and kernels."""
QUERIES = 128
"""`block_attention.QUERIES`, which cannot be imported without torch; a test compares the two."""
_OWN_PLACE = 32 * 2**20
"""From this size on, glibc gives a tensor pages of its own and returns them (mallopt(3)).

Smaller ones lie on the heap, where a place that is too small for the next tensor stays empty.
"""
_OF_BATCHES = ("activations", "heap", "logits", "validation", "loading")
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
    """The memory that the run takes at most if every batch is split down to one row."""
    least: int
    """The same without what the system could take back: the holes of the heap, the base's file."""
    where: str
    """For which device and type it is computed."""
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
    download = _checkpoint(config, counts.count_text(whole))
    loading = _loading(recipe, c, counted, size, download, device)
    memory = (
        *_weights_memory(recipe, counted, size),
        *_batch_memory(recipe, kept, loading),
        *_other_memory(recipe, c, size, device),
    )
    fixed = sum(term.bytes for term in memory if term.name not in _OF_BATCHES)
    one = kept.bytes(1) + kept.logits(1)
    return Estimate(
        memory=memory,
        smallest=fixed + max(one + kept.holes(1), loading),
        least=fixed + one,
        where=f"this machine's {'GPU' if device == 'cuda' else 'CPU'} in {dtype}",
        disk=_disk(recipe, counted),
        download=download,
    )


def _checkpoint(config: Mapping[str, object], counted: Counts) -> int:
    """Return the bytes of a base's files: as its config says, 16 bits if that says nothing."""
    said = config.get("dtype", config.get("torch_dtype"))
    size = 4 if said == "float32" else 2
    packed = PACKED.get(packed_form(config) or "", size)
    return round(counted.quantized * packed) + size * (counted.base - counted.quantized)


def _loading(
    recipe: Recipe, c: TextConfig, counted: Counts, size: int, file: int, device: str
) -> int:
    """Return what loading the base takes beside its weights.

    On a CPU its file is mapped into memory, and layers that are packed leave the place of their
    unpacked weights. `head.layer: auto` holds two copies of the base for a moment.
    """
    again = _weights(recipe, counted, size)[0] if recipe.head.layer == "auto" else 0
    if device == "cuda":
        return again
    layers = [size * i * o for i, o in counts.linear_shapes(c).values()]
    left = c.num_hidden_layers * sum(layer for layer in layers if layer < _OWN_PLACE)
    return again + file + (left if _bytes_packed(recipe) else 0)


def _weights_memory(recipe: Recipe, counted: Counts, size: int) -> tuple[Term, ...]:
    """Return what the weights take, and what learning adds to each trained one."""
    trained, state = counted.trainable, _optimizer_state(recipe)
    each = f"{state} bytes for each trained weight ({recipe.train.optim})"
    copied = recipe.train.gradient_accumulation_steps > 1
    twice = ", and a copy while a step is accumulated" if copied else ""
    return (
        Term("weights", *_weights(recipe, counted, size)),
        Term("trained weights", 4 * trained, f"{trained:,} in float32"),
        Term("gradients", (8 if copied else 4) * trained, f"the same number, in float32{twice}"),
        Term("optimizer", state * trained, each),
    )


def _weights(recipe: Recipe, counted: Counts, size: int) -> tuple[int, str]:
    """Return the bytes of the frozen weights, and how they are computed."""
    packed = _bytes_packed(recipe)
    frozen = counted.backbone if counted.head else counted.base
    if not packed:
        return frozen * size, f"{frozen:,} at {size} bytes"
    frozen -= counted.quantized
    split = f"{counted.quantized:,} packed at {packed} bytes, {frozen:,} at {size}"
    return round(counted.quantized * packed) + frozen * size, split


def _batch_memory(recipe: Recipe, kept: "Activations", loading: int) -> tuple[Term, ...]:
    """Return the terms that grow with the rows of a batch, and those that take their place."""
    length, rows = recipe.train.max_length, recipe.train.per_device_train_batch_size
    validated = recipe.validation_batch_size
    step = kept.bytes(rows) + kept.holes(rows) + kept.logits(rows)
    validation = max(0, kept.validation(validated) - step)
    return (
        Term("activations", kept.bytes(rows), f"{kept.why}; {rows} x {length} tokens"),
        Term("heap", kept.holes(rows), kept.holes_why),
        Term("logits", kept.logits(rows), kept.logits_why),
        Term(
            "validation",
            validation,
            f"what a batch of {validated} x {length} tokens takes more than a training step",
        ),
        Term(
            "loading",
            max(0, loading - step - validation),
            "what reading the base's files takes more than that",
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
        twice = recipe.quantization.bnb_4bit_use_double_quant
        return PACKED["4bit"] if twice else _SINGLE_4BIT
    return PACKED["8bit"] if recipe.quantization.load_in_8bit else 0.0


class Activations:
    """What autograd keeps of a batch.

    For each token in each block it keeps, in the compute type: gate, up and their activation (3 I),
    queries, keys, values and the attention's output (2 Q + 2 K), the inputs of the adapted layers,
    and r numbers of each adapter. It keeps the norms' inputs in float32. Layers that share an input
    keep it once, but autocast and dropout make a copy for each. On a CPU, rows of different lengths
    need a mask, and then sdpa keeps the keys and values of every query head, and the mask as numbers.
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
        return self._tokens(rows) * sum(self._tensors())

    def holes(self, rows: int) -> int:
        """Return the bytes of the heap that stay empty between its tensors, on a CPU.

        A forward pass frees tensors between those that it keeps, and the next one finds these
        places too small: the heap grows to twice what is kept, and is not given back.
        """
        if self.device == "cuda":
            return 0
        tokens = self._tokens(rows)
        return tokens * sum(each for each in self._tensors() if each * tokens < _OWN_PLACE)

    @property
    def holes_why(self) -> str:
        if self.device == "cuda":
            return "a GPU's memory is divided by torch"
        return "holes in the C library's heap: as much as the tensors below 32 MiB that are kept"

    def validation(self, rows: int) -> int:
        """Return the bytes of `rows` full rows without a backward pass."""
        if self.on_features:
            return 0
        tokens = rows * self.recipe.train.max_length
        return tokens * (self.a_token() + 4 * self.c.hidden_size) + self.logits(rows)

    def a_token(self) -> int:
        """Return the bytes of one token in one block."""
        return sum(self._block())

    def _tokens(self, rows: int) -> int:
        return FEATURE_ROW if self.on_features else rows * self._length

    @property
    def _length(self) -> int:
        return FEATURE_ROW if self.on_features else self.recipe.train.max_length

    def _tensors(self) -> list[int]:
        """Return the bytes that a token has in each tensor that is kept."""
        blocks, hidden = self.c.num_hidden_layers, self.c.hidden_size
        last, inputs = [4 * hidden], [hidden * self.size] * blocks
        if self.on_features and self.recipe.head.layer == "auto":
            return [*self._block(), *inputs, *last]
        if self.frozen:
            return [*self._block(), *last]
        if self.recipe.train.activation_checkpointing:
            return [*inputs, *self._block(), *last]
        return [*(blocks * self._block()), *last]

    def _block(self) -> list[int]:
        """Return the bytes that a token has in each tensor of one block."""
        c, size = self.c, self.size
        shapes = counts.linear_shapes(c)
        queries = shapes["model.layers.0.self_attn.q_proj"][1]
        keys = shapes["model.layers.0.self_attn.k_proj"][1]
        normed = [c.hidden_size] * len(c.family.norms)
        if c.family.head_norms:
            normed += [queries, keys]
        return [
            *[size * c.intermediate_size] * 3,
            *[size * queries] * 2,
            *self._keys(size * queries, size * keys),
            *(4 * width for width in normed),
            self._scores(),
            *self._adapters(shapes),
        ]

    def _keys(self, queries: int, keys: int) -> list[int]:
        """Return the bytes of keys and values, and of the mask that sdpa keeps beside them.

        In a prefix tree each block of queries has its own copy of the keys before it, half of the
        row on average, and its own output.
        """
        if self.device == "cuda" or self._is_eager:
            return [keys] * 2
        if not self._is_tree:
            return [queries] * 2 + [self.size * self._length]
        blocks = -(-self._length // QUERIES)
        seen = QUERIES * (blocks + 1) // 2
        return [queries, *[queries * seen // self._length] * (2 * blocks), self.size * seen]

    @property
    def _is_tree(self) -> bool:
        if self.on_features:
            return self.recipe.head.features == "prefix_tree"
        return self.recipe.packs_rows

    @property
    def _is_eager(self) -> bool:
        default = "eager" if self.c.model_type == "gemma2" else "sdpa"
        return (self.recipe.model.attn_implementation or default) == "eager"

    def _adapters(self, shapes: Mapping[str, tuple[int, int]]) -> list[int]:
        """Return the bytes that a token has in each tensor that the adapters of one block add."""
        lora = self.recipe.lora
        if lora is None:
            return []
        adapted = {
            name.rsplit(".", 1)[1]: inputs
            for name, (inputs, _) in shapes.items()
            if counts.matches(name, lora.target_modules)
        }
        dropped = lora.lora_dropout > 0
        if dropped or self.size == 2:
            read = list(adapted.values())
        else:  # one tensor serves all that read it; the attention's output is counted already
            once = {_SHARED_INPUT.get(name, name): width for name, width in adapted.items()}
            read = [width for name, width in once.items() if name != "o_proj"]
        masks = [width * (1 if self.device == "cuda" else 4) for width in adapted.values()]
        ranks = [self.size * lora.r] * len(adapted)
        return [*(self.size * width for width in read), *(masks if dropped else ()), *ranks]

    def _scores(self) -> int:
        """Return the bytes of a token's attention weights before and after their softmax.

        Only eager attention keeps them: (heads, T) for each token.
        """
        return 2 * 4 * self.c.num_attention_heads * self._length if self._is_eager else 0

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
