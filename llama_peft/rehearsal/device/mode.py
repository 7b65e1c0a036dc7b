"""What stands between the product's code and fake tensors: values, rules of the device, counts.

Integers and booleans (ids, labels, masks, positions) keep their real values beside the fake tensor,
so `.item()`, `nonzero` and indexing by a mask go the way of a real run. A floating-point number on
the GPU has no value; where the code asks for one it gets zero, and the report counts this.
"""

import inspect
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from llama_peft.rehearsal.device import kernels, replace
from llama_peft.rehearsal.device.values import (
    Arguments,
    Named,
    free_constant,
    give,
    keep_values,
    really,
    tensors_of,
    value_of,
)
from llama_peft.rehearsal.device.watch import Watch

log = logging.getLogger(__name__)

aten = torch.ops.aten
_OURS = Path(__file__).parents[2]
_DEVICE_OF = torch.ops.prim.device.default
_INDEXED = aten.index.Tensor, aten.index_put_.default, aten.index_put.default
_ONE_TYPE = {
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    *("aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_flash_attention"),
    "torch_attn::_varlen_attn",
}
"""Kernels that refuse floating-point inputs of different types, which fake tensors do not check."""
_SECOND_MATRIX = {"aten::mm": 1, "aten::bmm": 1, "aten::addmm": 2, "aten::baddbmm": 2}
"""Which argument of a product is its second matrix."""
_NO_KERNEL = {
    *("aten::detach", "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty"),
    *("aten::_unsafe_view", "aten::lift_fresh", "aten::_local_scalar_dense", "aten::set_"),
}
"""Operations that run nothing on the GPU, and are no views."""


class Counts:
    """What one step does on the GPU."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.flop: Counter[str] = Counter()
        self.syncs: Counter[tuple[str, str]] = Counter()
        """By what waits for the GPU, and where in the code."""
        self.copies: Counter[tuple[str, str]] = Counter()
        """To the GPU."""
        self.guesses: Counter[tuple[str, str]] = Counter()


class Rehearsal(TorchDispatchMode):
    """Runs every operation on fake tensors, and tells the watch and the counts about it."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch, self.counts = watch, Counts()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and the guard costs more than many operations

    def start(self) -> None:
        """Count from zero."""
        self.counts = Counts()
        self.watch.start()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Arguments = (), kwargs: Named | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is _DEVICE_OF:
            return cast(
                "Tensor", args[0]
            ).device  # torch's C++ code asks this for every second operation
        if func.namespace == "prim":
            return func(*args, **kwargs)
        self.watch.doing = str(func)
        for tensor in tensors_of((args, kwargs)):
            free_constant(tensor)
        if func in (aten._local_scalar_dense.default, aten.item.default):
            return self._number(_only_tensor(args))
        if func is aten.equal.default:
            return self._equal(*tensors_of(args))
        if func in _INDEXED:
            args = self._indices(args)
        elif func is aten._to_copy.default or func is aten.copy_.default:
            self._count_copy(func, args, kwargs)
        if _is_composite(func):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        return self._run(func, args, kwargs)

    def _run(self, func: OpOverload, args: Arguments, kwargs: Named) -> object:
        tensors = tensors_of((args, kwargs))
        _check_types(func, tensors)
        name = func._schema.name
        try:
            stand_in = kernels.STAND_INS.get(name)
            output = (stand_in or func)(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            output = self._by_values(func, args, kwargs)
        else:
            keep_values(func, args, kwargs, tensors, output)
        made = tensors_of(output)
        for tensor in made:
            self.watch.seen(tensor)
        self._count(func, args, kwargs, output, [*tensors, *made])
        return output

    def _count(
        self, func: OpOverload, args: Arguments, kwargs: Named, output: object, all: list[Tensor]
    ) -> None:
        name = func._schema.name
        if func.is_view or name in _NO_KERNEL or all_on_cpu(all):
            return
        scratch = kernels.scratch(name, args)
        self.watch.note(scratch.bytes)
        self.counts.kernels[name] += 1
        if scratch.kernels:
            self.counts.kernels[f"{name}, unpacking"] += scratch.kernels
        if name in kernels.WAITS:
            self._sync(kernels.WAITS[name])
        if name in kernels.FLOP:
            what, formula = kernels.FLOP[name]
            self.counts.flop[what] += formula(*args, **kwargs)
        elif name in _SECOND_MATRIX:
            second, (product, *_) = args[_SECOND_MATRIX[name]], tensors_of(output)
            assert isinstance(second, Tensor)
            self.counts.flop["matrix products"] += 2 * product.numel() * second.shape[-2]
        elif "attention" in name:
            formula = flop_registry[func._overloadpacket]
            self.counts.flop["attention"] += formula(*args, **kwargs, out_val=output)

    # What depends on data

    def _number(self, tensor: Tensor) -> bool | int | float:
        """Return the value of `.item()`."""
        if tensor.device.type == "cuda":
            self._sync("item")
        value = value_of(tensor)
        if value is not None:
            found: bool | int | float = really(value.item)
            return found
        self.counts.guesses["item", place()] += 1
        if tensor.dtype == torch.bool:
            return True
        return 0.0 if tensor.is_floating_point() else 7

    def _equal(self, one: Tensor, other: Tensor) -> bool:
        if one.device.type == "cuda":
            self._sync("equal")
        values = value_of(one), value_of(other)
        if values[0] is None or values[1] is None:
            return True
        return really(torch.equal, *values)

    def _indices(self, args: Arguments) -> Arguments:
        """Return the arguments of an index operation with masks as the positions that they select."""
        target, given = args[0], args[1]
        assert isinstance(target, Tensor) and isinstance(given, Sequence)
        indices: list[object] = []
        for index in given:
            if not isinstance(index, Tensor):
                indices.append(index)
                continue
            if index.device.type == "cuda" and target.device.type == "cpu":
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                )
            if index.dtype != torch.bool:
                indices.append(index)
                continue
            if index.device.type == "cuda":
                self._sync("index by a mask")
            chosen = really(self._mask(index).nonzero)
            indices += [self._made(column, index) for column in really(chosen.unbind, 1)]
        return (target, indices, *args[2:])

    def _by_values(self, func: OpOverload, args: Arguments, kwargs: Named) -> object:
        """Return the output of an operation whose shape depends on values: nonzero, unique, ..."""
        if func is aten.masked_select.default:
            self._sync("masked_select")
            source, mask = tensors_of(args)
            count = int(really(self._mask(mask).expand(source.shape).sum))
            return source.new_empty(count)
        first = tensors_of((args, kwargs))[0]
        if first.device.type == "cuda":
            self._sync(func._schema.name.removeprefix("aten::"))
        known = tree_map_only(Tensor, self._mask, (args, kwargs))
        output = really(lambda: func(*known[0], **known[1]))
        return tree_map_only(Tensor, lambda value: self._made(value, first), output)

    def _mask(self, tensor: Tensor) -> Tensor:
        """Return the values of a tensor; ones if they are not known."""
        value = value_of(tensor)
        if value is not None:
            return value
        self.counts.guesses["mask", place()] += 1
        return really(lambda: torch.ones(tensor.shape, dtype=tensor.dtype))

    def _made(self, value: Tensor, like: Tensor) -> Tensor:
        made = torch.empty(value.shape, dtype=value.dtype, device=like.device)
        self.watch.seen(made)
        return give(made, value)

    def to_list(self, tensor: Tensor) -> object:
        """Take the place of FakeTensor.tolist, which would ask for each number alone."""
        if tensor.device.type == "cuda":
            self._sync("tolist")
        value = value_of(tensor)
        if value is None:
            self.counts.guesses["tolist", place()] += 1
            guess = 0.0 if tensor.is_floating_point() else 7
            value = really(lambda: torch.full(tensor.shape, guess, dtype=tensor.dtype))
        found: object = really(value.tolist)
        return found

    def _sync(self, what: str) -> None:
        self.counts.syncs[what, place()] += 1

    def _count_copy(self, func: OpOverload, args: Arguments, kwargs: Named) -> None:
        tensors = tensors_of(args)
        if func is aten.copy_.default:
            target, source = tensors[0].device.type, tensors[1].device.type
        else:
            source = tensors[0].device.type
            target = torch.device(kwargs.get("device") or source).type
        if (source, target) == ("cuda", "cpu"):
            self._sync("copy to the CPU")
        elif (source, target) == ("cpu", "cuda"):
            self.counts.copies["copy to the GPU", place()] += 1


def all_on_cpu(tensors: Sequence[Tensor]) -> bool:
    """Return whether no tensor claims to be on the GPU."""
    return all(tensor.device.type != "cuda" for tensor in tensors)


def place() -> str:
    """Return where our code, or if there is none a library, calls the present operation."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_OURS) and not file.is_relative_to(_OURS / "rehearsal"):
            own = f"{file.relative_to(_OURS.parent)}:{frame.f_lineno}"
            return f"{own} ({library})" if library else own
        parts = file.parts
        if "site-packages" in parts and not library:
            inner = parts[parts.index("site-packages") + 1 :]
            if inner[0] != "torch" or inner[1] in ("optim", "amp"):
                library = f"{'/'.join(inner)}:{frame.f_lineno}"
        frame = frame.f_back
    return library or "the backward pass"


def _only_tensor(args: Arguments) -> Tensor:
    (tensor,) = tensors_of(args)
    return tensor


def _check_types(func: OpOverload, tensors: Sequence[Tensor]) -> None:
    """Raise RuntimeError for a mixture of types that the kernel on a GPU refuses."""
    if func._schema.name not in _ONE_TYPE or "dtype" in func._overloadname:
        return
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if len(found) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        raise RuntimeError(f"{func._schema.name} needs inputs of one type, and got {named}")


_composite: dict[OpOverload, bool] = {}


def _is_composite(func: OpOverload) -> bool:
    """Return whether an operation is made of others, which are then run in its place.

    One that has a kernel of its own on the CPU has one on the GPU too.
    """
    if func not in _composite:
        keys = torch._C.DispatchKey
        made_of_others = func.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd)
        _composite[func] = made_of_others and not func.has_kernel_for_dispatch_key(keys.CPU)
    return _composite[func]


@contextmanager
def rehearsing(mode: Rehearsal) -> Iterator[None]:
    """Make every tensor fake inside this context."""
    import torch._subclasses.fake_tensor as fake_tensor
    import transformers.utils.import_utils as transformers_utils
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for types in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        types.append(FakeTensor)
    replace(fake_tensor, "init_gpu_context", lambda *_: None)
    unguarded = inspect.unwrap(fake_tensor.FakeTensorMode.__torch_dispatch__)
    replace(fake_tensor.FakeTensorMode, "__torch_dispatch__", unguarded)
    # transformers would make a mask that a real run leaves out, because its values could not be read.
    replace(transformers_utils, "is_fake_tensor", lambda _: False)
    replace(FakeTensor, "tolist", lambda self: mode.to_list(self))
    fake = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with fake, mode:
        # Then `torch.tensor(..., device="cuda")` goes through the modes.
        torch._C._set_only_lift_cpu_tensors(True)
        yield
