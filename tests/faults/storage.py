"""Files that are missing, cut, empty or changed; disks that are full or read-only; folders that
vanish.
"""

import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llama_peft.run_folder.layout import DATA_SUMS, THRESHOLD

from .shop import DAMAGES, KINDS, STEPS, Done, Fault, Seen, Shop, newest_step

FILES = {
    "classification + LoRA": (
        "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth",
        "scheduler.pt", "manifest.json", "trainer_state.json", "training_args.bin",
    ),
    "classification head": (
        "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "manifest.json",
        "trainer_state.json", "training_args.bin",
    ),
}  # fmt: skip


def faults(full: bool) -> Iterator[Fault]:
    for kind, names in FILES.items():
        for place, name in enumerate(names):
            for number, damage in enumerate(DAMAGES):
                yield _checkpoint(kind, name, damage, full or (place + number) % 7 == 0)
    for kind, names in EXPORTS.items():
        for name in names:
            for damage in DAMAGES:
                yield _export(kind, name, damage, full or damage == "one bit turned")
    for damage in DAMAGES:
        yield _threshold(damage)
        yield _features(damage)
        yield _partial(damage)
    for kind in KINDS:
        for share in (0, 0.05, 0.2, 0.5, 0.8, 0.99):
            yield _full_disk(kind, share, full or (kind, share) == ("classification + LoRA", 0.5))
    yield _full_disk_evaluation(3_000)
    yield _full_disk_merge()
    for what in ("run folder", "checkpoints"):
        yield _vanished(what)
    yield _read_only_start("runs", "classification + LoRA")
    yield _read_only_start("runs/features", "classification head")
    yield _read_only_later()
    yield _read_only_evaluation()
    yield _read_only_run()
    yield _no_folder()


def _checkpoint(kind: str, name: str, damage: str, cheap: bool) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        words, run = shop.copy(kind, folder)
        path = run / "checkpoints" / f"checkpoint-{STEPS}" / name
        DAMAGES[damage](path)
        return shop.undone(kind, words, folder, "passes it over")

    return Fault("storage", f"checkpoint of {kind}: {name} {damage}", inflict, cheap)


EXPORTS = {
    "classification + LoRA": (
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "recipe.yaml",
        "training.json", "split.json", DATA_SUMS,
    ),
    "classification head": ("head.safetensors",),
}  # fmt: skip


def _export(kind: str, name: str, damage: str, mended: bool) -> Fault:
    """mended: whether the run is trained again too, which repairs it."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        run = folder / "runs/run"
        shutil.copytree(shop.reference(kind), run)
        DAMAGES[damage](run / name)
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        seen = shop.refused(shop.run(words, program="eval"))
        if seen.verdict != "right" or not mended:
            return seen
        return shop.undone(
            kind, shop.write(shop.recipe(kind, folder), folder), folder, seen.message
        )

    return Fault("storage", f"run of {kind}: {name} {damage}", inflict)


def _threshold(damage: str) -> Fault:
    """The threshold of a span run is fitted again."""
    kind = "span + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected, run = shop.tuned(kind), folder / "run"
        shutil.copytree(shop.reference(kind), run)
        DAMAGES[damage](run / THRESHOLD)
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        return shop.evaluated(words, folder / "out", expected, "fitted again")

    return Fault("storage", f"run of {kind}: {THRESHOLD} {damage}", inflict)


def _features(damage: str) -> Fault:
    kind = "classification head"

    def inflict(shop: Shop, folder: Path) -> Seen:
        cache = shop.reference(kind).parent / "features"
        shutil.copytree(cache, folder / "runs/features")
        path = sorted((folder / "runs/features").rglob("states-*"))[0]
        DAMAGES[damage](path)
        return shop.undone(kind, shop.write(shop.recipe(kind, folder), folder), folder)

    return Fault("storage", f"cached features {damage}", inflict)


def _partial(damage: str) -> Fault:
    """The predictions of an evaluation that was interrupted."""
    kind = "span + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.tuned(kind)
        words = ["run", "--model", str(expected.parent), "--output", str(folder / "out")]
        cut = folder / "out" / "predictions.partial.jsonl"

        def die_late() -> None:
            import eval.harness

            def finish(*_: object, **__: object) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            eval.harness.finish = finish  # type: ignore[assignment]

        shop.run(words, program="eval", hook=die_late)
        DAMAGES[damage](cut)
        return shop.evaluated(words, folder / "out", expected, "predicted again")

    return Fault("storage", f"partial predictions {damage}", inflict)


def _on_full_disk(
    shop: Shop, words: Sequence[str], folder: Path, size: int, program: str = "llama_peft"
) -> Done:
    """A command whose files cannot grow beyond `size` bytes: writing fails in the middle, as on a
    full disk.

    What it prints goes through a pipe, which has no size.
    """
    reading, writing = os.pipe()

    def limit() -> None:
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        sys.stdout = sys.stderr = os.fdopen(os.dup(writing), "w", buffering=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    log = folder / "log"
    child = shop.start(words, log, program, limit)
    os.close(writing)
    code = shop.wait(child, log).code
    with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
        return Done(code, pipe.read())


def _full_disk_evaluation(size: int) -> Fault:
    kind = "span + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.tuned(kind)
        words = ["run", "--model", str(expected.parent), "--output", str(folder / "out")]
        seen = shop.refused(_on_full_disk(shop, words, folder, size, "eval"))
        if seen.verdict != "right":
            return seen
        return shop.evaluated(words, folder / "out", expected, seen.message)

    return Fault("storage", f"disk full at {size} bytes a file: evaluation", inflict)


def _full_disk_merge() -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        run = shop.reference("classification + LoRA")
        words = ["merge", str(run), "--output", str(folder / "merged")]
        seen = shop.refused(_on_full_disk(shop, words, folder, 20_000))
        left = [path for path in folder.iterdir() if path.name != "log"]
        return Seen("wrong", f"left behind: {left}") if left else seen

    return Fault("storage", "disk full at 20000 bytes a file: merge", inflict)


def _full_disk(kind: str, share: float, cheap: bool) -> Fault:
    """share: the part of the run's largest file that fits."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        made = shop.reference(kind).parent.rglob("*")
        largest = max(path.stat().st_size for path in made if path.is_file())
        words = shop.write(shop.recipe(kind, folder), folder)
        seen = shop.refused(_on_full_disk(shop, words, folder, max(1, int(share * largest))))
        return seen if seen.verdict != "right" else shop.undone(kind, words, folder, seen.message)

    return Fault("storage", f"room for {share:.0%} of the largest file: {kind}", inflict, cheap)


def _vanished(what: str) -> Fault:
    """Somebody removes the folder while the training runs."""
    kind = "classification + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        shop.reference(kind)
        run = folder / "runs/run"

        def hook() -> None:
            from llama_peft.training.callbacks import SealCheckpoints

            original = SealCheckpoints.on_save

            def on_save(
                self: object, args: object, state: object, *rest: object, **kw: object
            ) -> None:
                if state.global_step == 4:  # type: ignore[attr-defined]
                    shutil.rmtree(run if what == "run folder" else run / "checkpoints")
                original(self, args, state, *rest, **kw)  # type: ignore[arg-type]

            SealCheckpoints.on_save = on_save  # type: ignore[assignment,method-assign]

        words = shop.write(shop.recipe(kind, folder), folder)
        done = shop.run(words, hook=hook)
        if "Traceback" in done.text:
            return Seen("traceback", done.text[-600:])
        return shop.undone(kind, words, folder, done.last_line)

    return Fault("storage", f"{what} vanishes", inflict)


READ_ONLY, USUAL = 0o555, 0o755


def _no_override() -> None:
    """A hook that makes root respect the modes of folders too; this is possible on Linux only."""
    if sys.platform != "linux":
        return
    version, dac_override = 0x20080522, 1 << 1
    header, sets = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    sets[0] &= ~dac_override
    assert libc.capset(header, sets) == 0


@contextmanager
def _only_to_read(place: Path) -> Iterator[None]:
    place.chmod(READ_ONLY)
    try:
        yield
    finally:
        place.chmod(USUAL)


def _read_only_start(name: str, kind: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        shop.reference(kind)
        words = shop.write(shop.recipe(kind, folder), folder)
        place = folder / name
        place.mkdir(parents=True)
        with _only_to_read(place):
            seen = shop.refused(shop.run(words, hook=_no_override), folder)
        return seen if seen.verdict != "right" else shop.undone(kind, words, folder, seen.message)

    return Fault("storage", f"{name} is read-only from the start", inflict)


def _read_only_later() -> Fault:
    """The disk is mounted again as read-only, as after an error, while the training runs."""
    kind = "classification + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        shop.reference(kind)
        run = folder / "runs/run"
        places = (run, run / "checkpoints")

        def hook() -> None:
            from llama_peft.training.callbacks import SealCheckpoints

            _no_override()
            original = SealCheckpoints.on_save

            def on_save(
                self: object, args: object, state: object, *rest: object, **kw: object
            ) -> None:
                original(self, args, state, *rest, **kw)  # type: ignore[arg-type]
                if state.global_step == 4:  # type: ignore[attr-defined]
                    for place in places:
                        place.chmod(READ_ONLY)

            SealCheckpoints.on_save = on_save  # type: ignore[assignment,method-assign]

        words = shop.write(shop.recipe(kind, folder), folder)
        done = shop.run(words, hook=hook)
        for place in places:
            place.chmod(USUAL)
        if newest_step(run) != 4:
            return Seen("lost", f"step 4 was sealed, {newest_step(run)} is left")
        if done.code != 2 or not done.last_line.startswith("error: "):
            return Seen("traceback" if "Traceback" in done.text else "wrong", done.text[-600:])
        return shop.undone(kind, words, folder, done.last_line)

    return Fault("storage", "run folder becomes read-only", inflict)


def _read_only_evaluation() -> Fault:
    kind = "span + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.tuned(kind)
        out = folder / "out"
        out.mkdir(parents=True)
        words = ["run", "--model", str(expected.parent), "--output", str(out)]
        with _only_to_read(out):
            seen = shop.refused(shop.run(words, "eval", _no_override))
        if seen.verdict != "right":
            return seen
        return shop.evaluated(words, folder / "out", expected, seen.message)

    return Fault("storage", "results folder is read-only", inflict)


def _read_only_run() -> Fault:
    """A run in a read-only folder, as of a colleague, is evaluated into another folder."""
    kind = "span + LoRA"

    def inflict(shop: Shop, folder: Path) -> Seen:
        expected = shop.tuned(kind)
        run = folder / "run"
        shutil.copytree(shop.reference(kind), run)
        (run / THRESHOLD).unlink()
        words = ["run", "--model", str(run), "--output", str(folder / "out")]
        with _only_to_read(run):
            done = shop.run(words, "eval", _no_override)
        told = [line for line in done.text.splitlines() if "threshold is not kept" in line]
        if not told or (run / THRESHOLD).exists():
            return Seen("wrong", done.last_line)
        return shop.evaluated(words, folder / "out", expected, told[0])

    return Fault("storage", "run folder that is read-only is evaluated", inflict)


def _no_folder() -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        kind = "classification + LoRA"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "runs").write_text("a file where a folder should be")
        recipe = shop.recipe(kind, folder)
        return shop.refused(shop.run(shop.write(recipe, folder)))

    return Fault(
        "storage", f"a file in the run folder's place ({errno.errorcode[errno.ENOTDIR]})", inflict
    )
