"""What a run will take, from the recipe and the base's config alone: memory, disk and download.

Tensors are counted one by one as the libraries make them (`blocks`), in the widest batch of the
data, or in full rows if only the config is known (`batch`). The rest is arithmetic on exact
parameter counts. `gpu` says what is live at the highest point of a step, and `cpu` what a process
takes. `python -m tests.rehearsal --estimate` compares this with rehearsals.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from llama_peft.model import counts
from llama_peft.model.counts import Counts, TextConfig
from llama_peft.model.estimate import cpu
from llama_peft.model.estimate.batch import (
    Batch,
    Batches,
    full,
    states_batch,
    trains_trees,
)
from llama_peft.model.estimate.blocks import Blocks, Device
from llama_peft.model.estimate.gpu import GpuStep
from llama_peft.model.quantize import packed_form
from llama_peft.recipe import Recipe
from llama_peft.system.memory import TreeKernel

__all__ = [
    "Batch",
    "Batches",
    "Device",
    "Estimate",
    "Term",
    "estimate",
    "states_batch",
    "trains_trees",
]

PACKED = {"4bit": 0.516, "8bit": 1.002, "fp8": 1.002}
"""Bytes of a packed weight with its constants.

4-bit blocks have 64 weights, and their scales are packed to 8 bits again.
"""
_SINGLE_4BIT = 0.5625
"""The same if the scales stay in float32 (bnb_4bit_use_double_quant: false)."""
OPTIMIZER = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 1}
"""Bytes of state for each trained weight; any other optimizer has Adam's two float32 moments."""
LIBRARIES = {"cpu": 800_000_000, "cuda": 600_000_000}
"""The interpreter with torch, transformers and trl; on a GPU, CUDA's context and kernels."""


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
    batches: str
    """For which batches it is computed."""
    unpacked: int
    """How much more the weights take in 16 bits; 0 if they are not packed."""
    disk: tuple[Term, ...]
    download: int

    @property
    def memory_total(self) -> int:
        return sum(term.bytes for term in self.memory)

    @property
    def disk_total(self) -> int:
        return sum(term.bytes for term in self.disk)


def estimate(
    recipe: Recipe,
    config: Mapping[str, object],
    dtype: str,
    device: str,
    batches: Batches | None = None,
    flash: bool = True,
    kernel: TreeKernel | None = None,
) -> Estimate:
    """Return the terms of training a recipe on a base with this config.json.

    dtype: of the weights that are not packed, for example "bfloat16".
    device: "cuda" or "cpu".
    batches: the widest ones of the data; None takes full rows.
    flash: whether the GPU has flash attention, as those from 8.0 on.
    kernel: which one computes tree rows on it.
    Raises counts.UncountedFamily and counts.BadConfig.
    """
    whole = counts.text_config(config)
    c = counts.cut(whole, recipe.head.layer)
    counted = counts.count_text(
        c, recipe.kind.name, len(recipe.dataset.labels or "ab"), recipe.lora
    )
    size = 4 if dtype == "float32" else 2
    blocks = Blocks(recipe, c, Device(device, size, flash, kernel))
    batches = batches or full(recipe, device, flash)
    download = _checkpoint(config, counts.count_text(whole))
    loading = _loading(recipe, c, counted, size, download, device)
    constant = (
        *_weights_memory(recipe, counted, size, device),
        Term("libraries", LIBRARIES[device], "Python, torch and its kernels"),
    )
    fixed = sum(term.bytes for term in constant)
    if device == "cuda":
        step, sizes = GpuStep(blocks, counted), batches
        changing = _on_gpu(step, sizes, loading)
        least = smallest = fixed + max(step.whole(batches.smallest), loading)
    else:
        changing = _on_cpu(blocks, batches, loading)
        one = _cpu_step(blocks, batches.smallest, recipe.on_states)
        fixed += changing[-1].bytes
        least, smallest = fixed + one.needed, fixed + max(one.needed + one.holes, loading)
    return Estimate(
        memory=(*constant[:-1], *changing, constant[-1]),
        smallest=smallest,
        least=least,
        where=f"this machine's {'GPU' if device == 'cuda' else 'CPU'} in {dtype}",
        batches=batches.source,
        unpacked=_unpacked(recipe, counted, size),
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
    left = c.num_hidden_layers * sum(layer for layer in layers if layer < cpu.OWN_PLACE)
    return again + file + (left if _bytes_packed(recipe) else 0)


def _weights_memory(recipe: Recipe, counted: Counts, size: int, device: str) -> tuple[Term, ...]:
    """Return what the weights take, and what learning adds to each trained one.

    On a GPU the gradients of one batch come while activations go, and take their place.
    """
    trained, state = counted.trainable, _optimizer_state(recipe)
    each = f"{state} bytes for each trained weight ({recipe.train.optim})"
    copied = recipe.train.gradient_accumulation_steps > 1
    twice = ", and a copy while a step is accumulated" if copied else ""
    held = 8 if copied else 0 if device == "cuda" else 4
    return (
        Term("weights", *_weights(recipe, counted, size)),
        Term("trained weights", 4 * trained, f"{trained:,} in float32"),
        Term("gradients", held * trained, f"the same number, in float32{twice}"),
        Term("optimizer", state * trained, each),
    )


def _unpacked(recipe: Recipe, counted: Counts, size: int) -> int:
    packed = _bytes_packed(recipe)
    return round(counted.quantized * (size - packed)) if packed else 0


def _weights(recipe: Recipe, counted: Counts, size: int) -> tuple[int, str]:
    """Return the bytes of the frozen weights, and how they are computed."""
    packed = _bytes_packed(recipe)
    frozen = counted.backbone if counted.head else counted.base
    if not packed:
        return frozen * size, f"{frozen:,} at {size} bytes"
    frozen -= counted.quantized
    split = f"{counted.quantized:,} packed at {packed} bytes, {frozen:,} at {size}"
    return round(counted.quantized * packed) + frozen * size, split


class CpuStep(NamedTuple):
    """What a step takes on a CPU."""

    kept: int
    logits: int
    holes: int

    @property
    def needed(self) -> int:
        return self.kept + self.logits


def _cpu_step(blocks: Blocks, batch: Batch, states: bool) -> CpuStep:
    return CpuStep(
        cpu.kept(blocks, batch, states),
        cpu.logits(blocks, batch),
        cpu.holes(blocks, batch, states),
    )


def _on_cpu(blocks: Blocks, batches: Batches, loading: int) -> tuple[Term, ...]:
    """Return the terms that grow with the rows of a batch, and those that take their place."""
    states = blocks.recipe.on_states
    kept, logits, holes = _cpu_step(blocks, batches.train, states)
    step = kept + logits + holes
    validation = 0 if states else max(0, cpu.validation(blocks, batches.validation) - step)
    largest = max(i * o for i, o in blocks.shapes.values())
    return (
        Term("activations", kept, f"{_why_kept(blocks.recipe)}; {batches.train}"),
        Term(
            "heap",
            holes,
            "holes in the C library's heap: as much as the tensors below 32 MiB that are kept",
        ),
        Term("logits", logits, _why_logits(blocks, batches.train)),
        _validation(validation, batches.validation),
        Term(
            "loading",
            max(0, loading - step - validation),
            "what reading the base's files takes more than that",
        ),
        Term(
            "dequantised layer",
            max(
                2 * blocks.device.size * largest if blocks.is_packed else 0,
                blocks.norms_of_weights(),
            ),
            "the largest linear layer unpacked, forward and backward, or what DoRA does with it",
        ),
    )


def _on_gpu(step: GpuStep, batches: Batches, loading: int) -> tuple[Term, ...]:
    """Return the terms that grow with the rows of a batch, and those that take their place."""
    states = step.blocks.recipe.on_states
    kept = 0 if states else step.kept(batches.train)
    passing = step.passing(batches.train)
    validation = 0 if states else step.validation(batches.validation)
    most = max(kept + passing, validation, step.update(), loading)
    return (
        Term("activations", kept, f"{_why_kept(step.blocks.recipe)}; {batches.train}"),
        Term("temporaries", passing, "what the widest part of the pass holds for a moment"),
        _validation(max(0, validation - kept - passing), batches.validation),
        Term(
            "optimizer step",
            max(0, most - max(kept + passing, validation)),
            "what updating the weights, or loading two copies of the base, takes more than that",
        ),
    )


def _validation(more: int, batch: Batch) -> Term:
    return Term("validation", more, f"what a batch of {batch} takes more than a training step")


def _why_kept(recipe: Recipe) -> str:
    if recipe.on_states:
        return "those of one block: states are computed once"
    if recipe.lora is None:
        return "those of one block: a frozen backbone keeps none"
    if recipe.train.activation_checkpointing:
        return "the input of each block, and those of one block"
    return "all that the backward pass reads; train.activation_checkpointing keeps far less"


def _why_logits(blocks: Blocks, batch: Batch) -> str:
    if blocks.recipe.kind.head is not None:
        return "a head has very few"
    return f"12 x {blocks.c.vocab_size:,} bytes for each of {batch.labels:,} labels"


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
