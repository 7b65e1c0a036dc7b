"""The GPUs that a rehearsal can play: what decides which kernels run, and how much memory they have.

Sources: NVIDIA's tables of compute capabilities and the data sheets of the cards.
"""

from typing import NamedTuple

from llama_peft.errors import UserError

GIB = 2**30
CONTEXT = 600_000_000
"""Bytes that the driver's context and the loaded kernels take, which no allocator counts."""
SPARE = 0.05
"""The part of the peak that is lost between blocks of the allocator, by rule of thumb."""


class Card(NamedTuple):
    """A GPU: its compute capability, its multiprocessors, its bytes of memory."""

    title: str
    major: int
    minor: int
    processors: int
    memory: int

    @property
    def has_bfloat16(self) -> bool:
        """Whether it multiplies bfloat16 itself. Older cards emulate it."""
        return self.major >= 8

    @property
    def has_flash(self) -> bool:
        """Whether torch has flash attention for it."""
        return self.major >= 8

    @property
    def threads(self) -> int:
        """Threads that a multiprocessor holds, by the table in CUDA's programming guide."""
        return {(7, 5): 1024, (7, 0): 2048, (8, 0): 2048, (9, 0): 2048}.get(
            (self.major, self.minor), 1536
        )

    def holds(self, peak: int) -> bool:
        """Return whether a run fits whose tensors take `peak` bytes."""
        return peak * (1 + SPARE) + CONTEXT <= self.memory


CARDS = {
    "2060": Card("RTX 2060", 7, 5, 30, 6 * GIB),
    "3050": Card("RTX 3050", 8, 6, 20, 8 * GIB),
    "3060": Card("RTX 3060", 8, 6, 28, 12 * GIB),
    "3090": Card("RTX 3090", 8, 6, 82, 24 * GIB),
    "4050": Card("RTX 4050 Laptop", 8, 9, 20, 6 * GIB),
    "4060": Card("RTX 4060", 8, 9, 24, 8 * GIB),
    "4070": Card("RTX 4070", 8, 9, 46, 12 * GIB),
    "4090": Card("RTX 4090", 8, 9, 128, 24 * GIB),
    "5090": Card("RTX 5090", 12, 0, 170, 32 * GIB),
    "v100": Card("V100", 7, 0, 80, 16 * GIB),
    "t4": Card("T4", 7, 5, 40, 15 * GIB),
    "a10g": Card("A10G", 8, 6, 80, 24 * GIB),
    "l4": Card("L4", 8, 9, 58, 24 * GIB),
    "a100": Card("A100", 8, 0, 108, 40 * GIB),
    "h100": Card("H100", 9, 0, 132, 80 * GIB),
}


def card_named(name: str) -> Card:
    """Return a card. Raises UserError for an unknown one."""
    found = CARDS.get(name.lower().removeprefix("rtx").strip(" -_"))
    if found is None:
        raise UserError(f"{name}: no such card is known; choose one of {', '.join(CARDS)}")
    return found
