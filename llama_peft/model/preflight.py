"""Checks, in seconds, everything that a run needs before the first byte of a base is downloaded.

A missing token, a licence that is not accepted, no GPU, too little disk or memory: each would
otherwise appear after minutes of download, or in the middle of a training. All problems are
reported at once, each with what to do.
"""

import logging
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.model.counts import BadConfig, UncountedFamily, count
from llama_peft.model.hub import Weights, hub_weights, local_weights
from llama_peft.model.quantize import packed_form, packed_problems, packing_trouble
from llama_peft.model.room import free_memory, gb, has_gpu
from llama_peft.recipe import Recipe
from llama_peft.system.disk import free_disk
from llama_peft.system.formatting import disk_space
from llama_peft.system.memory import gpu_kind, tree_kernel

log = logging.getLogger(__name__)

CPU_LIMIT = 400_000_000
"""Above this number of parameters a CPU must be asked for (train.use_cpu): an epoch takes days."""
_HIDING = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
"""Variables that name the GPUs which a process may see."""
_BYTES = {"4bit": 0.55, "8bit": 1.05, "16bit": 2.0, "32bit": 4.0}
"""Bytes of a weight in memory, with the quantisation constants."""


_TORCH = (
    "`make clean setup CUDA=cu130` installs one for RTX 20xx and newer (driver 580 or newer), and "
    "CUDA=cu126 one for older GPUs and drivers, from https://download.pytorch.org/whl"
)


class Machine(NamedTuple):
    """What can be seen of a machine's GPUs, and of the torch that would use them."""

    system: str
    """Linux, Windows or Darwin."""
    torch: str
    """Its version."""
    cuda: str | None = None
    """The CUDA that torch is built for; None if it is built for none."""
    rocm: bool = False
    """Whether torch is built for AMD's GPUs."""
    nvidia: bool = False
    """Whether a driver of NVIDIA is installed."""
    amd: bool = False
    """Whether a driver of AMD for computing is loaded."""
    driver_cuda: int = 0
    """The newest CUDA that the driver of NVIDIA knows: 12040 is 12.4. 0 if that was not asked."""
    hidden_by: str | None = None
    """A variable of the environment that hides all GPUs."""
    usable: str | None = None
    """The name of the GPU that torch would use."""
    capability: tuple[int, int] | None = None
    """What that GPU can do, as NVIDIA counts."""
    built_for: frozenset[str] = frozenset()
    """What torch has kernels for: sm_75, compute_90, ..."""


def machine() -> Machine:
    """Look at this machine. Nothing here needs a GPU, or fails without one."""
    import torch

    kind = gpu_kind()
    version, rocm = torch.version.cuda, torch.version.hip is not None
    own = kind == "cuda" and not rocm
    return Machine(
        system=platform.system(),
        torch=torch.__version__,
        cuda=version,
        rocm=rocm,
        nvidia=Path("/proc/driver/nvidia/version").is_file() or bool(shutil.which("nvidia-smi")),
        amd=Path("/dev/kfd").exists(),
        driver_cuda=torch._C._cuda_getDriverVersion() if version and kind is None else 0,
        hidden_by=next((name for name in _HIDING if os.environ.get(name) in ("", "-1")), None),
        usable=getattr(torch, kind).get_device_name() if kind else None,
        capability=torch.cuda.get_device_capability() if own else None,
        built_for=frozenset(torch.cuda.get_arch_list()),
    )


def gpu_trouble(seen: Machine) -> str | None:
    """Return why no GPU of a machine can be used, and what to do; None if one can."""
    if seen.usable is not None:
        return _kernels_missing(seen)
    if seen.system == "Darwin":
        return (
            "the GPU of a Mac is not used, because bitsandbytes has no 4-bit kernels of its own for "
            "it: use a machine with a GPU of NVIDIA, AMD or Intel"
        )
    if seen.hidden_by is not None and (seen.nvidia or seen.amd):
        return f"{seen.hidden_by} hides every GPU: unset it"
    if seen.nvidia and seen.cuda is None:
        return f"there is a driver of NVIDIA, but torch {seen.torch} is not built for it: {_TORCH}"
    if seen.amd and not seen.nvidia and not seen.rocm:
        return (
            f"there is a driver of AMD, but torch {seen.torch} is not built for it: look up the name of "
            "its ROCm build on https://pytorch.org, and say it as `make clean setup CUDA=rocm...`"
        )
    if seen.cuda is not None and 0 < seen.driver_cuda // 1000 < int(seen.cuda.split(".")[0]):
        newest = f"{seen.driver_cuda // 1000}.{seen.driver_cuda % 1000 // 10}"
        return (
            f"torch {seen.torch} needs CUDA {seen.cuda}, but the driver of NVIDIA knows CUDA {newest} at "
            f"most: update the driver, or get a torch for it: {_TORCH}"
        )
    if seen.nvidia or seen.amd:
        return (
            "there is a driver, but it shows torch no GPU: see what nvidia-smi or rocminfo says; a "
            "container needs --gpus all"
        )
    return (
        "no driver of a GPU was found: install that of NVIDIA or AMD; for a GPU of Intel also "
        "`make clean setup CUDA=xpu`"
    )


def _kernels_missing(seen: Machine) -> str | None:
    """Return that torch has no kernels for a GPU of NVIDIA; None if it has.

    sm_75 is made for 7.5 and runs on the later ones of 7.x; compute_75 runs on all that are newer.
    """
    if seen.capability is None or not seen.built_for:
        return None
    for name in seen.built_for:
        form, _, number = name.partition("_")
        made = divmod(int("".join(filter(str.isdigit, number))), 10)
        if made <= seen.capability and (made[0] == seen.capability[0] or form == "compute"):
            return None
    return (
        f"torch {seen.torch} has no kernels for {seen.usable}, whose compute capability is "
        f"{'.'.join(map(str, seen.capability))}, but for {', '.join(sorted(seen.built_for))}: {_TORCH}"
    )


def check(recipe: Recipe, long: bool) -> None:
    """Raise UserError with every problem that prevents loading the recipe's base.

    long: whether training or a whole evaluation follows, which should not run on a CPU by mistake.
    """
    found = problems(recipe, weights_of(recipe), long)
    if found:
        raise UserError(f"{recipe.model.model_name_or_path} cannot be used:", *found)


def weights_of(recipe: Recipe) -> Weights:
    """Return what is known of the base's weights, from its folder or from the Hub."""
    folder = Path(backbone.source(recipe.model))
    return local_weights(folder) if folder.is_dir() else hub_weights(recipe.model)


def problems(recipe: Recipe, weights: Weights, long: bool) -> list[str]:
    """Return every problem that prevents loading a base with these weights. Arguments as in `check`."""
    is_local = Path(backbone.source(recipe.model)).is_dir()
    asked = recipe.model.dtype
    if asked == "bfloat16" and (used := backbone.dtype_name(recipe)) != asked:
        log.warning(
            "this GPU only emulates bfloat16, which is slow and takes several times the memory: the "
            "base computes in %s",
            used,
        )
    return [
        *weights.problems,
        *packed_problems(weights.config, recipe.quantization),
        *_length_problems(recipe, weights.config),
        *_machine_problems(recipe, weights, long),
        *(_shape_problems(weights) if is_local else ()),
    ]


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


def _machine_problems(recipe: Recipe, weights: Weights, long: bool) -> list[str]:
    found = [*_kernel_problems(recipe, long), *_type_problems(recipe, weights.config)]
    slow = long and weights.parameters > CPU_LIMIT
    if not recipe.train.use_cpu and (slow or has_gpu(recipe)):
        trouble = gpu_trouble(machine())
        if trouble is not None and has_gpu(recipe):
            found.append(f"{trouble}, or set train.use_cpu: true")
        elif trouble is not None:
            found.append(
                f"no GPU here, and {weights.parameters:,} parameters take a CPU days: {trouble}; or try "
                '`make demo`, or insist with SET="train.use_cpu=true"'
            )
    if not found and (recipe.quantization.load_in_4bit or recipe.quantization.load_in_8bit):
        broken = packing_trouble(str(backbone.place_of(recipe)))
        found += [] if broken is None else [broken]
    return [*found, *_disk_problems(weights), *_memory_problems(recipe, weights)]


def _type_problems(recipe: Recipe, config: Mapping[str, object]) -> list[str]:
    """Return whether the recipe asks for a type that is too narrow for the base."""
    if recipe.model.dtype != "float16" or not backbone.overflows_float16(config):
        return []
    return [
        "its activations exceed 65,504, the largest number of float16: remove model.dtype, which then "
        "is bfloat16, or float32 on an older GPU"
    ]


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


def _kernel_problems(recipe: Recipe, long: bool) -> list[str]:
    """Return which settings of the recipe need a GPU, or a newer one.

    Only training computes varlen attention: a run that was trained with it is used anywhere.
    """
    asked = recipe.model.attn_implementation
    if long and asked == "varlen" and (recipe.train.use_cpu or tree_kernel() is None):
        return [
            "varlen attention needs a GPU of NVIDIA with compute capability 8.0 or newer: remove "
            "model.attn_implementation"
        ]
    if has_gpu(recipe):
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
    needed, free = parameters * _bytes_per_weight(recipe), free_memory(recipe)
    if needed <= free:
        return []
    return [
        f"its weights take {gb(needed)} of memory, but {gb(free)} are free: "
        "close other programs, load it in 4-bit, or use a smaller base"
    ]


def _bytes_per_weight(recipe: Recipe) -> float:
    if recipe.quantization.load_in_4bit:
        return _BYTES["4bit"]
    if recipe.quantization.load_in_8bit:
        return _BYTES["8bit"]
    return _BYTES["32bit" if recipe.model.dtype == "float32" else "16bit"]
