"""What must hold before the first byte of a base is downloaded, said in seconds and all at once, with what to do.

A missing token, an unaccepted licence, no GPU, too little disk or memory: each would otherwise show itself after minutes of
download, or in the middle of an evening's training.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.system.disk import free_disk
from llama_peft.system.formatting import disk_space

if TYPE_CHECKING:
    from llama_peft.model.estimate import Estimate

log = logging.getLogger(__name__)

CPU_LIMIT = 400_000_000
"""Parameters above which a CPU must be asked for (train.use_cpu): an epoch would take days."""
_BYTES = {"4bit": 0.55, "8bit": 1.05, "16bit": 2.0, "32bit": 4.0}
"""Bytes a weight in memory, quantisation constants included."""
_MIRROR = 'or use an ungated copy: SET="model.model_name_or_path=unsloth/Llama-3.2-1B"'


def check(recipe: Recipe, long: bool) -> None:
    """Raise UserError that names everything in the way of loading the recipe's base.

    long: whether training or a whole evaluation follows, which a CPU should not be given by mistake.
    """
    name = backbone.source(recipe.model)
    if Path(name).is_dir():
        parameters, download = _local_parameters(Path(name)), 0
        problems = [] if parameters else [_no_weights(path.name for path in Path(name).iterdir())]
    else:
        problems, parameters, download = _hub(recipe)
    problems += _machine(recipe, parameters, download, long)
    if problems:
        raise UserError(
            "\n".join([f"{recipe.model.model_name_or_path} cannot be used:", *problems])
        )


def room(recipe: Recipe, folder: Path) -> None:
    """Hold what the training will take against what the machine has. Raises UserError where it cannot fit even with every batch
    halved down to one row; says so where only halved batches will fit.
    """
    found = for_machine(recipe)
    if found is None:
        return
    free = _free_memory(recipe)
    if found.smallest > free:
        raise UserError(
            f"training takes at least {found.smallest / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            "shorten train.max_length, set train.activation_checkpointing, or take a smaller base "
            "(llama-peft estimate says what takes how much)"
        )
    if found.memory_total > free:
        log.warning(
            "training takes up to %.1f GB of memory and %.1f GB are free: steps will be done in smaller pieces where they do not fit",
            found.memory_total / 1e9, free / 1e9,
        )  # fmt: skip
    disk = free_disk(folder)
    if found.disk_total > disk:
        raise UserError(
            f"{folder}: checkpoints take {disk_space(found.disk_total)} and {disk_space(disk)} are free: "
            "make room, lower train.save_total_limit, or set train.output_dir"
        )


def for_machine(recipe: Recipe) -> "Estimate | None":
    """What the training will take here; None for a family whose shapes have no formula."""
    import torch

    from llama_peft.model.counts import BadConfig, UncountedFamily
    from llama_peft.model.estimate import estimate
    from llama_peft.model.params import read_config

    place = torch.device("cpu") if recipe.train.use_cpu else backbone.device()
    dtype = recipe.model.dtype or str(backbone.fast_dtype(place)).removeprefix("torch.")
    config = read_config(recipe.model.model_name_or_path, recipe.model.revision)
    try:
        return estimate(recipe, config, dtype, place.type)
    except UncountedFamily:
        return None
    except BadConfig as error:
        raise UserError(f"{recipe.model.model_name_or_path}: config.json: {error}") from None


def _local_parameters(folder: Path) -> int:
    """Parameters of a folder's weights by the size of its files, taken as 16-bit."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2


def _hub(recipe: Recipe) -> tuple[list[str], int, int]:
    """(problems, parameters, bytes to download) of a base on the Hub; nothing is asked of the network if it is cached."""
    from huggingface_hub import HfApi, auth_check
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx

    name, revision = recipe.model.model_name_or_path, recipe.model.revision
    if size := _cached(name, revision):
        return [], size // 2, 0
    try:
        auth_check(name)
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except (httpx.HTTPError, HFValidationError, OSError) as error:
        return [hub_problem(error, name, revision)], 0, 0
    weights = sum(
        file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")
    )
    if not weights:
        return [_no_weights(file.rfilename for file in info.siblings or ())], 0, 0
    parameters = info.safetensors.total if info.safetensors else weights // 2
    return [], parameters, weights


def _no_weights(names: Iterable[str]) -> str:
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        return (
            f"{pickled[0]} is a pickle, and reading one can run anything: convert it to safetensors"
        )
    return "it holds no safetensors weights"


def hub_problem(error: Exception, name: str, revision: str) -> str:
    """What the Hub's refusal to give `name` means, and what to do, in one line."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = get_token() is not None
    if isinstance(error, GatedRepoError):
        step = "" if known else " and log in with `hf auth login` (or set HF_TOKEN)"
        return f"its licence must be accepted first: open https://huggingface.co/{name}{step}; {_MIRROR}"
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub has no revision {revision!r} of it; see model.revision"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        hint = "" if known else "; if it is private, log in with `hf auth login` (or set HF_TOKEN)"
        return f"no such folder here and no such model on the Hub{hint}"
    offline = isinstance(error.__cause__, OfflineModeIsEnabled)
    if isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and offline
    ):
        return "it is not in the cache and HF_HUB_OFFLINE is set: unset it, or name a folder"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"the Hub does not answer ({reason}); name a folder, or try a tiny recipe: make demo"


def _cached(name: str, revision: str) -> int:
    """Bytes of the base's weights in the Hub cache; 0 where config or weights are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return 0
    if not (folder / "config.json").is_file():
        return 0
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _machine(recipe: Recipe, parameters: int, download: int, long: bool) -> list[str]:
    import torch
    from huggingface_hub import constants

    problems = []
    gpu = torch.cuda.is_available() and not recipe.train.use_cpu
    if recipe.model.attn_implementation == "flex_attention" and not gpu:
        problems.append("flex_attention needs CUDA: remove model.attn_implementation")
    if (
        recipe.lora is not None
        and recipe.lora.use_dora
        and recipe.quantization.load_in_8bit
        and not gpu
    ):
        problems.append("lora.use_dora needs CUDA for a base in 8 bits: load it in 4")
    if long and not gpu and not recipe.train.use_cpu and parameters > CPU_LIMIT:
        problems.append(
            f"no GPU here, and {parameters:,} parameters take a CPU days: "
            'try `make demo`, or insist with SET="train.use_cpu=true"'
        )
    cache = Path(constants.HF_HUB_CACHE)
    free = free_disk(cache)
    if download and free < 1.05 * download:
        problems.append(
            f"the download takes {disk_space(download)} and {cache} has {disk_space(free)} free: "
            "make room, or set HF_HOME to a larger disk"
        )
    needed = parameters * _bytes_per_weight(recipe)
    memory = _free_memory(recipe)
    if needed > memory:
        problems.append(
            f"its weights take {needed / 1e9:.1f} GB of memory and {memory / 1e9:.1f} GB are free: "
            "close other programs, load in 4-bit, or take a smaller base"
        )
    return problems


def _free_memory(recipe: Recipe) -> int:
    import torch

    gpu = torch.cuda.is_available() and not recipe.train.use_cpu
    return torch.cuda.mem_get_info()[0] if gpu else _host_memory()


def _bytes_per_weight(recipe: Recipe) -> float:
    if recipe.quantization.load_in_4bit:
        return _BYTES["4bit"]
    if recipe.quantization.load_in_8bit:
        return _BYTES["8bit"]
    return _BYTES["32bit" if recipe.model.dtype == "float32" else "16bit"]


def _host_memory() -> int:
    """Bytes that a new process can have without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return 1024 * int(
            next(line for line in lines if line.startswith("MemAvailable")).split()[1]
        )
    except OSError:  # no Linux: all of the memory, used or not
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
