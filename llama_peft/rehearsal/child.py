"""The process of rehearsals: python -m llama_peft.rehearsal.child SHIM JOBS FOLDER...

Each folder holds a request, and gets the outcome. The shim is loaded before anything imports torch,
and all of torch in this process believes in the fake GPU from then on. The libraries take as long
to load as two steps of a training, so it loads them once and then forks for each folder.
"""

import gc
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import Process, connection, set_start_method
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.rehearsal import ENDED, OUTCOME, PRINTED, REQUEST, Request
from llama_peft.rehearsal.device import fake_cuda, replace
from llama_peft.rehearsal.device.cards import Card, card_named
from llama_peft.rehearsal.report import Fault, Outcome, Rehearsal
from llama_peft.system import files

if TYPE_CHECKING:
    from llama_peft.model.estimate import Batches
    from llama_peft.recipe import Recipe

_OURS = Path(__file__).parents[1]


def main(shim: Path, jobs: int, folders: Sequence[Path]) -> None:
    """Load the libraries, and rehearse what the folders ask for, at most `jobs` at once."""
    prepare(shim)
    set_start_method("fork")
    waiting, running = list(folders), list[tuple[Process, Path]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            folder = waiting.pop(0)
            process = Process(target=_rehearse, args=(folder,))
            process.start()
            running.append((process, folder))
        connection.wait([process.sentinel for process, _ in running])
        ended = [each for each in running if not each[0].is_alive()]
        for process, folder in ended:
            files.write_text(folder, ENDED, str(process.exitcode))
        running = [each for each in running if each not in ended]


def prepare(shim: Path) -> None:
    """Load the shim, and the libraries that look for CUDA's own while they are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    fake_cuda.load_shim(shim)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    import llama_peft.training.tree_trainer  # noqa: F401

    gc.freeze()  # the libraries' own objects are not searched again and again
    gc.set_threshold(50_000, 20, 50)  # as the command lines do


def _rehearse(folder: Path) -> None:
    """Write the outcome of what a folder asks for, and end the process."""
    printed = os.open(folder / PRINTED, os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in sys.stdout, sys.stderr:
        os.dup2(printed, stream.fileno())
    request = Request(**json.loads((folder / REQUEST).read_text("utf-8")))
    try:
        outcome = outcome_of(request, folder)
    except UserError as error:
        outcome = Outcome(mistake=tuple(map(str, error.args)))
    files.write_text(folder, OUTCOME, json.dumps(asdict(outcome)))
    # Torch's own clean-up of a device that does not exist may crash the process from here on.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def outcome_of(request: Request, folder: Path) -> Outcome:
    """Rehearse in this process, which `prepare` has made ready."""
    started, card = time.monotonic(), card_named(request.card)
    from llama_peft.data import settled
    from llama_peft.model import backbone
    from llama_peft.recipe import load_recipe
    from llama_peft.rehearsal import base, rows, steps
    from llama_peft.rehearsal.device import mode, watch

    recipe = load_recipe(request.recipe, [*request.settings, f"train.output_dir={folder / 'run'}"])
    if request.base is not None:
        recipe = recipe.changed(model={"model_name_or_path": request.base})
    named = recipe.model.model_name_or_path
    placed = base.place_base(recipe.model, folder / "base")
    recipe = recipe.changed(model={"model_name_or_path": str(placed)})
    note = base.place_tokenizer(placed, request.tokenizer)
    given = rows.gather(recipe)
    recipe = settled(recipe, given.dataset)
    kept = _pretend(card, folder)  # noqa: F841
    stages = steps.Stages(mode.Rehearsal(watch.Watch()))
    with mode.rehearsing(stages.mode):
        dtype = backbone.dtype_name(recipe)
        try:
            batches = steps.run(recipe, given, folder / "run", stages)
        except UserError:
            raise
        except Exception as error:
            if request.traceback:
                traceback.print_exc()
            return Outcome(fault=_fault(error, stages.name))
    notes = [note] if note else []
    if recipe.quantization.load_in_8bit:
        notes.append("8 bits: as if no column held an outlier, because how many do depends on data")
    found = Rehearsal(
        recipe=recipe.name,
        card=request.card,
        base=named,
        settings=tuple(request.settings),
        dtype=dtype,
        rows=given.source,
        notes=tuple(notes),
        steps=tuple(stages.done),
        estimated=_estimated(recipe, dtype, batches, card.has_flash),
        seconds=time.monotonic() - started,
    )
    return Outcome(rehearsal=found)


def _pretend(card: Card, folder: Path) -> list[object]:
    """Make this process believe in a card, and return what must stay alive as long as it does."""
    from llama_peft.model import backbone
    from llama_peft.rehearsal import base
    from llama_peft.rehearsal.device import kernels

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    fake_cuda.pretend(card)
    kept = [*fake_cuda.keep_whole(), kernels.replace_compiled()]
    kernels.replace_paged()
    base.replace_apply()
    base.replace_unpacking()
    replace(backbone, "from_pretrained", base.build)
    return kept


def _estimated(recipe: "Recipe", dtype: str, batches: "Batches", flash: bool) -> dict[str, int]:
    """Return the terms of the estimate for the same rows; none if the family has no formula."""
    from llama_peft.model.counts import UncountedFamily
    from llama_peft.model.estimate import estimate
    from llama_peft.model.hub import read_config
    from llama_peft.system.memory import tree_kernel

    config = read_config(recipe.model.model_name_or_path, recipe.model.revision)
    try:
        found = estimate(recipe, config, dtype, "cuda", batches, flash, tree_kernel())
    except UncountedFamily:
        return {}
    return {term.name: term.bytes for term in found.memory if term.name != "libraries"}


def _fault(error: Exception, stage: str) -> Fault:
    """Return what failed, and the last place in our code on the way."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_OURS)
        and not Path(frame.filename).is_relative_to(_OURS / "rehearsal")
    ]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    where = f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}"
    message = next((line for line in str(error).splitlines() if line.strip()), "")
    return Fault(stage=stage, where=where, message=f"{type(error).__name__}: {message.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
