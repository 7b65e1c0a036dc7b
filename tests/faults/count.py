"""All faults, inflicted one by one and counted by category."""

import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from . import (
    behaviour,
    data,
    deaths,
    evaluation,
    hostile,
    inputs,
    ladders,
    models,
    storage,
    stranger,
)
from .shop import Fault, Seen, Shop

ROOMS = (
    inputs, data, models, hostile, storage, behaviour, evaluation, stranger, deaths, ladders,
)  # fmt: skip
VERDICTS = ("right", "lost", "wrong", "traceback", "harm", "late")


def every(full: bool) -> Iterator[Fault]:
    """All faults, or those that the test suite has time for."""
    found = chain.from_iterable(room.faults(full) for room in ROOMS)
    return (fault for fault in found if full or fault.cheap)


def inflict(shop: Shop, fault: Fault, number: int) -> Seen:
    """Inflict one fault in a folder of its own, which is removed if all went right."""
    folder = shop.root / f"fault-{number}"
    folder.mkdir()
    try:
        seen = fault.inflict(shop, folder)
    except Exception:  # a fault of the harness is counted too
        return Seen("traceback", traceback.format_exc())
    if seen.verdict == "right":
        shutil.rmtree(folder, ignore_errors=True)
    return seen


class Tally:
    """Verdicts by category."""

    def __init__(self) -> None:
        self.seen: list[tuple[Fault, Seen]] = []

    def add(self, fault: Fault, seen: Seen) -> None:
        self.seen.append((fault, seen))

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        return Counter((fault.category, seen.verdict) for fault, seen in self.seen)

    @property
    def categories(self) -> list[str]:
        return sorted({fault.category for fault, _ in self.seen})

    @property
    def all_right(self) -> bool:
        return all(seen.verdict == "right" for _, seen in self.seen)

    def table(self) -> str:
        """A line for each category."""
        lines = [f"{'':<18}" + "".join(f"{name:>12}" for name in ("faults", *VERDICTS))]
        for category in self.categories:
            numbers = [self.counts[category, verdict] for verdict in VERDICTS]
            cells = "".join(f"{number:>12}" for number in (sum(numbers), *numbers))
            lines.append(f"{category:<18}{cells}")
        return "\n".join(lines)

    def line(self) -> str:
        total = Counter(seen.verdict for _, seen in self.seen)
        return (
            f"{len(self.seen)} faults in {len(self.categories)} categories: "
            f"{total['lost']} lost, {total['wrong']} silently wrong, {total['traceback']} tracebacks, "
            f"{total['harm']} harm, {total['late']} over the limit"
        )

    def messages(self) -> str:
        """A Markdown table of every fault and what the user was told."""
        lines = ["| category | fault | verdict | message |", "|---|---|---|---|"]
        for fault, seen in self.seen:
            words = (fault.category, fault.name, seen.verdict, " ".join(seen.message.split())[:300])
            lines.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
        return "\n".join(lines) + "\n"
