"""A function that is compiled for any shape, at most so many times, and gives way if that fails.

A compiler can be missing, too old, or unable to read what it is given. None of this may end a
training: one line says what happened, and the caller takes the plain way from then on.
"""

import logging
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import torch

from llama_peft.system.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

Output = TypeVar("Output")
Backend: TypeAlias = str | Callable[..., Callable[..., object]]


class Counted(Generic[Output]):
    """The compiled function, and how often it was compiled."""

    def __init__(
        self,
        function: Callable[..., Output],
        most: int,
        otherwise: str,
        backend: Backend = "inductor",
        **options: object,
    ) -> None:
        """most: compilations; one more is a failure, because each takes seconds or minutes.

        otherwise: what is said of a failure, with %s for its reason.
        backend: the compiler of torch.compile, by name or as a function.
        options: of torch's Inductor.
        """
        self.compilations = 0
        self.refused = False
        self._function, self._most, self._otherwise = _own(function), most, otherwise
        self._backend, self._options = backend, options
        self._compiled: Callable[..., Output] | None = None

    def compiled(self, *args: object, **kwargs: object) -> Output | None:
        """Return what the function returns, or None if it does not compile."""
        if self.refused:
            return None
        try:
            if self._compiled is None:
                self._compiled = self._prepared()
            return self._compiled(*args, **kwargs)
        except Exception as error:  # compilers raise whatever they like
            if is_out_of_memory(error):
                raise
            self._refuse(error)
            return None

    def _prepared(self) -> Callable[..., Output]:
        """Return the function, which is compiled when it is called."""
        import torch._dynamo.config as config

        # torch has a limit of its own, whose message would not say what was reached.
        config.recompile_limit = max(config.recompile_limit, self._most + 1)
        compiled: Callable[..., Output] = torch.compile(
            self._function, dynamic=True, fullgraph=True, backend=self._compile
        )
        return compiled

    def again(self, *args: object, **kwargs: object) -> Output:
        """Return what the function returns for arguments that it was compiled for.

        Errors pass: checkpointing stops a pass that is made again by one.
        """
        assert self._compiled is not None
        return self._compiled(*args, **kwargs)

    def _compile(
        self, graph: torch.fx.GraphModule, inputs: "Sequence[Tensor]"
    ) -> Callable[..., object]:
        from torch._dynamo.backends.registry import lookup_backend
        from torch._functorch import config
        from torch._inductor import config as of_inductor

        if self.compilations == self._most:
            raise RuntimeError(f"it would be compiled more than {self._most} times")
        self.compilations += 1
        # The derivative is compiled now, too: later, a failure would be one of the backward pass.
        now = config.patch(force_non_lazy_backward_lowering=True)
        with now, of_inductor.patch(self._options):
            compiled: Callable[..., object] = lookup_backend(self._backend)(graph, inputs)
        return compiled

    def _refuse(self, error: Exception) -> None:
        self.refused = True
        reason = getattr(error, "inner_exception", error)  # what stopped a backend
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
        log.warning(self._otherwise, lines[0] if lines else type(reason).__name__)


def _own(function: Callable[..., Output]) -> Callable[..., Output]:
    """Return a copy of a function. torch counts compilations by the code of a function, over all of a
    process: those of an earlier training would count among those of this one.
    """
    if not isinstance(function, FunctionType):
        return function
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    copy = FunctionType(function.__code__.replace(), *parts)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
