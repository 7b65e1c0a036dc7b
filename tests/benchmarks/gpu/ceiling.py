"""The most that this machine multiplies: large products of its fast type."""

import time

import torch

from llama_peft.model import backbone
from tests.benchmarks import measure
from tests.benchmarks.material import precision

from .setting import Part, Setting

SIZES = {"cuda": 8192, "cpu": 256}
PRODUCTS, REPEATS = 10, 5


def turns(setting: Setting) -> Part:
    """Yield the FLOP per second of square matrices of random numbers."""
    place = backbone.device()
    size = SIZES[place.type]
    dtype = getattr(torch, precision())
    torch.manual_seed(0)
    left, right = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))
    _seconds(left, right)  # the first products choose their kernel
    rates = [2 * size**3 * PRODUCTS / _seconds(left, right) for _ in range(REPEATS)]
    yield measure.result(
        "ceiling", [], {}, flop_per_second=measure.spread(rates), size=size, dtype=precision()
    )


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    measure.wait()
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        left @ right
    measure.wait()
    return time.perf_counter() - started
