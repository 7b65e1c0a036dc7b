"""One case: a stranger's or a user's file, one command, and one check that is the same for all.

A case is right if nothing outside its run was read or written, nothing of a stranger was executed,
the output can be printed, and the command either refused in one clear line or went on to the
result of an undisturbed run.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.constants import HF_HOME

from tests.faults.shop import Done, Fault, Hook, Seen, Shop

from .guard import Guard, changes, seal_of

LIMIT = 30.0
LORA, HEAD, SPAN, GENERATIVE = (
    "classification + LoRA", "classification head", "span + LoRA", "generative + LoRA",
)  # fmt: skip
SECRET = "hf_" + "doNotPrintThisToken" + "0" * 15
PRIVATE = "the private words of the user 4711"
"""Stands in every file of the guarded folder."""
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
_BAR = re.compile(r"\r *\r|\r(?=[^\r\n]*(?:%\||it/s|ex/s|\?ex|\?it))|(?<=\n)\r|\r(?=\n)")


@dataclass
class Scene:
    """The folder of a case: `outside` is guarded, everything else may be written to."""

    shop: Shop
    folder: Path
    hook: Hook | None = None
    around: AbstractContextManager[object] = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        (self.outside / "folder/checkpoint-6").mkdir(parents=True)
        for name in ("victim.txt", "folder/notes.txt", "folder/checkpoint-6/model.safetensors"):
            (self.outside / name).write_text(PRIVATE)

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def victim(self) -> Path:
        return self.outside / "victim.txt"

    @property
    def run(self) -> Path:
        return self.folder / "runs/run"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def finished(self, kind: str = LORA) -> Path:
        """A copy of a finished run."""
        return Path(shutil.copytree(self.shop.reference(kind), self.run))

    def unfinished(self, kind: str = LORA) -> list[str]:
        """A copy of a run before its export; returns the command that continues it."""
        words, _ = self.shop.copy(kind, self.folder)
        return words

    def again(self, kind: str = LORA, **sections: object) -> list[str]:
        """The command that trains a kind into the run folder."""
        return self.shop.write(self.shop.recipe(kind, self.folder, **sections), self.folder)


End = Callable[[Scene, Done], str]
"""What is wrong with the end of a command; "" if nothing is."""


class Plan(NamedTuple):
    """What a case does after it was set up."""

    words: list[str]
    program: str = "llama_peft"
    same: End | None = None
    """If given, the command may also go on, and this compares its result with an undisturbed one."""
    says: str = ""
    """A pattern that the line of a refusal must match."""
    goes_on: bool = False
    """Whether a refusal is wrong."""
    mine: tuple[Path, ...] = ()
    """Files inside the run that must stay as they are."""
    hidden: tuple[str, ...] = ()
    """Texts that the output must not hold."""


class Case(NamedTuple):
    name: str
    plan: Callable[[Scene], Plan]
    limit: float = LIMIT
    cheap: bool = False


def as_faults(cases: Iterator[Case]) -> Iterator[Fault]:
    for case in cases:
        yield Fault("stranger", case.name, partial(_inflict, case), case.cheap)


def _inflict(case: Case, shop: Shop, folder: Path) -> Seen:
    scene = Scene(shop, folder)
    plan = case.plan(scene)
    guarded = (scene.outside, *plan.mine)
    before = seal_of(*guarded)
    notes, log, temporary = (
        folder.with_name(folder.name + end) for end in (".notes", ".log", ".tmp")
    )
    temporary.mkdir()
    own = (folder.resolve(), temporary.resolve(), log.resolve(), Path(HF_HOME).resolve())
    guard = Guard(notes, own, scene.outside.resolve())

    def hook() -> None:
        tempfile.tempdir = str(temporary)
        if scene.hook is not None:
            scene.hook()
        guard()

    with scene.around:
        child = shop.start(plan.words, log, plan.program, hook)
        done = shop.wait(child, log, case.limit)
    raw = log.read_bytes().decode("utf-8", "replace")
    noted = notes.read_text().splitlines() if notes.exists() else ["the guard was not there"]
    harm = _harm(noted, changes(before, seal_of(*guarded)), raw, plan.hidden)
    seen = _verdict(scene, plan, done, case.limit, harm)
    if seen.verdict == "right":
        for path in (notes, log):
            path.unlink()
        shutil.rmtree(temporary)
    return seen


def _harm(noted: list[str], changed: list[str], raw: str, hidden: tuple[str, ...]) -> str:
    found = _UNPRINTABLE.search(_BAR.sub("", raw))
    secrets = [text for text in (PRIVATE, SECRET, *hidden) if text in raw]
    reasons = [
        *noted[:2],
        *(f"{path} is not as before" for path in changed[:2]),
        *(
            [f"printed {found[0]!r}: {raw[max(0, found.start() - 30) : found.end()]!r}"]
            if found
            else []
        ),
        *(f"printed {text!r}" for text in secrets),
    ]
    return "; ".join(reasons)


def _verdict(scene: Scene, plan: Plan, done: Done, limit: float, harm: str) -> Seen:
    told = done.last_line
    if harm:
        return Seen("harm", f"{harm} (exit code {done.code}: {told[-200:]})")
    if done.code == -99:
        return Seen("late", f"still running after {limit:g} s")
    if "Traceback" in done.text or done.code not in (0, 2):
        return Seen("traceback", f"exit code {done.code}: {done.text[-300:]}")
    if done.code == 0:
        wrong = "accepted" if plan.same is None else plan.same(scene, done)
        return Seen("wrong", f"{wrong}: {told}") if wrong else Seen("right", told)
    if not told.startswith("error: "):
        return Seen("wrong", f"not one line: {told[-300:]}")
    if plan.goes_on:
        return Seen("wrong", f"refused: {told}")
    if not re.search(plan.says, told):
        return Seen("wrong", f"unclear (it does not say {plan.says!r}): {told}")
    return Seen("right", told)


# How a command may go on


def goes_on(scene: Scene, done: Done) -> str:
    """Any end is right, as for a command that only shows something."""
    return ""


def trains(kind: str) -> End:
    """Right if the training ends with the bits of an undisturbed one."""
    return lambda scene, done: "" if scene.shop.same(kind, scene.folder) else "other weights"


def predicts(kind: str, output: str = "out") -> End:
    """Right if an evaluation writes the predictions of an undisturbed one."""

    def check(scene: Scene, done: Done) -> str:
        made, wanted = scene.folder / output, scene.shop.tuned(kind)
        if not (made / "predictions.jsonl").is_file():
            return "no predictions"
        both = [(place / "predictions.jsonl").read_bytes() for place in (made, wanted)]
        return "" if both[0] == both[1] else "other predictions"

    return check


def prints(words: list[str]) -> End:
    """Right if the output is that of the same command on an undisturbed run."""

    def check(scene: Scene, done: Done) -> str:
        return "" if done.last_line == scene.shop.run(words).last_line else "another output"

    return check
