"""What must hold before the first byte of a base is downloaded, said in seconds and all at once, with what to do.

A missing token, an unaccepted licence, no GPU, too little disk or memory: each would otherwise show itself after minutes of
download, or in the middle of an evening's training.
"""

import os
import shutil
from pathlib import Path

from llama_peft import backbone
from llama_peft.recipe import Recipe, UserError

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
        problems = [] if parameters else ["this folder holds no safetensors weights"]
    else:
        problems, parameters, download = _hub(recipe)
    problems += _machine(recipe, parameters, download, long)
    if problems:
        raise UserError(
            "\n".join([f"{recipe.model.model_name_or_path} cannot be used:", *problems])
        )


def _local_parameters(folder: Path) -> int:
    """Parameters of a folder's weights by the size of its files, taken as 16-bit."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2


def _hub(recipe: Recipe) -> tuple[list[str], int, int]:
    """(problems, parameters, bytes to download) of a base on the Hub; nothing is asked of the network if it is cached."""
    from huggingface_hub import HfApi, auth_check, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx

    name, revision = recipe.model.model_name_or_path, recipe.model.revision
    if size := _cached(name, revision):
        return [], size // 2, 0
    try:
        auth_check(name)
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except GatedRepoError:
        known = get_token() is not None
        step = "" if known else " and log in with `hf auth login` (or set HF_TOKEN)"
        return (
            [
                f"its licence must be accepted first: open https://huggingface.co/{name}{step}; {_MIRROR}"
            ],
            0,
            0,
        )
    except RevisionNotFoundError:
        return [f"the Hub has no revision {revision!r} of it; see model.revision"], 0, 0
    except (RepositoryNotFoundError, HFValidationError):
        hint = (
            ""
            if get_token()
            else "; if it is private, log in with `hf auth login` (or set HF_TOKEN)"
        )
        return [f"no such folder here and no such model on the Hub{hint}"], 0, 0
    except OfflineModeIsEnabled:
        return (
            ["it is not in the cache and HF_HUB_OFFLINE is set: unset it, or name a folder"],
            0,
            0,
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return (
            [f"the Hub does not answer ({reason}); name a folder, or try a tiny recipe: make demo"],
            0,
            0,
        )
    weights = sum(
        file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors")
    )
    if not weights:
        return ["it has no safetensors weights; pickled ones are not loaded"], 0, 0
    parameters = info.safetensors.total if info.safetensors else weights // 2
    return [], parameters, weights


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
    if long and not gpu and not recipe.train.use_cpu and parameters > CPU_LIMIT:
        problems.append(
            f"no GPU here, and {parameters:,} parameters take a CPU days: "
            'try `make demo`, or insist with SET="train.use_cpu=true"'
        )
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if download and free < 1.05 * download:
        problems.append(
            f"the download takes {download / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free: "
            "make room, or set HF_HOME to a larger disk"
        )
    needed = parameters * _bytes_per_weight(recipe)
    memory = torch.cuda.mem_get_info()[0] if gpu else _host_memory()
    if needed > memory:
        problems.append(
            f"its weights take {needed / 1e9:.1f} GB of memory and {memory / 1e9:.1f} GB are free: "
            "close other programs, load in 4-bit, or take a smaller base"
        )
    return problems


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
