"""Memory: the most that was held, whether it ran out, and how to free what an exception held."""

import gc
import resource
import sys


def peak_memory() -> int:
    """Bytes: the most that the GPU held at once, or on CPU the most that this process did."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
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
