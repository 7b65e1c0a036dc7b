"""Death of a whole walk, `llama-peft run`, at random moments and right before calls that change the disk:
the same command continues at any rung, and ends as an undisturbed walk does.
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .deaths import killed_alive
from .shop import DeadlyCalls, Fault, Seen, Shop, even

TASKS = ("classification + LoRA", "generative + LoRA")
_RUNGS: dict[str, dict[str, Any]] = {
    TASKS[0]: {"rungs": ["majority", "tf-idf", "zero-shot", "head", "tuned"], "seeds": [42, 1]},
    TASKS[1]: {"rungs": ["no-answer", "bm25", "zero-shot", "tuned"], "sizes": [12]},
}
_LENGTHS: dict[str, float] = {}


def faults(full: bool) -> Iterator[Fault]:
    for kind in TASKS if full else TASKS[:1]:
        for chain in range(4 if full else 1):
            yield from _random_chain(kind, chain, 5 if full else 2)
        if full:
            yield from _at_writes(kind, 20)


def _words(shop: Shop, kind: str, folder: Path) -> list[str]:
    """The command that climbs the ladder of a kind."""
    _, *rest = shop.write(shop.recipe(kind, folder, ladder=_RUNGS[kind]), folder)
    return ["run", *rest]


def _reference(shop: Shop, kind: str) -> Path:
    """The run folder of an undisturbed walk."""
    folder = shop.root / f"ladder of {kind}"
    if kind not in _LENGTHS:
        started = time.monotonic()
        done = shop.run(_words(shop, kind, folder))
        assert done.code == 0, done.text
        _LENGTHS[kind] = time.monotonic() - started
    return folder / "runs/run"


def _left(run: Path) -> dict[str, bytes]:
    """What a walk must leave: every prediction, and every weight."""
    names = ("predictions.jsonl", "adapter_model.safetensors", "head.safetensors")
    found = (path for name in names for path in run.rglob(name) if "checkpoints" not in path.parts)
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def _undone(shop: Shop, kind: str, folder: Path, message: str) -> Seen:
    """Whether the same command finishes the walk as if nothing had happened."""
    expected = _left(_reference(shop, kind))
    done = shop.run(_words(shop, kind, folder))
    if "Traceback" in done.text:
        return Seen("traceback", done.text[-300:])
    if done.code != 0:
        return Seen("lost", done.last_line)
    found = _left(folder / "runs/run")
    other = sorted(name for name in expected if expected[name] != found.get(name))
    return Seen("wrong", f"{other[0]} differs") if other else Seen("right", message)


def _random_chain(kind: str, chain: int, kills: int) -> Iterator[Fault]:
    rng = random.Random(f"ladder {kind} {chain}")

    def inflict(shop: Shop, number: int) -> Seen:
        _reference(shop, kind)
        folder = shop.root / f"climb {kind} {chain}"
        folder.mkdir(exist_ok=True)
        killed_alive(
            lambda: shop.start(_words(shop, kind, folder), folder / "log"),
            lambda: rng.uniform(0.05, 0.5) * _LENGTHS[kind],
            lambda: shutil.rmtree(folder / "runs"),
        )
        if number < kills - 1:
            return Seen("right", "killed")
        return _undone(shop, kind, folder, "goes on")

    for number in range(kills):
        yield Fault(
            "death in a walk",
            f"{kind}, walk {chain + 1}, kill {number + 1}",
            lambda shop, _, number=number: inflict(shop, number),
        )


def _at_writes(kind: str, at_most: int) -> Iterator[Fault]:
    def inflict(shop: Shop, folder: Path, place: int) -> Seen:
        counted = shop.root / f"calls of the ladder of {kind}"
        if not counted.is_file():
            words = _words(shop, kind, shop.root / f"counting the ladder of {kind}")
            shop.run(words, hook=DeadlyCalls(0, counted))
        number = list(even(int(counted.read_text()), at_most))[place]
        done = shop.run(_words(shop, kind, folder), hook=DeadlyCalls(number, counted))
        if done.code != -signal.SIGKILL:
            return Seen("wrong", f"it did not die, but exited with {done.code}")
        return _undone(shop, kind, folder, f"died before call {number}")

    for place in range(at_most):
        yield Fault(
            "death in a walk",
            f"{kind}, place {place + 1}",
            lambda shop, folder, place=place: inflict(shop, folder, place),
        )
