"""The batches that an estimate is about: the widest ones of the data, or full ones."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from llama_peft.recipe import Recipe
from llama_peft.system.memory import TreeKernel

LABELS = 0.25
"""Share of a row's tokens that the LM head is applied to, the answers. In SQuAD it is a fifth."""
KEYS, SEQUENCE = 6, 32
"""What varlen attention makes of a row of answers: keys for each token, and tokens of a sequence. In
SQuAD these are 5.8 and 37.
"""
ROW_TOKENS = 1024
"""Tokens in a row of a batch under a head, and of a pass that computes states.

`prefix_tree.batch.ROW_TOKENS`, which cannot be imported without torch; a test compares the two.
"""
FEATURE_TEXTS = 16
"""Texts in a batch of states if they are not packed: `features.states.BATCH_SIZE`."""
_WIDTH = 16
"""Of it the width of tree rows is a multiple on a GPU."""
Mask = Literal["none", "padding", "tree"]
"""What attention gets: nothing, booleans of the library, or our own numbers to add."""


class Batch(NamedTuple):
    """What the backbone reads at once."""

    rows: int
    width: int
    """Tokens in a row, padding included."""
    labels: int = 0
    """Positions that the LM head is applied to; 0 under another head."""
    mask: Mask = "none"
    keys: int = 0
    """Keys that varlen attention gathers for tree rows; 0 if they are not counted."""
    sequences: int = 0
    """Of how many sequences these are."""

    @property
    def tokens(self) -> int:
        return self.rows * self.width

    def __str__(self) -> str:
        return f"{self.rows} x {self.width:,} tokens"


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of a run that take the most."""

    train: Batch
    """For a head alone on states: the one that the base reads when the states are computed."""
    validation: Batch
    smallest: Batch
    """The longest row alone, as a step reads it that is split as far as it can be."""
    source: str
    """Where they come from, in words."""


def masked_width(length: int) -> int:
    """Return the width that a head gives its rows on a GPU without flash attention.

    They have padding then, and the kernel need not pad their mask in every layer.
    """
    return length + _WIDTH - length % _WIDTH


def trains_trees(recipe: Recipe) -> bool:
    """Return whether training computes tree rows."""
    return recipe.packs_rows or (recipe.packs_batches and not recipe.on_states)


def uses_varlen(recipe: Recipe, kernel: TreeKernel | None) -> bool:
    """Return whether training computes tree rows by varlen attention. kernel: that of the GPU."""
    asked = recipe.model.attn_implementation
    return trains_trees(recipe) and (asked == "varlen" or (asked is None and kernel == "varlen"))


def full(recipe: Recipe, device: str, flash: bool = True) -> Batches:
    """Return batches in which every row has `max_length` tokens: the most that a config can say.

    flash: whether a GPU has flash attention.
    """
    rows = recipe.train_batch_size
    source = f"as if every row had train.max_length {recipe.train.max_length:,} tokens"
    if recipe.on_states:
        one = states_batch(recipe, recipe.train.max_length)
        return Batches(train=one, validation=one, smallest=one, source=source)
    return Batches(
        train=full_batch(recipe, device, rows, flash),
        validation=full_batch(recipe, device, recipe.validation_batch_size, flash),
        smallest=full_batch(recipe, device, 1, flash),
        source=source,
    )


def states_batch(recipe: Recipe, length: int, tokens: int | None = None) -> Batch:
    """Return what one pass for states reads: a tree row, or texts of about one length.

    length: tokens of the longest text; tokens: those of all texts, if they are known.
    """
    if recipe.head.features == "prefix_tree":
        width = max(ROW_TOKENS, length)
        return Batch(1, width if tokens is None else min(width, tokens), mask="tree")
    return Batch(FEATURE_TEXTS, length, mask="padding")


def full_batch(recipe: Recipe, device: str, rows: int, flash: bool) -> Batch:
    """Return a batch of full rows of a recipe that trains on token ids."""
    length = recipe.train.max_length
    if recipe.packs_rows:
        width = -(-length // _WIDTH) * _WIDTH if device == "cuda" else length
        tokens = rows * width
        labels = round(LABELS * rows * length)
        return Batch(rows, width, labels, "tree", KEYS * tokens, tokens // SEQUENCE)
    if recipe.packs_batches:
        width = max(ROW_TOKENS, length)
        tree = Batch(-(-rows * length // width), min(width, rows * length), mask="tree")
        return tree._replace(keys=tree.tokens, sequences=rows)  # they share nothing
    if recipe.kind.head is None:
        return Batch(rows, length, round(LABELS * rows * length), "padding")
    if device == "cuda" and flash:
        return Batch(rows, length)
    return Batch(rows, masked_width(length) if device == "cuda" else length, mask="padding")
