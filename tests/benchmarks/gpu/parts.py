"""Runs the parts one after the other, each within its share of the time, and writes what there is.

A part is a generator of what it has found so far. So a lack of time or of memory, a fault or a signal ends a part, and
loses nothing of it.
"""

import gc
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_peft.system.memory import free_memory
from tests.benchmarks import decoding, measure, training

from . import ceiling, correct, foreign, heads, memory, predicted
from .setting import Part, Setting

FINISHED = "finished"


class Planned(NamedTuple):
    """A part, and its share of the time in relation to the others."""

    run: Callable[[Setting], Part]
    weight: float


def _training(setting: Setting) -> Part:
    flop = 4 * setting.linear_weights()
    for found in training.turns(setting.base, setting.drawn(), setting.amount.repeats, None):
        yield found | {"flop_per_token": flop}


def _decoding(setting: Setting) -> Part:
    flop = 2 * setting.linear_weights()
    for found in decoding.turns(setting.base, setting.drawn(), setting.amount.repeats, None):
        yield found | {"flop_per_token": flop}


PARTS = {
    "ceiling": Planned(ceiling.turns, 1),
    "correct": Planned(correct.turns, 4),
    "training": Planned(_training, 8),
    "heads": Planned(heads.turns, 8),
    "decoding": Planned(_decoding, 4),
    "memory": Planned(memory.turns, 8),
    "predicted": Planned(predicted.turns, 3),
}
"""In the order in which they run. A forward pass takes 2 FLOP for each weight of a token, the way back to its inputs 2 more."""
FOREIGN = {"unsloth": Planned(foreign.unsloth, 3), "vllm": Planned(foreign.vllm, 3)}
"""Others' libraries, each in a process of its own: they change torch and transformers, or keep the GPU's memory."""


def run(setting: Setting, names: Sequence[str], minutes: float, path: Path) -> Iterator[str]:
    """Run the parts, write each as soon as it has found something, and yield a line about each.

    What an earlier run has finished is replaced by what is finished only.
    """
    gc.collect()
    gc.freeze()  # the libraries' own objects are not searched again for each contestant
    known, deadline = {**PARTS, **FOREIGN}, time.monotonic() + 60 * minutes
    for place, name in enumerate(names):
        weights = [known[other].weight for other in names[place:]]
        share = (deadline - time.monotonic()) * weights[0] / sum(weights)
        started, kept = time.monotonic(), setting.done.get(name, {}).get("ended") == FINISHED
        for found in _within(known[name].run, setting, share):
            seconds = round(time.monotonic() - started, 1)
            if not kept or found["ended"] == FINISHED:
                shown = _with_shares(found, setting.done.get("ceiling"))
                setting.done[name] = {**shown, "seconds": seconds}
                write(setting, path)
        yield f"{name}: {found['ended']} after {seconds} s"


def _within(run: Callable[[Setting], Part], setting: Setting, seconds: float) -> Part:
    """What a part finds within its time; `ended` says how it ended."""
    found: Mapping[str, Any] = {}
    ended, until = FINISHED, time.monotonic() + seconds
    if seconds <= 0:
        yield {"ended": "left out: no time"}
        return
    try:
        for found in run(setting):
            yield {**found, "ended": "interrupted"}
            if time.monotonic() > until:
                ended = f"out of time: it had {seconds:.0f} s"
                break
    except Exception as error:
        ended = measure.failure(error)
    free_memory()
    yield {**found, "ended": ended}


def _with_shares(found: Mapping[str, Any], top: Mapping[str, Any] | None) -> dict[str, Any]:
    """The rows with the share of the ceiling at which their tokens pass the linear layers."""
    if not top or "flop_per_token" not in found:
        return dict(found)
    most = top["flop_per_second"]["median"]
    rows = [
        row
        | (
            {
                "share_of_ceiling": row["tokens_per_second"]["median"]
                * row.get("flop_per_token", found["flop_per_token"])
                / most
            }
            if "tokens_per_second" in row
            else {}
        )
        for row in found["rows"]
    ]
    return {**found, "rows": rows}


def write(setting: Setting, path: Path) -> None:
    """Write all parts of this card."""
    measure.write({"name": path.stem, "parts": setting.done}, path.parent)


def card() -> str:
    """A file name for the GPU of this machine."""
    hardware = measure.hardware()
    return re.sub(r"\W+", "-", str(hardware.get("gpu", "cpu")).lower()).strip("-")
