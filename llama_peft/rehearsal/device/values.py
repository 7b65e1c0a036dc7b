"""The real values of fake tensors: of integers and booleans, beside which they are kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

T = TypeVar("T")
Arguments: TypeAlias = Sequence[object]
Named: TypeAlias = Mapping[str, object]
_LARGEST_VALUE = 64 << 20
"""Elements of the largest tensor whose values are kept."""
_DRAWN = "rand", "normal", "uniform", "bernoulli", "bitsandbytes", "empty", "dropout"
"""Parts of the names of operations whose output has no value that could be known."""


def value_of(tensor: Tensor) -> Tensor | None:
    """Return the real values of a tensor, None if they are not known."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    found: Tensor | None = getattr(tensor, "rehearsed_value", None)
    return found


def give(tensor: Tensor, value: Tensor | None) -> Tensor:
    tensor.rehearsed_value = value
    return tensor


def really(compute: Callable[..., T], *arguments: object) -> T:
    """Return what a function computes with real tensors."""
    with _disable_current_modes():
        return compute(*arguments)


def tensors_of(values: object) -> list[Tensor]:
    """Return the tensors among arguments or outputs, which operations nest in lists at most."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in tensors_of(value)]


def free_constant(tensor: Tensor) -> None:
    """Take the constant of a fake tensor as its value. torch would compute with it on the GPU."""
    if isinstance(tensor, FakeTensor) and tensor.constant is not None:
        if value_of(tensor) is None:
            give(tensor, tensor.constant)
        tensor.constant = None


def keep_values(
    func: OpOverload, args: Arguments, kwargs: Named, tensors: Sequence[Tensor], output: object
) -> None:
    """Compute the values of the output too, if those of all inputs are known."""
    made, name = tensors_of(output), func._schema.name
    values = [value_of(tensor) for tensor in tensors]
    drawn = any(part in name for part in _DRAWN)
    if drawn or any(value is None for value in values):
        for tensor in _written(func, args):
            if isinstance(tensor, FakeTensor):
                give(tensor, None)
        return
    if any(map(_has_no_value, made)) or not (made or func._schema.is_mutable):
        return
    by_tensor = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}
    real_args, real_kwargs = tree_map_only(
        Tensor, lambda tensor: by_tensor[id(tensor)], (args, kwargs)
    )
    real_kwargs = {key: value for key, value in real_kwargs.items() if key not in _PLACES}
    computed = really(lambda: func(*real_args, **real_kwargs))
    for tensor, value in zip(made, tensors_of(computed), strict=True):
        if isinstance(tensor, FakeTensor):
            give(tensor, value)


def _written(func: OpOverload, args: Arguments) -> list[Tensor]:
    """Return the tensors that an operation changes in place."""
    written = [
        arg
        for arg, form in zip(args, func._schema.arguments, strict=False)
        if form.alias_info is not None and form.alias_info.is_write
    ]
    return tensors_of(written)


_PLACES = "device", "pin_memory", "non_blocking"
"""Arguments that say where an output lies; values lie on the CPU."""


def _has_no_value(tensor: Tensor) -> bool:
    on_gpu = tensor.is_floating_point() and tensor.device.type == "cuda"
    return on_gpu or tensor.numel() > _LARGEST_VALUE
