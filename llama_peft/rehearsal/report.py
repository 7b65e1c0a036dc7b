"""What a rehearsal found, as a record with types and as text."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from llama_peft.rehearsal.device.cards import CONTEXT, SPARE, card_named
from llama_peft.system.formatting import memory


@dataclass(frozen=True, kw_only=True)
class Site:
    """Something that the code does, where, and how often in a step."""

    what: str
    where: str
    times: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run on the fake GPU."""

    name: str
    """typical step, fullest step, validation, prediction, or features."""
    rows: int
    tokens: int
    """The width of a row, with its padding; 0 if a head alone reads states."""
    peak: int
    """The most bytes of tensors at once, without the driver's context."""
    memory: Mapping[str, int]
    """The same by kind."""
    at: str
    """The operation that reached the peak."""
    kept: int
    """Bytes that the forward pass kept for the backward pass."""
    kernels: Mapping[str, int]
    """How many operations ran on the GPU, by name."""
    flop: Mapping[str, int]
    syncs: tuple[Site, ...]
    """Where the CPU waits for the GPU."""
    copies: tuple[Site, ...]
    """Copies to the GPU."""
    guesses: int
    """How often the code asked for a number that depends on weights, and got zero."""
    attention: tuple[str, ...]
    """The attention kernels that ran."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A run on the fake GPU that went through."""

    recipe: str
    card: str
    base: str
    settings: tuple[str, ...]
    dtype: str
    rows: str
    """Where the rows come from."""
    notes: tuple[str, ...]
    steps: tuple[Step, ...]
    estimated: Mapping[str, int]
    """What `model.estimate` says of the same rows, by its terms, without the context."""
    seconds: float

    @property
    def peak(self) -> int:
        """The most bytes of tensors that any step held."""
        return max(step.peak for step in self.steps)

    @property
    def training_peak(self) -> int:
        """The most bytes of tensors that a step of the training held, which is what is estimated."""
        return max(step.peak for step in self.steps if step.name != "prediction")

    def step(self, name: str) -> Step:
        """Return the step of a name."""
        return next(step for step in self.steps if step.name == name)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a run would fail on the GPU."""

    stage: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.stage}, {self.where}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the process of a rehearsal writes: one of the three."""

    rehearsal: Rehearsal | None = None
    fault: Fault | None = None
    mistake: tuple[str, ...] = ()
    """The lines of a UserError."""


ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "llama_peft::flex_attention": "FlexAttention",
    "torch_attn::_varlen_attn": "varlen",
    "aten::_safe_softmax": "plain matrix products",
}
"""What ran, by the name of a kernel that only it uses."""


def sites(counted: Counter[tuple[str, str]]) -> tuple[Site, ...]:
    """Return counts by place, the most frequent first."""
    return tuple(
        Site(what=what, where=where, times=times) for (what, where), times in counted.most_common()
    )


def text(found: Rehearsal) -> list[str]:
    """Return the lines of a report."""
    card = card_named(found.card)
    fits = "fits" if card.holds(found.peak) else "does not fit"
    lines = [
        f"{found.recipe} on {card.title}, {found.dtype}, {found.base}",
        f"rows: {found.rows}",
        *(f"note: {note}" for note in found.notes),
    ]
    for step in found.steps:
        lines += ["", *_step_text(step)]
    return [
        *lines,
        "",
        f"{memory(found.peak)} of tensors at most, and {memory(CONTEXT)} of context and {SPARE:.0%} between blocks: this "
        f"{fits} into {memory(card.memory)}. Nothing ran on a GPU: time, values and fragmentation stay unseen.",
    ]


def _step_text(step: Step) -> list[str]:
    parts = ", ".join(f"{kind} {mb(size)}" for kind, size in step.memory.items() if size)
    flop = sum(step.flop.values()) / 1e12
    waits = sum(site.times for site in step.syncs)
    kept = f"; {mb(step.kept)} kept for the backward pass" if step.kept else ""
    return [
        f"{step.name}: {size_of(step)}, {mb(step.peak)} at {step.at}{kept}",
        f"  {parts}",
        f"  {sum(step.kernels.values()):,} kernels, {flop:.2f} TFLOP, attention: {', '.join(step.attention) or 'none'}",
        f"  the CPU waits for the GPU {waits} times, {step.guesses} times for a number that has no value here",
        *(f"    {site.times} x {site.what} at {site.where}" for site in step.syncs),
    ]


def size_of(step: Step) -> str:
    """Return what a step reads at once."""
    return f"{step.rows} x {step.tokens} tokens" if step.tokens else f"{step.rows} states"


def mb(size: int) -> str:
    """Return a size in MB."""
    return f"{size / 1e6:,.0f} MB"
