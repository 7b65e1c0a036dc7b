"""What a run will take, from the recipe and the base's config alone: memory by term, disk, download.

Activations are what autograd keeps for the backward pass, counted tensor by tensor as the family's block makes them; a test holds the
formula against what a real model keeps. The rest is arithmetic on exact parameter counts. Batches are taken as full: every row
`max_length` tokens long, so the truth lies below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from llama_peft.model import counts
from llama_peft.recipe import Recipe

PACKED = {"4bit": 0.516, "8bit": 1.002}
"""Bytes a packed weight, with its constants: 4-bit blocks of 64, whose scales are packed to 8 bit again."""
OPTIMIZER = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 1}
"""Bytes of state a trained weight; Adam's two float32 moments else."""
LABELS = 0.25
"""Share of a row's tokens that the LM head is applied to: answers. SQuAD's tree rows hold a fifth."""
FEATURE_ROW = 1024
LIBRARIES = {"cpu": 800_000_000, "cuda": 600_000_000}
"""The interpreter with torch, transformers and trl in it; on a GPU, CUDA's context and kernels."""


class Term(NamedTuple):
    """A part of a sum, and where it comes from."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Terms of one run. `smallest` is the memory it needs when every batch is halved down to one row."""

    memory: tuple[Term, ...]
    smallest: int
    disk: tuple[Term, ...]
    download: int

    @property
    def memory_total(self) -> int:
        return sum(term.bytes for term in self.memory)

    @property
    def disk_total(self) -> int:
        return sum(term.bytes for term in self.disk)


def estimate(recipe: Recipe, config: Mapping[str, Any], dtype: str, device: str) -> Estimate:
    """Terms of training a recipe on a base with this config.json.

    dtype: of the unpacked weights, as "bfloat16". device: "cuda" or "cpu". Raises counts.UncountedFamily.
    """
    c = counts.text_config(config)
    download = 2 * counts.count(c).base
    layer = recipe.head.layer
    if isinstance(layer, int) and layer > 0:
        if layer > c["num_hidden_layers"]:
            raise counts.BadConfig(
                f"head.layer is {layer}, and it has {c['num_hidden_layers']} blocks"
            )
        c["num_hidden_layers"] = layer
    lora = None if recipe.lora is None else recipe.lora.peft_kwargs()
    counted = counts.count(c, recipe.task, len(recipe.dataset.labels or "ab"), lora)
    size = 4 if dtype == "float32" else 2
    rows = recipe.train.per_device_train_batch_size
    validated = recipe.train.validation_batch_size
    packed = _packed(recipe)
    frozen = (counted.backbone if counted.head else counted.base) - (
        counted.quantized if packed else 0
    )
    trained = counted.trainable
    state = OPTIMIZER.get(recipe.train.optim, 8)
    kept = Activations(recipe, c, size, device)
    shape = f"{rows} x {recipe.train.max_length} tokens"
    memory = [
        Term(
            "weights",
            round(counted.quantized * packed) + frozen * size,
            f"{counted.quantized:,} packed at {packed} bytes, {frozen:,} at {size}"
            if packed
            else f"{frozen:,} at {size} bytes",
        ),
        Term("trained weights", 4 * trained, f"{trained:,} in float32"),
        Term("gradients", 4 * trained, "as many, in float32"),
        Term(
            "optimizer", state * trained, f"{state} bytes a trained weight ({recipe.train.optim})"
        ),
        Term("activations", kept.bytes(rows), f"{kept.why}; {shape}"),
        Term("logits", kept.logits(rows), kept.logits_why),
        Term(
            "validation",
            max(0, kept.validation(validated) - kept.bytes(rows) - kept.logits(rows)),
            f"what a batch of {validated} x {recipe.train.max_length} tokens takes beyond a training step",
        ),
        Term(
            "dequantised layer",
            2 * size * max(i * o for i, o in counts.linear_shapes(c).values()) if packed else 0,
            "the largest linear layer unpacked, forward and backward",
        ),
        Term("libraries", LIBRARIES[device], "Python, torch and its kernels"),
    ]
    of_batches = ("activations", "logits", "validation")
    fixed = sum(t.bytes for t in memory if t.name not in of_batches)
    checkpoint = (4 + state) * trained
    held = recipe.train.save_total_limit + 2
    disk = (
        Term("checkpoints", held * checkpoint, f"{held} of {checkpoint:,}: kept, best, and new"),
        Term("export", 4 * trained, "adapter and head"),
    )
    return Estimate(
        memory=tuple(memory),
        smallest=fixed + kept.bytes(1) + kept.logits(1),
        disk=disk,
        download=download,
    )


def _packed(recipe: Recipe) -> float:
    """Bytes a packed weight, 0 where nothing is packed."""
    if recipe.quantization.load_in_4bit:
        return PACKED["4bit"]
    return PACKED["8bit"] if recipe.quantization.load_in_8bit else 0.0


class Activations:
    """What autograd keeps of a batch.

    Of each token in each block, in the compute type: gate, up and their activation (3 I), queries, keys, values and the attention's
    output (2 Q + 2 K), the inputs of the adapted layers (shared ones once, but one copy each where autocast or dropout makes
    copies), and r of each adapter; and the norms' inputs in float32.
    """

    def __init__(self, recipe: Recipe, c: Mapping[str, Any], size: int, device: str) -> None:
        self.recipe, self.c, self.size, self.device = recipe, c, size, device
        streams = recipe.kind.caches_features and recipe.head.features != "none"
        self.frozen = recipe.lora is None
        self.on_features = self.frozen and streams

    @property
    def why(self) -> str:
        if self.on_features:
            return f"one block's, states are computed once, in rows of {FEATURE_ROW}"
        if self.frozen:
            return "one block's, the backbone keeps none"
        if self.recipe.train.activation_checkpointing:
            return "each block's input, and one block's"
        return "all that the backward pass reads; train.activation_checkpointing keeps far less"

    def bytes(self, rows: int) -> int:
        """Of `rows` full rows."""
        tokens = FEATURE_ROW if self.on_features else rows * self.recipe.train.max_length
        blocks, hidden = self.c["num_hidden_layers"], self.c["hidden_size"]
        last = 4 * hidden
        if self.frozen:
            return tokens * (self.a_token() + last)
        if self.recipe.train.activation_checkpointing:
            return tokens * (blocks * hidden * self.size + self.a_token() + last)
        return tokens * (blocks * self.a_token() + last)

    def validation(self, rows: int) -> int:
        """Of `rows` full rows without a backward pass."""
        if self.on_features:
            return 0
        tokens = rows * self.recipe.train.max_length
        return tokens * (self.a_token() + 4 * self.c["hidden_size"]) + self.logits(rows)

    def a_token(self) -> int:
        """Bytes of one token in one block."""
        c, size = self.c, self.size
        shapes = counts.linear_shapes(c)
        inner = c["intermediate_size"]
        queries = shapes["model.layers.0.self_attn.q_proj"][1]
        keys = shapes["model.layers.0.self_attn.k_proj"][1]
        wide, narrow = counts.FAMILIES[c["model_type"]][1]
        norms = 4 * (len(wide) * c["hidden_size"] + (queries + keys if narrow else 0))
        own = size * (3 * inner + 2 * queries + 2 * keys) + norms + self._scores()
        lora = self.recipe.lora
        if lora is None:
            return own
        adapted = {
            name.rsplit(".", 1)[1]: inputs
            for name, (inputs, _) in shapes.items()
            if counts.matches(name, lora.target_modules)
        }
        copies = sum(adapted.values())
        dropped = lora.lora_dropout > 0
        if dropped or size == 2:
            read = size * copies
        else:  # one tensor serves all that read it; the attention's output is counted already
            sharing = {
                "gate_proj": "up",
                "up_proj": "up",
                "q_proj": "q",
                "k_proj": "q",
                "v_proj": "q",
            }
            once = {sharing.get(name, name): width for name, width in adapted.items()}
            read = size * sum(width for name, width in once.items() if name != "o_proj")
        mask = copies * (1 if self.device == "cuda" else 4) if dropped else 0
        return own + read + mask + size * lora.r * len(adapted)

    def _scores(self) -> int:
        """Attention weights, which only eager attention keeps: (heads, T) a token, before and after their softmax."""
        eager = self.recipe.model.attn_implementation or (
            "eager" if self.c["model_type"] == "gemma2" else "sdpa"
        )
        length = FEATURE_ROW if self.on_features else self.recipe.train.max_length
        return 2 * 4 * self.c["num_attention_heads"] * length if eager == "eager" else 0

    def logits(self, rows: int) -> int:
        """Logits in float32, their softmax and their gradient, of the tokens that are answers."""
        if self.recipe.kind.head is not None:
            return 0
        return round(12 * self.c["vocab_size"] * LABELS * rows * self.recipe.train.max_length)

    @property
    def logits_why(self) -> str:
        if self.recipe.kind.head is not None:
            return "a head has next to none"
        return f"12 x {self.c['vocab_size']:,} bytes a label, labels on {LABELS:.0%} of the tokens"
