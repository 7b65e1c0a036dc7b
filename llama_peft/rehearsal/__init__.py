"""Rehearses a recipe on a GPU that is not here: the product's own code on tensors without data.

The base has its true shape, and the loader, Trainer and decoding run as they would on the card. So
a wrong device or type, a wait for the GPU or too much memory shows on any machine with a CPU and a
compiler. What has no values is not seen: time, losses, and the allocator's fragmentation.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.errors import UserError
from llama_peft.rehearsal.device import fake_cuda
from llama_peft.rehearsal.report import Fault, Outcome, Rehearsal
from llama_peft.system import files
from llama_peft.system.terminal import complain

REQUEST, OUTCOME = "request.json", "outcome.json"
"""The files through which a process is asked, and answers."""
__all__ = ["Fault", "Outcome", "Rehearsal", "Request", "compiled", "rehearse"]


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
    shim: str = ""
    """The library that `compiled` yields."""
    traceback: bool = False
    """Whether the process prints the traceback of a fault."""


@contextmanager
def compiled() -> Iterator[str]:
    """Compile what every rehearsal loads, and yield its path for `Request.shim`.

    Raises UserError if this machine cannot rehearse.
    """
    with TemporaryDirectory(prefix="llama-peft-") as folder:
        yield str(fake_cuda.compile_shim(Path(folder)))


def rehearse(request: Request) -> Rehearsal | Fault:
    """Rehearse in a process of its own. Raises UserError for a user's mistake."""
    from pydantic import TypeAdapter

    with TemporaryDirectory(prefix="llama-peft-") as name:
        folder = Path(name)
        files.write_text(folder, REQUEST, json.dumps(asdict(request)))
        done = _child(folder)
        written = folder / OUTCOME
        if not written.is_file():
            last = next(reversed(done.stderr.strip().splitlines()), "")
            ended = f"it ended with code {done.returncode} without a result; its last line: {last}"
            return Fault(stage="the process of the rehearsal", where=request.recipe, message=ended)
        outcome = TypeAdapter(Outcome).validate_json(written.read_bytes())
    if request.traceback:
        complain(*done.stderr.splitlines())
    if outcome.mistake:
        raise UserError(*outcome.mistake)
    found = outcome.rehearsal or outcome.fault
    assert found is not None
    return found


def _child(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the process. Its modules come from where ours do, and never from the working folder."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.setdefault("OMP_NUM_THREADS", "1")
    words = [sys.executable, "-P", "-m", "llama_peft.rehearsal.child", str(folder)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace")
