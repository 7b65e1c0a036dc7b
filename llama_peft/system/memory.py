"""The GPU and memory: the peak, whether it ran out, and how to free what an exception held."""

import errno
import gc
import importlib.util
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

GpuKind = Literal["cuda", "xpu"]
"""What torch calls the GPUs that are used: cuda are those of NVIDIA and of AMD, xpu those of Intel."""
TreeKernel = Literal["flex", "varlen"]
"""The modules of `prefix_tree` whose kernels compute only what a tree row needs."""
_STATUS = Path("/proc/self/status")
_RAN_OUT = re.compile(
    r"out[ _]of[ _](\w+[ _])?memory|OUT_OF_RESOURCES"  # CUDA, HIP, Triton, MPS, XPU
    r"|alloc\w*[ _]?fail|memory[ _]?error"  # cuBLAS, cuDNN, rocBLAS, MIOpen
    r"|(can't|cannot|could not|failed to|unable to) alloc|not enough memory",  # CPU
    re.IGNORECASE,
)
"""How the libraries below torch say that memory ran out. Each has its own words, and torch makes an
OutOfMemoryError only of those of its own allocator.
"""


def gpu_kind() -> GpuKind | None:
    """The kind of GPU that this process can use; None if there is none."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "xpu" if torch.xpu.is_available() else None


def count_gpus() -> int:
    """How many GPUs this process can use."""
    import torch

    kind = gpu_kind()
    return 0 if kind is None else int(getattr(torch, kind).device_count())


def gpu_has_flash() -> bool:
    """Whether torch's flash attention runs on the GPU: NVIDIA's have it from 8.0 on."""
    import torch

    if gpu_kind() != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability() >= (8, 0)


def _used_gpu() -> GpuKind | None:
    """The kind of GPU that this process may hold memory of: none before torch is imported."""
    return gpu_kind() if "torch" in sys.modules else None


def tree_kernel() -> TreeKernel | None:
    """The kernel for tree rows on the GPU: NVIDIA's from 8.0 on have one.

    FlexAttention is compiled by Triton; torch has varlen attention ready.
    """
    import torch

    if gpu_kind() != "cuda" or torch.version.hip is not None or not gpu_has_flash():
        return None
    return "flex" if has_triton() else "varlen"


def has_triton() -> bool:
    """Whether the compiler of torch's kernels is installed. It is missing on Windows, for example."""
    return importlib.util.find_spec("triton") is not None


def reset_peak() -> None:
    """Forget the peak so far, so that `peak_memory` is about what follows. On CPUs this works on
    Linux only.
    """
    gc.collect()
    if kind := _used_gpu():
        getattr(sys.modules["torch"], kind).reset_peak_memory_stats()
    with suppress(OSError):  # the file is missing, or may not be written
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_memory(*, of_gpu: bool = True) -> int:
    """The most bytes held at once since `reset_peak`: by the GPU, or without one by this process.

    of_gpu: False for work that does not use the GPU.
    """
    if of_gpu and (kind := _used_gpu()):
        return int(getattr(sys.modules["torch"], kind).max_memory_allocated())
    lines = _STATUS.read_text("utf-8", "replace").splitlines() if _STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _peak_elsewhere()


def _peak_elsewhere() -> int:
    """The peak of this process on a system without Linux' /proc."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available() -> int:
    """The bytes that a new process can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def gpu_available() -> int:
    """The bytes that are free on the GPU that is used. Call it only if there is one."""
    import torch

    return int(getattr(torch, str(gpu_kind())).mem_get_info()[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the GPU or of the machine ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None
    )


def free_memory() -> None:
    """Free unused memory. Call it after the exception is gone: its traceback holds the tensors that
    did not fit.
    """
    import torch

    gc.collect()
    if kind := gpu_kind():
        getattr(torch, kind).empty_cache()


def random_state() -> "list[Tensor]":
    """The states of torch's generators, from which dropout draws: that of the CPU, then the GPU's."""
    import torch

    kind = gpu_kind()
    gpu = [] if kind is None else [getattr(torch, kind).get_rng_state()]
    return [torch.get_rng_state(), *gpu]


def set_random_state(states: "list[Tensor]") -> None:
    """Bring torch's generators back to what `random_state` returned."""
    import torch

    torch.set_rng_state(states[0])
    for state in states[1:]:
        getattr(torch, str(gpu_kind())).set_rng_state(state)
