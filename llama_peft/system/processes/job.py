"""Which process of a job this one is, and what all of them agree on.

torchrun, accelerate launch and `launch.py` beside this file say it in the same variables of the
environment. A job of one process needs none of them, and imports no library here.
"""

import glob
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from llama_peft.errors import Died, UserError
from llama_peft.system.files import write_text
from llama_peft.system.terminal import share

T = TypeVar("T")

LAUNCHER, MISTAKE = "LLAMA_PEFT_LAUNCHER", "LLAMA_PEFT_MISTAKE"
"""The process that started this one, and the file where it looks for a user's mistake."""
BESIDE = "LLAMA_PEFT_BESIDE"
"""How many processes, each with work of its own, share a device. This one is one of them."""
MEMORY = "LLAMA_PEFT_MEMORY"
"""The bytes that each of these may take: its share of what was free before the first one began."""
NAME = "LLAMA_PEFT_NAME"
"""The name that begins each line, if several runs share the terminal."""
SHARES_BASE = "LLAMA_PEFT_SHARES_BASE"
"""Whether each process keeps only its part of the base."""
_FSDP = "ACCELERATE_USE_FSDP"
_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
"""What accelerate launch asks for, by its variable. Their checkpoints are shards that cannot be sealed
here, they would mix the float32 head with the base's types, and a head alone hides its base.
"""
_TRUE = "1", "true", "yes"
_LONGEST_WAIT = timedelta(minutes=30)
"""For the other processes, as in Trainer: longer than any batch or checkpoint takes."""
_HELD_BACK = 3.0
"""Seconds for whoever started the processes to see that another one has died."""


def count() -> int:
    """Return how many processes the job has, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_here() -> int:
    """Return how many processes of the job share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this is the first process of the job, the one that writes and prints."""
    return rank() == 0


def shares_base() -> bool:
    """Return whether each of several processes keeps only its part of the base."""
    return count() > 1 and SHARES_BASE in os.environ


def share_base(processes: int) -> None:
    """Let each of so many processes, or of those of this job, keep only its part of the base."""
    if max(processes, count()) == 1:
        raise UserError(
            "--share-base: a single process has nobody to share with: add --processes 2"
        )
    os.environ[SHARES_BASE] = "true"


def sharers() -> int:
    """Return how many processes with work of their own share the device, this one included."""
    return int(os.environ.get(BESIDE, "1"))


def share_of_memory(free: int) -> int:
    """Return the bytes that this process may take of the device: what is free, if nobody shares it."""
    return int(os.environ.get(MEMORY, free))


@contextmanager
def as_one_of(settings: Mapping[str, str]) -> Iterator[None]:
    """Look at the machine as a process with these variables will."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def has_launcher() -> bool:
    """Return whether a command of ours started this process, and speaks for it."""
    return LAUNCHER in os.environ


def shares_work() -> bool:
    """Return whether a command of ours started this process for a share of one piece of work."""
    return has_launcher() and BESIDE not in os.environ


def numbered(place: Path, rank: int) -> Path:
    """Return where a process keeps its predictions; the first one at `place` itself."""
    return place.with_suffix(f".{rank}{place.suffix}") if rank else place


def numbered_files(place: Path) -> Iterator[Path]:
    """Yield the files that processes have left beside `place`, and `place`, if they are there."""
    for path in place.parent.glob(f"{glob.escape(place.stem)}*{place.suffix}"):
        middle = path.name.removeprefix(place.stem).removesuffix(place.suffix)
        if not middle or re.fullmatch(r"\.[0-9]+", middle):
            yield path


def join(use_cpu: bool) -> None:
    """Meet the other processes of the job. Raises UserError if a launch asks for what is not done here.

    A launch with FSDP shares out the base as `training/processes/shared_base.py` does.
    """
    for name, meaning in _REFUSED.items():
        if os.environ.get(name, "false").lower() in _TRUE:
            raise UserError(
                f"{name}: this launch asks for {meaning}, whose checkpoints are shards that cannot be "
                "sealed here: launch with --processes 2, and with --share-base if the base is large, or "
                "with recipes/accelerate/ddp.yaml or fsdp.yaml"
            )
    if os.environ.pop(_FSDP, "false").lower() in _TRUE:
        os.environ[SHARES_BASE] = "true"
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=use_cpu, timeout=_LONGEST_WAIT)


def leave() -> None:
    """Part from the other processes at the end. NCCL warns of a process that does not."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def wait() -> None:
    """Wait for all processes of the job."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def decided(choose: Callable[[], T]) -> T:
    """Return what the first process chooses, in every process.

    The others could look at a file or a clock at another moment, and would choose otherwise.
    """
    if count() == 1:
        return choose()
    from accelerate.utils import broadcast_object_list

    found = [choose() if is_main() else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def least(value: int) -> int:
    """Return the smallest value of all processes."""
    if count() == 1:
        return value
    from accelerate.utils import gather_object

    return min(gather_object([value]))


@contextmanager
def faults_held_back() -> Iterator[None]:
    """Hold a fault back for a moment, which has no cause of its own if another process has died.

    Whoever started the processes ends this one meanwhile, and names the other one. Under torchrun a
    mistake that all of them find is thus printed by the first one only. A process on another machine
    is named there; here nobody knows more than that it does not answer, so that raises Died.
    """
    try:
        yield
    except Exception as error:
        is_told = isinstance(error, UserError) and (is_main() or shares_work())
        if count() == 1 or is_told:
            raise
        time.sleep(_HELD_BACK)
        if not _is_of_others(error):
            raise
        raise Died(
            f"another process of this job does not answer ({' '.join(str(error).split())}); if it has "
            "ended, its own machine says how; sealed checkpoints are kept, and the same command, given "
            "again on every machine, continues"
        ) from error


def _is_of_others(error: Exception) -> bool:
    """Return whether a call to other processes has failed. gloo tells it by the place in its code only."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "/gloo/transport/" in str(error)


def tell_launcher(error: UserError) -> bool:
    """Leave a user's mistake to the process that started this one; return whether there is one."""
    if not has_launcher():
        return False
    place = Path(os.environ[MISTAKE])
    write_text(place.parent, place.name, json.dumps(error.args))
    return True


def follow_launcher() -> None:
    """Print as the process that started this one, and end when it has died: nobody else could do that."""
    if not has_launcher():
        return
    if name := os.environ.get(NAME):
        share(name)
    launcher = int(os.environ[LAUNCHER])

    def follow() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
