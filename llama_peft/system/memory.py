"""Memory: the most that was held, whether it ran out, and how to free what an exception held."""

import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Forget what was held before, so that `peak_memory` is of what follows; on a CPU other than Linux's it stays."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # where there is no such file, or it may not be written
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_memory() -> int:
    """Bytes: the most that the GPU held at once, or on CPU the most that this process did, since `reset_peak`."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = _STATUS.read_text("utf-8", "replace").splitlines() if _STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that the GPU's or the machine's memory ran out."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def free_memory() -> None:
    """Call it once the exception is gone: its traceback holds the tensors that did not fit."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
