"""Live bytes on the fake GPU by kind, from the birth to the death of each storage.

Sizes are rounded up to blocks of 512 bytes, as CUDA's caching allocator does, so a total is what
`torch.cuda.memory_allocated` would say.
"""

import weakref
from typing import Literal, NamedTuple, get_args

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Kind = Literal["weights", "trained weights", "gradients", "optimizer", "activations", "temporaries"]
"""Frozen weights with their constants; adapters and heads; what autograd keeps is activations."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_BLOCK = 512


class Peak(NamedTuple):
    """The most bytes that were live at once."""

    total: int
    by_kind: dict[str, int]
    at: str
    """The operation that reached it."""


class _Held:
    """A living storage."""

    __slots__ = ("kind", "size")

    def __init__(self, kind: Kind, size: int) -> None:
        self.kind, self.size = kind, size


class Watch:
    """Follows the storages of all tensors that it is shown."""

    def __init__(self) -> None:
        self.live: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.doing = ""
        """The operation that runs."""
        self._held = WeakIdKeyDictionary()
        self.start()

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak = Peak(0, {}, "")
        self.note()

    def seen(self, tensor: Tensor, kind: Kind = "temporaries") -> None:
        """Count a tensor's storage, unless it is known already."""
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        if storage in self._held:
            return
        held = _Held(kind, -(-storage.nbytes() // _BLOCK) * _BLOCK)
        self._held[storage] = held
        weakref.finalize(storage, self._gone, held).atexit = False
        self.live[kind] += held.size
        self.note()

    def mark(self, tensor: Tensor | None, kind: Kind) -> None:
        """Say what a tensor is."""
        if tensor is None or tensor.device.type != "cuda":
            return
        self.seen(tensor)
        held = self._held[tensor.untyped_storage()]
        self.live[held.kind] -= held.size
        held.kind = kind
        self.live[kind] += held.size

    def keep(self, tensor: Tensor) -> Tensor:
        """Say that autograd keeps a tensor for the backward pass. Weights stay weights."""
        if tensor.device.type == "cuda":
            self.seen(tensor)
            if self._held[tensor.untyped_storage()].kind == "temporaries":
                self.mark(tensor, "activations")
        return tensor

    def keep_all(self) -> None:
        """Say that all that is left at the end of a forward pass is kept for the backward pass.

        This finds what a library's own function keeps without telling autograd.
        """
        for held in self._held.values():
            if held.kind == "temporaries":
                held.kind = "activations"
        self.live["activations"] += self.live["temporaries"]
        self.live["temporaries"] = 0

    def note(self, extra: int = 0) -> None:
        """Compare what is live, and what a kernel holds while it runs, with the peak."""
        total = sum(self.live.values()) + extra
        if total > self.peak.total:
            by_kind: dict[str, int] = {str(kind): size for kind, size in self.live.items()}
            by_kind["temporaries"] += extra
            self.peak = Peak(total, by_kind, self.doing)

    def _gone(self, held: _Held) -> None:
        self.live[held.kind] -= held.size
