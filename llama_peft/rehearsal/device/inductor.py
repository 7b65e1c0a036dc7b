"""torch's own compiler, for a GPU that is not here.

Inductor decides what is fused, what is kept for the backward pass and which buffer is used again
from shapes and types alone. So it compiles blocks for the fake GPU as it would for a real one, and
the Python that it writes runs on fake tensors: buffers live and die there as on a GPU, matrix
products and other kernels of libraries count as they do without it, and each Triton kernel, which
would be compiled further, counts as one and computes nothing.

Not seen: what Inductor finds by measuring (which of several kernels is the fastest, whether it pays
to pad a matrix), and patterns of attention that is written out, which it replaces by sdpa.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

from llama_peft.rehearsal.device import replace

Run: TypeAlias = Callable[..., object]
Compiler: TypeAlias = Callable[..., Run]

NAMESPACE = "triton"
"""Of the names of kernels that Inductor made."""


class Counted(Protocol):
    """What a step does, of which only the kernels matter here."""

    kernels: Counter[str]


@runtime_checkable
class Counting(Protocol):
    """The mode of a rehearsal."""

    counts: Counted


class _Kernel:
    """A kernel that Triton would compile."""

    def __init__(self, name: str) -> None:
        self._name = name

    def run(self, *_: object, **__: object) -> None:
        """Count the kernel."""
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, Counting):
                mode.counts.kernels[f"{NAMESPACE}::{self._name}"] += 1


def replace_compiler() -> None:
    """Make `torch.compile` compile blocks for the fake GPU, and leave all else as it is."""
    from llama_peft.system.compiling import blocks

    compiles = torch.compile

    def compile(
        function: Run | None = None, *, backend: Compiler | None = None, **options: bool
    ) -> Run:
        code = getattr(function, "__code__", None)  # each training has a copy of the function
        if code == blocks._forward.__code__ and backend is not None:
            return _under_modes(compiles, function, backend, options)  # type: ignore[arg-type]  # it has code
        return function or (lambda inner: inner)

    replace(torch, "compile", compile)


def _under_modes(
    compiles: Compiler, function: Run, backend: Compiler, options: Mapping[str, bool]
) -> Run:
    """Return a function that is compiled without the modes of a rehearsal, and runs under them."""
    modes: Sequence[TorchDispatchMode] = ()

    def compile(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Run:
        inner = backend(graph, inputs)

        @torch.compiler.disable
        def run(*given: object) -> object:
            with ExitStack() as stack:
                for mode in modes:
                    stack.enter_context(mode)
                return inner(*given)

        return run

    compiled = compiles(function, backend=compile, **options)
    _prepare()

    def call(*args: object, **kwargs: object) -> object:
        nonlocal modes
        modes = _get_current_dispatch_mode_stack()
        with _disable_current_modes():
            return compiled(*args, **kwargs)

    return call


def _prepare() -> None:
    """Replace what Inductor would need a GPU or Triton for."""
    import torch._inductor.codecache as codecache
    import torch._inductor.config as config
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.scheduler as scheduler
    import torch.utils._triton as of_triton
    from torch._inductor.async_compile import AsyncCompile

    config.compile_threads = 1
    config.fx_graph_cache = config.fx_graph_remote_cache = False
    config.shape_padding = False  # it measures whether that pays
    # These patterns are traced on tensors of the GPU.
    replace(joint_graph, "lazy_init", lambda *_, **__: None)
    _fold_on_cpu()
    replace(scheduler, "has_triton", lambda *_: True)
    replace(of_triton, "triton_hash_with_backend", lambda: "")
    replace(AsyncCompile, "triton", lambda self, name, source, device_str="cuda": _Kernel(name))
    replace(AsyncCompile, "wait", lambda self, scope: None)
    reload = codecache._reload_python_module

    def reloaded(*args: object, **kwargs: object) -> ModuleType:
        with _triton_as_a_name():
            return reload(*args, **kwargs)

    replace(codecache, "_reload_python_module", reloaded)
    torch._C._cuda_getCurrentRawStream = lambda index: 0  # a CPU build has no such function
    guards = torch._C._dynamo.guards
    replace(guards, "_empty_strided_cuda", _empty)
    replace(guards, "_reinterpret_tensor", _reinterpreted)


def _fold_on_cpu() -> None:
    """Make the pass that finds tensors of one value compute these on the CPU."""
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder as Folder

    deduced = Folder._deduce_value

    def deduced_on_cpu(self: object, node: torch.fx.Node) -> object:
        given = node.kwargs
        if "device" in given:
            node.kwargs = {**given, "device": torch.device("cpu")}
        try:
            return deduced(self, node)
        finally:
            node.kwargs = given

    replace(Folder, "_deduce_value", deduced_on_cpu)


@contextmanager
def _triton_as_a_name() -> Iterator[None]:
    """Let what Inductor wrote import Triton, of which it uses nothing outside of its kernels."""
    named = {name: ModuleType(name) for name in ("triton", "triton.language")}
    vars(named["triton"])["language"] = named["triton.language"]
    sys.modules.update(named)
    try:
        yield
    finally:
        for name in named:
            del sys.modules[name]


def _empty(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


def _reinterpreted(
    tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int = 0
) -> Tensor:
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)
