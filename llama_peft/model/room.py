"""Whether a training has room: on this machine, before the base is downloaded.

The estimate is compared with the memory that is free, and `auto` becomes what fits.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.counts import BadConfig, TextConfig, UncountedFamily, count, text_config
from llama_peft.model.estimate import Batches, Estimate, Term, estimate, full
from llama_peft.model.estimate.choice import MARGIN, Choice, choose
from llama_peft.model.hub import read_config
from llama_peft.recipe import Recipe
from llama_peft.system.disk import free_disk
from llama_peft.system.formatting import disk_space
from llama_peft.system.memory import available as _host_memory
from llama_peft.system.memory import (
    count_gpus,
    gpu_available,
    gpu_has_flash,
    gpu_kind,
    has_triton,
    tree_kernel,
)
from llama_peft.system.processes import job

log = logging.getLogger(__name__)

_FITTED = ("per_device_train_batch_size", "activation_checkpointing")
"""The keys of `train` whose auto is what fits into memory."""
_TOO_LITTLE = {
    True: "steps that do not fit will be computed in smaller pieces",
    False: "the system may end the process; lower train.per_device_train_batch_size or max_length",
}
"""What happens if memory runs out, with a GPU or without one."""


def fit(recipe: Recipe, widest: Callable[[Recipe], Batches]) -> Choice:
    """Return the recipe with numbers in place of auto: those that fit into the free memory.

    widest: the widest batches of the data for a recipe without auto. Logs what is chosen.
    Several processes choose the same: what fits into the least of what each has free.
    """
    auto = [key for key in _FITTED if getattr(recipe.train, key) == "auto"]
    if not auto:
        return Choice(recipe, {})
    if for_machine(recipe) is None:
        raise UserError(
            f"train.{auto[0]}: auto needs a memory formula, and there is none for the family of "
            f"{recipe.model.model_name_or_path}: write a value"
        )
    free = job.least(free_memory(recipe))

    def needed(one: Recipe) -> int:
        found = for_machine(one, widest(one))
        assert found is not None
        return found.memory_total

    found = choose(recipe, needed, free)
    log.info(
        "chosen for %s of free memory: %s (%s are estimated)",
        gb(free),
        ", ".join(f"{key} {str(value).lower()}" for key, value in found.set.items()),
        gb(needed(found.recipe)),
    )
    return found


def smallest(recipe: Recipe) -> dict[str, int | bool]:
    """Return what takes least in place of each auto, by key of `train`."""
    least = {"per_device_train_batch_size": 1, "activation_checkpointing": True}
    return {key: value for key, value in least.items() if getattr(recipe.train, key) == "auto"}


def check_room(recipe: Recipe, folder: Path, batches: Batches | None = None) -> None:
    """Compare what the training will take with what the machine has free.

    batches: the widest ones of the data; None takes full rows. Raises UserError if the training
    cannot fit even with every batch split down to one row, or if the disk is too small. Logs a
    warning if it fits with split batches only.
    """
    found = for_machine(recipe, batches)
    if found is None:
        return
    free = free_memory(recipe)
    if found.least > free:
        raise UserError(
            f"training on {found.where} takes at least {gb(found.least)} of memory, as estimated "
            f"from {found.batches}, but {gb(free)} are free: "
            "lower train.max_length, set train.activation_checkpointing: true, or use a smaller "
            "base (llama-peft estimate shows what takes how much)"
        )
    if found.memory_total > free:
        log.warning(
            "training on %s takes up to %s of memory, as estimated from %s, but %s are free: %s",
            *(found.where, gb(found.memory_total), found.batches, gb(free)),
            _TOO_LITTLE[has_gpu(recipe)],
        )
    elif hint := unpacked_hint(recipe, found, free):
        log.info(hint)
    disk = free_disk(folder)
    if found.disk_total > disk:
        raise UserError(
            f"{folder}: checkpoints take {disk_space(found.disk_total)}, but {disk_space(disk)} "
            "are free: make room, lower train.save_total_limit, or set train.output_dir"
        )


def unpacked_hint(recipe: Recipe, found: Estimate, free: int) -> str | None:
    """Return that a GPU holds the base in 16 bits, which is faster than 4; None if it does not."""
    if not recipe.quantization.load_in_4bit or not has_gpu(recipe):
        return None
    needed = found.memory_total + found.unpacked
    if needed > (1 - MARGIN) * free:
        return None
    return (
        f"the base would also fit without 4 bits ({gb(needed)} of {gb(free)} that are free), which "
        "is faster, because no weight is unpacked: set quantization.load_in_4bit: false"
    )


def for_machine(recipe: Recipe, batches: Batches | None = None) -> Estimate | None:
    """Return what the training will take here; None if the base's family has no formula."""
    name = recipe.model.model_name_or_path
    if not has_triton():  # then blocks stay as they are
        recipe = recipe.with_train({"torch_compile": False})
    dtype, place = backbone.dtype_name(recipe), "cuda" if has_gpu(recipe) else "cpu"
    config = read_config(name, recipe.model.revision)
    try:
        found = estimate(recipe, config, dtype, place, batches, gpu_has_flash(), tree_kernel())
        shares = job.shares_base() and not recipe.on_states
        return _of_each(found, text_config(config), dtype) if shares else found
    except UncountedFamily:
        return None
    except BadConfig as error:
        raise UserError(f"{name}: {error}") from None


def _of_each(found: Estimate, c: TextConfig, dtype: str) -> Estimate:
    """Return the estimate of one of several processes that share the base out.

    Each loads all of it, and then keeps its part of every block, and two blocks whole for a moment.
    """
    weights, *others = found.memory
    blocks = weights.bytes - c.vocab_size * c.hidden_size * (4 if dtype == "float32" else 2)
    kept = min(1.0, 1 / job.count() + 2 / c.num_hidden_layers)
    saved = max(0, round(blocks * (1 - kept)))
    whole = weights.bytes + others[-1].bytes
    why = f"{weights.why}, of which each of {job.count()} processes keeps its part"
    loading = max(0, whole - found.memory_total + saved)
    terms = [Term("weights", weights.bytes - saved, why), *others[:-1]]
    terms.append(Term("loading", loading, "what loading all of the base takes more than that"))
    return replace(
        found,
        memory=(*terms, others[-1]),
        smallest=max(found.smallest - saved, whole),
        least=max(found.least - saved, whole),
    )


def base_weights(recipe: Recipe) -> int | None:
    """Return the number of weights of the base; None if its family has no formula."""
    name = recipe.model.model_name_or_path
    try:
        return count(read_config(name, recipe.model.revision)).base
    except UncountedFamily:
        return None
    except BadConfig as error:
        raise UserError(f"{name}: {error}") from None


def full_rows(recipe: Recipe) -> Callable[[Recipe], Batches]:
    """Return what gives full batches, where the data are not here."""
    place = "cuda" if has_gpu(recipe) else "cpu"
    return lambda one: full(one, place, gpu_has_flash())


def gb(size: float) -> str:
    """Return a size in GB."""
    return f"{size / 1e9:.1f} GB"


def has_gpu(recipe: Recipe) -> bool:
    """Return whether a training of the recipe uses a GPU."""
    return gpu_kind() is not None and not recipe.train.use_cpu


def check_processes(recipe: Recipe, processes: int) -> None:
    """Raise UserError unless this command can start so many processes on this machine."""
    if job.count() > 1:
        raise UserError(
            f"--processes {processes}: torchrun or accelerate launch has started {job.count()} "
            "processes already: leave the option away"
        )
    if has_gpu(recipe) and processes > (gpus := count_gpus()):
        raise UserError(
            f"--processes {processes}: each process needs a GPU of its own, and this machine has "
            f"{gpus}"
        )


def free_memory(recipe: Recipe) -> int:
    """Return the bytes that are free where a recipe is trained, for each process of a job; and for one of
    several with work of their own no more than its share.
    """
    free = gpu_available() if has_gpu(recipe) else _host_memory() // job.count_here()
    return min(free, job.share_of_memory(free))
