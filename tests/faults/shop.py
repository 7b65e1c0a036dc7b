"""The place where faults are inflicted: commands in forked processes, and undisturbed runs to
compare with.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.training import callbacks, checkpoints
from llama_peft.training.trainer import SteadyTrainer
from tests.support import forked, small

LIMIT_SECONDS = 120
STEPS = 7
"""The last step lies in the middle of an epoch."""
KINDS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "classification + LoRA": ("classification", {"r": 2}),
    "classification head": ("classification", None),
    "span + LoRA": ("extractive_qa", {"r": 2}),
    "generative + LoRA": ("generative_qa", {"r": 2}),
}


class Seen(NamedTuple):
    """The outcome of a fault."""

    verdict: str
    """right, lost, wrong, traceback; of a stranger's files also harm, and late for a command that
    did not end within its limit.
    """
    message: str = ""
    """The message to the user."""


class Done(NamedTuple):
    """A finished command: its exit code (if negative, the signal that killed it), and everything
    that it printed.
    """

    code: int
    text: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        told = [i for i, line in enumerate(lines) if line.startswith(("error: ", "stopped; "))]
        return "\n".join(lines[told[-1] :]) if told else (lines or [""])[-1]


class Fault(NamedTuple):
    """One thing that goes wrong. `inflict` gets a folder of its own."""

    category: str
    name: str
    inflict: "Callable[[Shop, Path], Seen]"
    cheap: bool = True
    """Whether the test suite inflicts it too."""


Hook = Callable[[], object]


@dataclass
class Shop:
    """A small base, and one undisturbed run of each kind, made when it is first asked for."""

    root: Path
    base: Path = field(init=False)
    _references: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = small.save_base(self.root / "base")

    def recipe(self, kind: str, folder: Path, base: Path | None = None, **sections: Any) -> Recipe:
        """A recipe that trains into `folder`, with a sealed checkpoint every other step."""
        task, lora = KINDS[kind]
        train = {
            "output_dir": str(folder / "runs" / "run"),
            "max_steps": STEPS,
            "eval_steps": 2,
            "per_device_train_batch_size": 2 if task == "generative_qa" else 8,
            "save_total_limit": 2,
            "max_length": 320,
            "packing": "prefix_tree" if task == "generative_qa" else "none",
            # A step too many would change the weights.
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.5},
        }
        sections["train"] = train | sections.get("train", {})
        sections["eval"] = {"max_new_tokens": 4} | sections.get("eval", {})
        return small.make_recipe(task, base or self.base, lora=lora, **sections)

    def write(self, recipe: Recipe, folder: Path) -> list[str]:
        """The command that trains the recipe."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.yaml"
        path.write_text(dump_recipe(recipe), "utf-8")
        return ["train", str(path)]

    def reference(self, kind: str) -> Path:
        """The folder of a finished run of the kind."""
        if kind not in self._references:
            folder = self.root / kind.replace(" ", "-")
            done = self.run(self.write(self.recipe(kind, folder), folder))
            assert done.code == 0, done.text
            self._references[kind] = folder / "runs" / "run"
        return self._references[kind]

    def tuned(self, kind: str) -> Path:
        """The reference's evaluation."""
        output = self.reference(kind) / "tuned"
        if not (output / "results.json").is_file():
            done = self.run(["run", "--model", str(output.parent)], program="eval")
            assert done.code == 0, done.text
        return output

    def start(
        self, words: Sequence[str], log: Path, program: str = "llama_peft", hook: Hook | None = None
    ) -> int:
        """Begin a command in a child; returns its process id."""
        return forked.start(words, log, program, hook)

    def wait(self, child: int, log: Path, seconds: float = LIMIT_SECONDS) -> Done:
        """Wait for a command. One that hangs is killed, with the children of its session, and no
        verdict calls that right.
        """
        limit = time.monotonic() + seconds
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            if time.monotonic() > limit:
                with suppress(ProcessLookupError):  # unless the command has no session of its own
                    os.killpg(child, signal.SIGKILL)
                killed(child)
                return Done(-99, f"Traceback: still running after {seconds:g} s")
            time.sleep(0.005)
        return Done(os.waitstatus_to_exitcode(status), log.read_text("utf-8", "replace"))

    def run(
        self, words: Sequence[str], program: str = "llama_peft", hook: Hook | None = None
    ) -> Done:
        """A command from start to end."""
        log = self.root / f"log-{os.getpid()}"
        return self.wait(self.start(words, log, program, hook), log)

    # Verdicts

    def refused(self, done: Done, folder: Path | None = None) -> Seen:
        """Right if one line told the user, and nothing was made from the bad input."""
        if "Traceback" in done.text or done.code not in (0, 2):
            return Seen("traceback", f"exit code {done.code}: {done.text[-400:]}")
        if done.code == 0 or not done.last_line.startswith("error: "):
            return Seen("wrong", f"accepted: {done.last_line}")
        made = [*folder.rglob("checkpoint-*"), *folder.rglob("training.json")] if folder else []
        return Seen("wrong" if made else "right", done.last_line)

    def undone(self, kind: str, words: list[str], folder: Path, told: str = "") -> Seen:
        """Right if the same command, given again, ends with the bits of an undisturbed run."""
        done = self.run(words)
        if done.code != 0:
            return Seen("traceback" if "Traceback" in done.text else "lost", done.last_line)
        return Seen("right" if self.same(kind, folder) else "wrong", told or done.last_line)

    def evaluated(
        self,
        words: Sequence[str],
        output: Path,
        expected: Path,
        told: str = "the same predictions",
        hook: Hook | None = None,
    ) -> Seen:
        """Right if an evaluation into `output` writes the predictions of an undisturbed one."""
        done = self.run(words, "eval", hook)
        if done.code != 0:
            return Seen("traceback" if "Traceback" in done.text else "lost", done.last_line)
        both = [(folder / "predictions.jsonl").read_bytes() for folder in (output, expected)]
        return Seen("right" if both[0] == both[1] else "wrong", told)

    def same(self, kind: str, folder: Path) -> bool:
        """Whether a finished run exports the reference's bits."""
        return exported(folder / "runs" / "run") == exported(self.reference(kind))

    def copy(self, kind: str, folder: Path) -> tuple[list[str], Path]:
        """A copy of the reference as it was before its export: its command and its run folder,
        ready to continue.
        """
        shutil.copytree(self.reference(kind), folder / "runs" / "run")
        run = folder / "runs" / "run"
        (run / "training.json").unlink()
        shutil.rmtree(run / "adapter", ignore_errors=True)
        (run / "head.safetensors").unlink(missing_ok=True)
        return self.write(self.recipe(kind, folder), folder), run


def exported(run: Path) -> dict[str, bytes]:
    """The files of the weights that a run exports, which may come from an early step, and of the
    state that it ends with.
    """
    files = [*run.glob("adapter/*.safetensors"), *run.glob("head.safetensors")]
    assert files, f"{run} holds no export"
    last = run / f"checkpoints/checkpoint-{STEPS}"
    files += [path for path in last.iterdir() if path.name in LAST_STATE]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


LAST_STATE = ("adapter_model.safetensors", "model.safetensors", "optimizer.pt", "scheduler.pt")


def newest_step(run: Path) -> int:
    """The step of the newest sealed checkpoint, 0 for none."""
    level = logging.getLogger("llama_peft").level
    logging.getLogger("llama_peft").setLevel(logging.ERROR)
    found = checkpoints.newest_sealed(run / "checkpoints")
    logging.getLogger("llama_peft").setLevel(level)
    return int(found.name.split("-")[1]) if found else 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit turned": lambda path: path.write_bytes(turned(path.read_bytes())),
}


def turned(raw: bytes) -> bytes:
    """The bytes with one bit in the middle changed."""
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :] if raw else b"\x01"


@dataclass
class DeadlyCalls:
    """In a child: dies by kill -9 right before call `number` that changes the disk; if that is 0,
    counts the calls.
    """

    number: int
    counted: Path
    sealed: Path | None = None
    """A file for the steps of the checkpoints that were sealed before the death, one on each line.
    """

    def __call__(self) -> None:
        calls = 0
        write_seal = callbacks.seal

        def told(folder: Path, names: Sequence[str]) -> None:
            write_seal(folder, names)
            if self.sealed is not None and folder.name.startswith("checkpoint-"):
                with self.sealed.open("a") as file:
                    file.write(f"{folder.name[11:]}\n")

        callbacks.seal = told

        def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if self.number == 0:
                    self.counted.write_text(str(calls))
                elif calls == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return call

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, deadly(getattr(os, name)))


@dataclass
class Stays:
    """In a child: its first step begins, and does not end before `go_on`."""

    folder: Path

    def __call__(self) -> None:
        original = SteadyTrainer.training_step

        def step(trainer: Any, *args: Any) -> Any:
            (self.folder / "there").touch()
            forked.until((self.folder / "go on").exists)
            return original(trainer, *args)

        SteadyTrainer.training_step = step

    def is_there(self) -> bool:
        return (self.folder / "there").exists()

    def go_on(self) -> None:
        (self.folder / "go on").touch()


def even(count: int, at_most: int) -> Iterator[int]:
    """At most `at_most` of the numbers 1 to `count`, evenly spread."""
    yield from sorted({1 + round(i * (count - 1) / max(1, at_most - 1)) for i in range(at_most)})


def killed(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
