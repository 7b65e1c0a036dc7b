"""Makes a process believe that it has a GPU of a certain kind.

Tensors on it are fake: they have a shape, a type and a device, and no data. Autograd and the
attention dispatcher ask torch's C++ code about the device; `shim.cpp` answers them. All
else asks `torch.cuda`, whose functions are replaced here. Both hold for the whole process, so each
rehearsal has a process of its own.
"""

import contextlib
import ctypes
import importlib.util
import os
import runpy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.rehearsal.device import replace
from llama_peft.rehearsal.device.cards import Card
from llama_peft.system import memory

if TYPE_CHECKING:
    import torch

SOURCE = Path(__file__).with_name("shim.cpp")
_CAPABILITY = "LLAMA_PEFT_REHEARSED_SM"
_COMPILERS = "g++", "clang++", "c++"


def compile_shim(folder: Path) -> Path:
    """Compile the shim into a folder and return the library; this takes seconds.

    Raises UserError if there is no compiler, or if torch is built for a GPU.
    """
    torch = _torch_folder()
    version = runpy.run_path(str(torch / "version.py"))
    if version["cuda"] or version["hip"] or version["xpu"]:
        raise UserError(
            "a rehearsal needs a CPU build of torch, and this one is built for a GPU: if the GPU is here, train "
            "with train.max_steps=2 and read peak_memory_bytes in training.json; if not, install the CPU build"
        )
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))), None)
    if compiler is None:
        raise UserError(
            "a rehearsal compiles a small file of C++, and there is no compiler here: install g++ or clang++"
        )
    include, library = torch / "include", folder / "shim.so"
    words = [
        *(compiler, "-std=c++20", "-O0", "-w", "-shared", "-fPIC"),
        *(f"-I{include}", str(SOURCE), "-o", str(library)),
        *(f"-L{torch}/lib", "-lc10", "-ltorch_cpu"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise UserError(f"{compiler} does not compile a rehearsal's file for this torch: {first}")
    return library


def load_shim(library: Path) -> None:
    """Load the shim. Call this before torch is imported."""
    lib = _torch_folder() / "lib"
    for path in (lib / "libtorch_global_deps.so", lib / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _torch_folder() -> Path:
    """Return the folder of the installed torch, without importing it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise UserError("torch is not installed here: install llama-peft with its dependencies")
    return Path(found.origin).parent


def pretend(card: Card) -> None:
    """Make `torch.cuda` say what a machine with this card would say.

    Call this after the libraries are imported: some look for CUDA's own libraries while they are.
    """
    import torch

    os.environ[_CAPABILITY] = f"{card.major}{card.minor}"  # the shim reads it once
    properties = SimpleNamespace(
        name=card.title,
        major=card.major,
        minor=card.minor,
        multi_processor_count=card.processors,
        total_memory=card.memory,
        gcnArchName="",
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=card.threads,
        warp_size=32,
    )
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": (card.major, card.minor),
        "get_device_name": card.title,
        "mem_get_info": (card.memory - (500 << 20), card.memory),
        "max_memory_allocated": 0,
        "_check_bf16_tensor_supported": True,  # every card can hold such a tensor
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_rng_state_all": [],
    }
    nothing = (
        *("_lazy_init", "set_device", "empty_cache", "reset_peak_memory_stats", "synchronize"),
        *("manual_seed", "manual_seed_all", "ipc_collect", "set_rng_state", "set_rng_state_all"),
    )
    for name, answer in {**answers, **dict.fromkeys(nothing)}.items():
        replace(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda._get_device_properties = lambda *_: properties  # a CPU build has no such function
    replace(torch.cuda, "get_rng_state", lambda *_: torch.empty(16, dtype=torch.uint8))
    replace(torch.random, "fork_rng", lambda *_, **__: contextlib.nullcontext())
    replace(torch.version, "cuda", "12.8")
    replace(memory, "has_triton", lambda: True)  # it comes with torch for GPUs


@cache
def keep_whole() -> "list[torch.library.Library]":
    """Keep operations whole that a GPU computes with one kernel, and return what must stay alive.

    A CPU build takes some of them apart, such as the derivative of SiLU, because it has no kernel
    for CUDA. So those that the CPU has a kernel for get one on CUDA, which fake tensors never reach.
    """
    import torch

    def unreached(*_: object, **__: object) -> None:
        raise AssertionError("a kernel of the GPU that is not here was called")

    registered = torch._C._dispatch_get_registrations_for_dispatch_key
    both = {*registered("CPU")} & {*registered("CompositeImplicitAutograd")}
    library = torch.library.Library("aten", "IMPL")
    for name in sorted(both):
        if name.startswith("aten::"):
            library.impl(name.removeprefix("aten::"), unreached, "CUDA")
    return [library]
