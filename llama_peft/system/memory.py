"""Memory: the peak, whether it ran out, and how to free what an exception held."""

import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Forget the peak so far, so that `peak_memory` is about what follows. On CPUs this works on
    Linux only.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # the file is missing, or may not be written
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_memory() -> int:
    """The most bytes held at once since `reset_peak`: by the GPU, or without one by this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = _STATUS.read_text("utf-8", "replace").splitlines() if _STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available() -> int:
    """The bytes that a new process can have without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(line.split()[1])
    except OSError:  # not Linux: all of the memory, used or free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that the memory of the GPU or of the machine ran out."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def free_memory() -> None:
    """Free unused memory. Call it after the exception is gone: its traceback holds the tensors that
    did not fit.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
