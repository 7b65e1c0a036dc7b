"""Several measurements of a ladder at a time, each in one process of its own.

A small base gains little from more cores, and a GPU waits while the next kernels are prepared. The
processes take one measurement after the other, in the order of the plan, and meet in the run folder:
it holds the same in the end, whoever has measured what.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_peft.errors import UserError
from llama_peft.model.room import free_memory, has_gpu
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.ladder.rungs import Measurement
from llama_peft.run_folder.layout import RECIPE
from llama_peft.system.files import read_text, write_text
from llama_peft.system.lock import file_lock
from llama_peft.system.memory import count_gpus, gpu_kind
from llama_peft.system.processes import job
from llama_peft.system.processes.launch import launch_apart
from llama_peft.system.terminal import share, shared_name

log = logging.getLogger(__name__)

_NEXT, _CONTENT, _LOCK = "next", "content", "lock"


def check_jobs(jobs: int, processes: int, given: bool) -> None:
    """Raise UserError unless this command can make so many measurements at a time.

    given: whether there are rows from Python.
    """
    if given:
        raise UserError(
            f"--jobs {jobs}: rows from Python stay in the process that has them: write them to a file"
        )
    if max(job.count(), processes) > 1:
        raise UserError(
            f"--jobs {jobs}: a model that trains in several processes has the machine for itself: leave "
            "away --jobs or --processes, and torchrun or accelerate launch"
        )


def work_in(
    environments: Sequence[Mapping[str, str]],
    recipe: Recipe,
    content: str,
    fresh: bool,
    only: str | None,
) -> None:
    """Make the measurements of a ladder in as many processes as there are environments.

    content: the sum of the data, which each of them reads. Raises what `launch_apart` raises.
    """
    with TemporaryDirectory(prefix="llama-peft-") as place:
        folder = Path(place)
        write_text(folder, RECIPE, dump_recipe(recipe))
        write_text(folder, _CONTENT, content)
        write_text(folder, _NEXT, "0")
        words = ["job", str(folder / RECIPE), str(folder), *["--fresh"] * fresh]
        launch_apart([*words, *(["--only", only] if only else [])], environments)


def taken(place: Path, plan: Sequence[Measurement], content: str) -> Iterator[Measurement]:
    """Yield the next step of a plan that no job has taken, as long as there is one.

    place: a folder of all jobs. What is printed meanwhile begins with the number of the step. Raises
    UserError if the data have changed since the command was given.
    """
    if read_text(place, _CONTENT) != content:
        raise UserError("the data have changed since this command was given: give it again")
    own = shared_name()
    while True:
        with file_lock(place / _LOCK):
            number = int(read_text(place, _NEXT))
            write_text(place, _NEXT, str(number + 1))
        if number >= len(plan):
            return
        share(f"{own} {number + 1}/{len(plan)}".strip())
        log.info("%s", plan[number].name)
        yield plan[number]


def devices(recipe: Recipe, jobs: int) -> list[dict[str, str]]:
    """Return the environment of each job: its GPU, how many jobs share its device, and its share of the
    memory. One job alone needs none.
    """
    if jobs == 1:
        return [{}]
    count = count_gpus() if has_gpu(recipe) else 1
    beside = -(-jobs // count)
    share = {job.BESIDE: str(beside), job.MEMORY: str(free_memory(recipe) // beside)}
    if not has_gpu(recipe):
        return [share] * jobs
    variable = _visible()
    known = os.environ.get(variable)
    names = known.split(",") if known else [str(number) for number in range(count)]
    return [{**share, variable: names[number % count]} for number in range(jobs)]


def _visible() -> str:
    """Return the variable that names the GPUs of a process. AMD's torch reads its own before CUDA's."""
    import torch

    if gpu_kind() == "xpu":
        return "ZE_AFFINITY_MASK"
    amd = torch.version.hip is not None and "HIP_VISIBLE_DEVICES" in os.environ
    return "HIP_VISIBLE_DEVICES" if amd else "CUDA_VISIBLE_DEVICES"
