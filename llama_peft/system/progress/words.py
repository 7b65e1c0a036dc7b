"""What is said of a piece of work: how far it is, how fast, and how long it will take."""

import time
from dataclasses import dataclass, field

from llama_peft.system.formatting import counted, duration, memory, plural
from llama_peft.system.memory import peak_memory

_UNTIL_SECONDS = 60


@dataclass(kw_only=True)
class Work:
    """A piece of work that can be counted, and how far it is."""

    name: str
    unit: str
    """What is counted, in the singular: step, example, text."""
    total: int
    start: int = 0
    """How much was done before this process began, so that the rate is that of this process."""
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    facts: dict[str, float] = field(default_factory=dict)
    """The newest numbers by name, such as the loss."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def own(self) -> int:
        """How much this process has done."""
        return self.done - self.start


def line(work: Work) -> str:
    """Return how far a work is, as one line of a log."""
    share = f" ({100 * work.done // work.total} %)" if work.total else ""
    count = f"{work.done:,} of {counted(work.total, work.unit)}{share}"
    parts = [count, *_facts(work), *_pace(work), *_left(work), _memory()]
    return f"{work.name}: {', '.join(parts)}"


def summary(work: Work) -> str:
    """Return what is said of a work at its end."""
    before = f" ({work.start:,} were done before)" if work.start else ""
    count = f"{counted(work.done, work.unit)}{before} in {duration(work.seconds)}"
    return f"{work.name}: {', '.join([count, *_facts(work), *_pace(work), _memory()])}"


def beside_bar(work: Work, width: int) -> str:
    """Return what stands beside a bar, in at most `width` columns if that is possible.

    What matters least is left out first: memory, then the rate, then the numbers.
    """
    count = f"{work.done:,}/{counted(work.total, work.unit)}"
    left, facts = _left(work), _facts(work)
    wishes = [
        [count, *left, *facts, *_pace(work), _memory()],
        [count, *left, *facts, *_pace(work)],
        [count, *left, *facts],
        [count, *left, *facts[:1]],
        [count, *left],
    ]
    texts = [", ".join(wish) for wish in wishes]
    return next((text for text in texts if len(text) <= width), texts[-1])


def _facts(work: Work) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in work.facts.items()]


def _pace(work: Work) -> list[str]:
    """Return the rate of this process, pauses for validation included; none before the first unit."""
    if not work.own or not work.seconds:
        return []
    rate = work.own / work.seconds
    if rate < 1:
        return [f"{1 / rate:.3g} s per {work.unit}"]
    return [
        f"{rate:,.0f} {plural(work.unit)}/s" if rate >= 10 else f"{rate:.1f} {plural(work.unit)}/s"
    ]


def _left(work: Work) -> list[str]:
    """Return the time left if the rest goes as fast as what was done; none if that is unknown."""
    if not work.own or work.done >= work.total:
        return []
    seconds = (work.total - work.done) * work.seconds / work.own
    known = f"{seconds:.0f} s" if seconds < _UNTIL_SECONDS else duration(seconds)
    return [f"{known} left"]


def _memory() -> str:
    return f"peak {memory(peak_memory())}"
