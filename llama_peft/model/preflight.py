"""Checks, in seconds, everything that a run needs before the first byte of a base is downloaded.

A missing token, a licence that is not accepted, no GPU, too little disk or memory: each would
otherwise appear after minutes of download, or in the middle of a training. All problems are
reported at once, each with what to do.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.counts import BadConfig, UncountedFamily, count
from llama_peft.model.estimate import Estimate, estimate
from llama_peft.model.hub import Weights, hub_weights, local_weights, read_config
from llama_peft.model.quantize import packed_form, packed_problems
from llama_peft.recipe import Recipe
from llama_peft.system.disk import free_disk
from llama_peft.system.formatting import disk_space
from llama_peft.system.memory import available as _host_memory

log = logging.getLogger(__name__)

CPU_LIMIT = 400_000_000
"""Above this number of parameters a CPU must be asked for (train.use_cpu): an epoch takes days."""
_TOO_LITTLE = {
    True: "steps that do not fit will be computed in smaller pieces",
    False: "the system may end the process; lower train.per_device_train_batch_size or max_length",
}
"""What happens if memory runs out, with a GPU or without one."""
_BYTES = {"4bit": 0.55, "8bit": 1.05, "16bit": 2.0, "32bit": 4.0}
"""Bytes of a weight in memory, with the quantisation constants."""


def check(recipe: Recipe, long: bool) -> None:
    """Raise UserError with every problem that prevents loading the recipe's base.

    long: whether training or a whole evaluation follows, which should not run on a CPU by mistake.
    """
    folder = Path(backbone.source(recipe.model))
    weights = local_weights(folder) if folder.is_dir() else hub_weights(recipe.model)
    problems = [
        *weights.problems,
        *packed_problems(weights.config, recipe.quantization),
        *_length_problems(recipe, weights.config),
        *_machine_problems(recipe, weights, long),
        *(_shape_problems(weights) if folder.is_dir() else ()),
    ]
    if problems:
        raise UserError(f"{recipe.model.model_name_or_path} cannot be used:", *problems)


def check_named(recipe: Recipe, long: bool, by: Path) -> None:
    """Check the base that a run or an adapter names: it may be a folder of another machine."""
    try:
        check(recipe, long)
    except UserError as error:
        if Path(backbone.source(recipe.model)).is_dir():
            raise
        raise UserError(
            f"{by}: this names a base that cannot be used; if it is elsewhere here, name it with --base:",
            *error.args,
        ) from None


def room(recipe: Recipe, folder: Path) -> None:
    """Compare what the training will take with what the machine has free.

    Raises UserError if it cannot fit even with every batch split down to one row, or if the disk is
    too small. Logs a warning if it fits with split batches only.
    """
    found = for_machine(recipe)
    if found is None:
        return
    free = _free_memory(recipe)
    if found.least > free:
        raise UserError(
            f"training on {found.where} takes at least {_gb(found.least)} of memory, as computed "
            f"from the base's config, but {_gb(free)} are free: "
            "lower train.max_length, set train.activation_checkpointing: true, or use a smaller "
            "base (llama-peft estimate shows what takes how much)"
        )
    if found.memory_total > free:
        log.warning(
            "training on %s takes up to %s of memory, as computed from the base's config, but %s are "
            "free: %s",
            *(found.where, _gb(found.memory_total), _gb(free), _TOO_LITTLE[_has_gpu(recipe)]),
        )
    disk = free_disk(folder)
    if found.disk_total > disk:
        raise UserError(
            f"{folder}: checkpoints take {disk_space(found.disk_total)}, but {disk_space(disk)} "
            "are free: make room, lower train.save_total_limit, or set train.output_dir"
        )


def for_machine(recipe: Recipe) -> Estimate | None:
    """Return what the training will take here; None if the base's family has no formula."""
    name = recipe.model.model_name_or_path
    dtype, place = backbone.dtype_name(recipe), backbone.place_of(recipe)
    try:
        return estimate(recipe, read_config(name, recipe.model.revision), dtype, place.type)
    except UncountedFamily:
        return None
    except BadConfig as error:
        raise UserError(f"{name}: {error}") from None


def _machine_problems(recipe: Recipe, weights: Weights, long: bool) -> list[str]:
    found = _kernel_problems(recipe)
    cpu_by_mistake = long and not _has_gpu(recipe) and not recipe.train.use_cpu
    if cpu_by_mistake and weights.parameters > CPU_LIMIT:
        found.append(
            f"no GPU here, and {weights.parameters:,} parameters take a CPU days: "
            'try `make demo`, or insist with SET="train.use_cpu=true"'
        )
    return [*found, *_disk_problems(weights), *_memory_problems(recipe, weights)]


def _length_problems(recipe: Recipe, config: Mapping[str, object]) -> list[str]:
    """Return whether the answers that an evaluation may write leave no room for a prompt."""
    text = config.get("text_config")
    most = (text if isinstance(text, Mapping) else config).get("max_position_embeddings")
    room = recipe.eval.max_new_tokens
    if recipe.kind.head is not None or not isinstance(most, int) or not 0 < most <= room:
        return []
    return [
        f"eval.max_new_tokens {room} leaves no room for a prompt in its {most} positions: lower it"
    ]


def _shape_problems(weights: Weights) -> list[str]:
    """Return whether a folder's config describes far more weights than its files can hold.

    transformers would make the missing ones, and fill the memory with them.
    """
    described = 0 if weights.problems else _described(weights)
    most = 4 * weights.parameters  # which assumes 16 bits for each, and 4 are the least
    return (
        [
            f"its config.json describes {described:,} parameters, but its files hold {most:,} at most: "
            "use a complete safetensors checkpoint"
        ]
        if described > most
        else []
    )


def _described(weights: Weights) -> int:
    """Return the parameters that a config.json describes; 0 if there is no formula for its family."""
    try:
        return count(weights.config).backbone
    except (UncountedFamily, BadConfig):
        return 0


def _kernel_problems(recipe: Recipe) -> list[str]:
    """Return which settings of the recipe need a GPU, if there is none."""
    if _has_gpu(recipe):
        return []
    found = []
    if recipe.model.attn_implementation == "flex_attention":
        found.append("flex_attention needs CUDA: remove model.attn_implementation")
    if recipe.lora is not None and recipe.lora.use_dora and recipe.quantization.load_in_8bit:
        found.append(
            "lora.use_dora needs CUDA if the base has 8 bits: set quantization.load_in_4bit"
        )
    return found


def _disk_problems(weights: Weights) -> list[str]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = free_disk(cache)
    if not weights.download or free >= 1.05 * weights.download:
        return []
    return [
        f"the download takes {disk_space(weights.download)}, but {cache} has {disk_space(free)} "
        "free: make room, or set HF_HOME to a larger disk"
    ]


def _memory_problems(recipe: Recipe, weights: Weights) -> list[str]:
    parameters = weights.parameters  # of packed weights, bytes are counted
    if packed_form(weights.config) is not None:
        parameters = _described(weights) or parameters
    needed, free = parameters * _bytes_per_weight(recipe), _free_memory(recipe)
    if needed <= free:
        return []
    return [
        f"its weights take {_gb(needed)} of memory, but {_gb(free)} are free: "
        "close other programs, load it in 4-bit, or use a smaller base"
    ]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _has_gpu(recipe: Recipe) -> bool:
    import torch

    return torch.cuda.is_available() and not recipe.train.use_cpu


def _free_memory(recipe: Recipe) -> int:
    import torch

    return torch.cuda.mem_get_info()[0] if _has_gpu(recipe) else _host_memory()


def _bytes_per_weight(recipe: Recipe) -> float:
    if recipe.quantization.load_in_4bit:
        return _BYTES["4bit"]
    if recipe.quantization.load_in_8bit:
        return _BYTES["8bit"]
    return _BYTES["32bit" if recipe.model.dtype == "float32" else "16bit"]
