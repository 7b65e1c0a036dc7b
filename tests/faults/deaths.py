"""Death by kill -9, at random moments and right before each call that changes the disk; and signals
that ask for an end.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_peft.system.processes import launch
from tests.support import forked

from .shop import KINDS, STEPS, DeadlyCalls, Fault, Seen, Shop, even, exported, killed, newest_step

FEW = ("classification + LoRA", "generative + LoRA")


def faults(full: bool) -> Iterator[Fault]:
    chains = 10 if full else 1
    for kind in KINDS if full else FEW:
        for chain in range(chains):
            yield from _random_chain(kind, chain, 5)
    for number in range(10 if full else 1):
        yield from _evaluation_chain("generative + LoRA" if number % 2 else "span + LoRA", number)
    for kind in KINDS if full else FEW:
        yield from _at_writes(kind, 24 if full else 6)
    yield from _evaluation_at_writes(10 if full else 1)
    for kind in KINDS if full else FEW[:1]:
        for number in (signal.SIGINT, signal.SIGTERM) if full else (signal.SIGTERM,):
            for lines in (1, 4) if full else (1,):
                yield _signal(kind, number, lines)
        yield _twice(kind)
    for shared in ([], ["--share-base"]):
        yield from _rank_chain(20 if full else 1, shared)
    if full:
        for number in (signal.SIGINT, signal.SIGTERM):
            yield _signal_in_evaluation(number)


def _random_chain(kind: str, chain: int, kills: int) -> Iterator[Fault]:
    """Several kills of one run, which continues after each; after the last one it runs to its end."""
    rng = random.Random(f"{kind} {chain}")

    def inflict(shop: Shop, _: Path, number: int) -> Seen:
        folder = shop.root / f"chain {kind} {chain}"
        words, run = shop.write(shop.recipe(kind, folder), folder), folder / "runs/run"
        shop.reference(kind)
        before = newest_step(run)

        def seconds() -> float:
            """The rest of a run takes less time than all of it, but every start has its beginning
            and its end.
            """
            return (
                rng.uniform(0.05, 1.0) * _length(shop, kind) * (1 - 0.6 * newest_step(run) / STEPS)
            )

        def start_over() -> None:
            nonlocal before
            assert shop.same(kind, folder)
            shutil.rmtree(run)
            before = 0

        killed_alive(lambda: shop.start(words, folder / "log"), seconds, start_over)
        after = newest_step(run)
        if after < before:
            return Seen("lost", f"step {before} was sealed, {after} is left")
        if number == kills - 1:
            return shop.undone(kind, words, folder, f"goes on from step {after}")
        return Seen("right", f"step {after} is sealed")

    for number in range(kills):
        yield Fault(
            "death at random",
            f"{kind}, run {chain + 1}, kill {number + 1}",
            lambda shop, folder, number=number: inflict(shop, folder, number),
        )


def killed_alive(
    start: Callable[[], int], seconds: Callable[[], float], start_over: Callable[[], None]
) -> None:
    """Kill a command at its work. One that finished before its time is started again, and killed
    earlier.
    """
    share = 1.0
    while True:
        child = start()
        time.sleep(share * seconds())
        if forked.is_running(child):
            return killed(child)
        share /= 2
        start_over()


_LENGTHS: dict[str, float] = {}


def _length(shop: Shop, kind: str) -> float:
    """The seconds that an undisturbed run takes."""
    if kind not in _LENGTHS:
        folder = shop.root / f"timed {kind}"
        words = shop.write(shop.recipe(kind, folder), folder)
        started = time.monotonic()
        assert shop.run(words).code == 0
        _LENGTHS[kind] = time.monotonic() - started
    return _LENGTHS[kind]


def _evaluation_chain(kind: str, chain: int) -> Iterator[Fault]:
    rng = random.Random(f"evaluation {kind} {chain}")
    kills = 5

    def inflict(shop: Shop, number: int) -> Seen:
        expected = shop.tuned(kind)
        output = shop.root / f"evaluation {kind} {chain}"
        words = ["run", "--model", str(expected.parent), "--output", str(output)]
        if "evaluation" not in _LENGTHS:
            started = time.monotonic()
            shop.run([*words[:-1], str(output) + " timed"], program="eval")
            _LENGTHS["evaluation"] = time.monotonic() - started
        killed_alive(
            lambda: shop.start(words, shop.root / "log", program="eval"),
            lambda: rng.uniform(0.2, 1.0) * _LENGTHS["evaluation"],
            lambda: shutil.rmtree(output),
        )
        if number < kills - 1:
            return Seen("right", "killed")
        return shop.evaluated(words, output, expected)

    for number in range(kills):
        yield Fault(
            "death at random",
            f"evaluation of {kind}, {chain + 1}, kill {number + 1}",
            lambda shop, _, number=number: inflict(shop, number),
        )


def _at_writes(kind: str, at_most: int) -> Iterator[Fault]:
    """A death before each of the calls that save, seal, rotate, cache and export, in a run that
    keeps one checkpoint.
    """
    few = {"save_total_limit": 1}

    def inflict(shop: Shop, folder: Path, place: int) -> Seen:
        counted = shop.root / f"calls {kind}"
        if not counted.is_file():
            other = shop.root / f"counting {kind}"
            words = shop.write(shop.recipe(kind, other, train=few), other)
            shop.run(words, hook=DeadlyCalls(0, counted))
        number = list(even(int(counted.read_text()), at_most))[place]
        words = shop.write(shop.recipe(kind, folder, train=few), folder)
        done = shop.run(words, hook=DeadlyCalls(number, counted, folder / "sealed"))
        if done.code != -signal.SIGKILL:
            return Seen("wrong", f"it did not die, but exited with {done.code}")
        sealed = folder / "sealed"
        newest = int(sealed.read_text().split()[-1]) if sealed.is_file() else 0
        left = newest_step(folder / "runs/run")
        if left < newest:
            return Seen("lost", f"step {newest} was sealed, {left} is left")
        return shop.undone(kind, words, folder, f"died before call {number}")

    for place in range(at_most):
        yield Fault(
            "death at a write",
            f"{kind}, place {place + 1}",
            lambda shop, folder, place=place: inflict(shop, folder, place),
        )


def _evaluation_at_writes(at_most: int) -> Iterator[Fault]:
    kind = "span + LoRA"

    def inflict(shop: Shop, folder: Path, place: int) -> Seen:
        expected = shop.tuned(kind)
        counted = shop.root / "calls evaluation"
        command = ["run", "--model", str(expected.parent), "--output"]
        if not counted.is_file():
            words = [*command, str(shop.root / "counted evaluation")]
            shop.run(words, program="eval", hook=DeadlyCalls(0, counted))
        number = list(even(int(counted.read_text()), at_most))[place]
        words = [*command, str(folder / "out")]
        done = shop.run(words, program="eval", hook=DeadlyCalls(number, counted))
        if done.code != -signal.SIGKILL:
            return Seen("wrong", f"it did not die, but exited with {done.code}")
        return shop.evaluated(words, folder / "out", expected)

    for place in range(at_most):
        yield Fault(
            "death at a write",
            f"evaluation, place {place + 1}",
            lambda shop, folder, place=place: inflict(shop, folder, place),
        )


def _rank_chain(kills: int, shared: list[str]) -> Iterator[Fault]:
    """Kills of one of two processes at random moments: the other one ends, and the run continues.

    shared: the word with which each process keeps only its part of the base, or none.
    """
    kind, rng = "classification + LoRA", random.Random(" ".join(["ranks", *shared]))
    half, name = {"per_device_train_batch_size": 4}, " ".join(["two processes", *shared])

    def command(shop: Shop, folder: Path) -> list[str]:
        recipe = shop.recipe(kind, folder, train=half)
        return [*shop.write(recipe, folder), "--processes", "2", *shared]

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.root / name
        if not expected.is_dir():
            started = time.monotonic()
            done = shop.run(command(shop, expected), hook=Ranks(expected / "pids"))
            assert done.code == 0, done.text
            _LENGTHS[name] = time.monotonic() - started
        words, ranks = command(shop, folder), Ranks(folder / "pids")
        number, seconds = rng.randrange(2), rng.uniform(0, 0.8) * _LENGTHS[name]
        while True:
            child = shop.start(words, folder / "log", hook=ranks)
            forked.until(lambda: forked.num_lines(ranks.pids) == 2)
            time.sleep(seconds)
            pids, began = list(map(int, ranks.pids.read_text().split())), time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(pids[number], signal.SIGKILL)
            done, seconds = shop.wait(child, folder / "log"), seconds / 2
            if done.code != 0:
                break
            shutil.rmtree(folder / "runs/run")  # it had ended before
        if time.monotonic() - began > 10:
            return Seen("late", f"it went on for {time.monotonic() - began:.0f} s")
        if any(Path(f"/proc/{pid}").exists() for pid in pids):
            return Seen("wrong", "a process is left")
        named = f"error: process {number} of the 2 "
        if done.code != 1 or not done.last_line.startswith(named) or "Traceback" in done.text:
            return Seen("wrong", f"exit code {done.code}: {done.text[-400:]}")
        run, step = folder / "runs/run", newest_step(folder / "runs/run")
        again = shop.run(words, hook=ranks)
        if again.code != 0:
            return Seen("lost", again.last_line)
        same = exported(run) == exported(expected / "runs/run")
        return Seen("right" if same else "wrong", f"from step {step}: {done.last_line}")

    for kill in range(kills):
        numbered = " ".join([f"kill {kill + 1}", *shared])
        yield Fault("death of one of two processes", numbered, inflict)


@dataclass
class Ranks:
    """In a child: `--processes` forks its processes, and writes their ids."""

    pids: Path

    def __call__(self) -> None:
        def begin(*given: Any) -> forked.Rank:
            rank = forked.Rank(*given)
            with self.pids.open("a") as file:
                file.write(f"{rank.pid}\n")
            return rank

        self.pids.parent.mkdir(exist_ok=True)
        self.pids.unlink(missing_ok=True)
        launch._start = begin  # type: ignore[assignment]


def _signal(kind: str, number: int, lines: int) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        shop.reference(kind)
        words = shop.write(shop.recipe(kind, folder), folder)
        child = shop.start(words, folder / "log")
        forked.until(lambda: forked.num_lines(folder / "runs/run/history.jsonl") >= lines)
        os.kill(child, number)
        done = shop.wait(child, folder / "log")
        if "Traceback" in done.text:
            return Seen("traceback", done.text[-300:])
        if done.code == 0:  # it came after the last step
            return Seen("right" if shop.same(kind, folder) else "wrong", "was finished")
        if done.code != 128 + number or "to continue: " not in done.last_line:
            return Seen("wrong", f"exit code {done.code}: {done.last_line}")
        return shop.undone(kind, words, folder, done.last_line)

    name = signal.Signals(number).name
    return Fault("signals", f"{name} to {kind} after {lines} lines", inflict)


def _twice(kind: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        shop.reference(kind)
        words = shop.write(shop.recipe(kind, folder), folder)
        child = shop.start(words, folder / "log")
        forked.until(lambda: forked.num_lines(folder / "runs/run/history.jsonl") >= 2)
        for _ in range(2):
            os.kill(child, signal.SIGINT)
            time.sleep(0.01)
        done = shop.wait(child, folder / "log")
        if "Traceback" in done.text or done.code not in (0, 130):
            return Seen("traceback", done.text[-300:])
        return shop.undone(kind, words, folder, done.last_line)

    return Fault("signals", f"Ctrl-C twice to {kind}", inflict)


def _signal_in_evaluation(number: int) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.tuned("generative + LoRA")
        words = ["run", "--model", str(expected.parent), "--output", str(folder / "out")]
        child = shop.start(words, folder / "log", program="eval")
        forked.until(lambda: (folder / "out/predictions.partial.jsonl").is_file())
        os.kill(child, number)
        done = shop.wait(child, folder / "log")
        if "Traceback" in done.text or done.code not in (0, 128 + number):
            return Seen("traceback", done.text[-300:])
        return shop.evaluated(words, folder / "out", expected)

    return Fault("signals", f"{signal.Signals(number).name} to an evaluation", inflict)
