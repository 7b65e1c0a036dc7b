"""What many rows take before the first step, on paper: nothing of them is read.

Rows wait on disk (`system/sequences`), so memory grows by little a row, and disk and time by the
tokens. The numbers are above what was measured on up to 60,000 texts of 27 tokens and questions of 206,
on one core of an Intel Xeon server; `python -m tests.benchmarks --only data_rows` measures again.
"""

from typing import NamedTuple

from llama_peft.model import backbone, counts
from llama_peft.model.hub import read_config
from llama_peft.recipe import Recipe
from llama_peft.system.formatting import duration

MEMORY = {"text": 200, "question": 600}
"""Bytes of memory a row: where it is on disk, the sum of its id, its length, its place in a tree."""
DISK = 24
"""Bytes of disk a token: the row, its example and its token ids. 16 were measured with a small
vocabulary; numbers above 65,535 take two bytes more.
"""
SECONDS = 7e-6
"""Seconds a token on one core: reading, checking, sums and token ids."""


class RowsCost(NamedTuple):
    """What rows take before the first step."""

    memory: int
    """Bytes of this machine's memory, beside the libraries."""
    disk: int
    """Bytes in the folder of temporary files, until the command ends."""
    states: int
    """Bytes beside the runs, if something trains on states that are kept; else 0."""
    seconds: float
    why: str

    def lines(self) -> list[str]:
        """Return what is printed, in the columns of an estimate."""
        terms = [
            ("rows in memory", self.memory, "of this machine, whatever a GPU holds"),
            ("rows on disk", self.disk, f"in the folder of temporary files: {self.why}"),
        ]
        if self.states:
            terms.append(("states on disk", self.states, "of the frozen base, beside the runs"))
        said = [f"{name:<18} {size / 1e9:>8.3f} GB  {why}" for name, size, why in terms]
        return [
            *said,
            f"{'before the steps':<18} {duration(self.seconds)} on one core, without states",
        ]


def rows_cost(recipe: Recipe, rows: int) -> RowsCost:
    """Return what so many rows take if each has `max_length` tokens, the most that it can have.

    Raises counts.UncountedFamily and counts.BadConfig.
    """
    tokens = rows * recipe.train.max_length
    config = read_config(recipe.model.model_name_or_path, recipe.model.revision)
    state = counts.text_config(config).hidden_size * (
        4 if backbone.dtype_name(recipe) == "float32" else 2
    )
    return RowsCost(
        memory=rows * MEMORY["text" if recipe.kind.has_labels else "question"],
        disk=tokens * DISK,
        states=state * _num_states(recipe, rows, tokens),
        seconds=tokens * SECONDS,
        why=f"{rows:,} rows, as if each had train.max_length {recipe.train.max_length:,} tokens",
    )


def _num_states(recipe: Recipe, rows: int, tokens: int) -> int:
    """Return how many states are kept: one of a text for a head alone, those of all tokens for LoRA."""
    if recipe.lora is None:
        return rows if recipe.on_states else 0
    return tokens if recipe.train.reuse_frozen_blocks else 0
