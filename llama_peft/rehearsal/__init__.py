"""Rehearses a recipe on a GPU that is not here: the product's own code on tensors without data.

The base has its true shape, and the loader, Trainer and decoding run as they would on the card. So
a wrong device or type, a wait for the GPU or too much memory shows on any machine with a CPU and a
compiler. What has no values is not seen: time, losses, and the allocator's fragmentation.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.errors import UserError
from llama_peft.rehearsal.device import fake_cuda
from llama_peft.rehearsal.report import Fault, Outcome, Rehearsal
from llama_peft.system import files
from llama_peft.system.terminal import complain

REQUEST, OUTCOME, ENDED, PRINTED = "request.json", "outcome.json", "ended", "printed"
"""The files through which a process is asked and answers, its exit code, and what it prints."""
__all__ = ["Fault", "Outcome", "Rehearsal", "Request", "rehearse"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is rehearsed."""

    recipe: str
    settings: tuple[str, ...] = ()
    """Settings in place of the recipe's, as section.key=value."""
    card: str = "4090"
    base: str | None = None
    """A folder with a config.json, or a name on the Hub, in place of the recipe's base."""
    tokenizer: str | None = None
    """A folder with the tokenizer that stands in for the base's."""
    traceback: bool = False
    """Whether the traceback of a fault is printed."""


def rehearse(requests: Sequence[Request], jobs: int = 1) -> list[Rehearsal | Fault]:
    """Rehearse each request in a process of its own, at most `jobs` at once.

    Raises UserError for a user's mistake, and if this machine cannot rehearse.
    """
    with TemporaryDirectory(prefix="llama-peft-") as name:
        shim = fake_cuda.compile_shim(Path(name))
        folders = [Path(name) / str(number) for number in range(len(requests))]
        for request, folder in zip(requests, folders, strict=True):
            folder.mkdir()
            files.write_text(folder, REQUEST, json.dumps(asdict(request)))
        last = _last_line(_run(shim, jobs, folders).stderr)
        return [_found(*each, last) for each in zip(requests, folders, strict=True)]


def _run(shim: Path, jobs: int, folders: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Run the process that becomes one for each folder.

    Its modules come from where ours do, and never from the working folder.
    """
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.setdefault("OMP_NUM_THREADS", "1")
    words = [sys.executable, "-P", "-m", "llama_peft.rehearsal.child"]
    words += [str(shim), str(jobs), *map(str, folders)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace")


def _found(request: Request, folder: Path, last: str) -> Rehearsal | Fault:
    """Return what a process has left in its folder.

    last: what the process that it came from printed last.
    """
    if not (folder / OUTCOME).is_file():
        if (folder / ENDED).is_file():
            code, last = (folder / ENDED).read_text("utf-8"), _last_line(_printed(folder))
            ended = f"it ended with code {code} without a result; its last line: {last}"
        else:
            ended = f"the libraries do not load as on a GPU: {last}"
        return Fault(stage="the process of the rehearsal", where=request.recipe, message=ended)
    from pydantic import TypeAdapter

    outcome = TypeAdapter(Outcome).validate_json((folder / OUTCOME).read_bytes())
    if request.traceback:
        complain(*_printed(folder).splitlines())
    if outcome.mistake:
        raise UserError(*outcome.mistake)
    found = outcome.rehearsal or outcome.fault
    assert found is not None
    return found


def _printed(folder: Path) -> str:
    return (folder / PRINTED).read_text("utf-8", errors="replace")


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "")
