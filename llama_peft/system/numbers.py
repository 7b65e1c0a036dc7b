"""The ranges of numbers in files, and the search for tensors and scores that are no numbers.

A NaN passes every comparison unnoticed: a model with one gives an arbitrary answer, and a training
goes on to the end.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, ValidationError

from llama_peft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[Finite, Field(ge=0, lt=1e15)]
Count = Annotated[int, Field(ge=0, lt=10**15)]
Positive = Annotated[int, Field(ge=1, lt=10**15)]
Step = Annotated[int, Field(ge=0, le=10**9)]
Version = Annotated[int, Field(ge=1, lt=10**15)]
Probability = Annotated[Finite, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _ordered(interval: list[float]) -> list[float]:
    if interval[0] > interval[1] + 1e-9:  # two equal percentiles may differ by a rounding
        raise ValueError("its end is below its start")
    return interval


Interval = Annotated[list[Finite], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
"""[low, high], 95 %."""


def first_fault(error: ValidationError, whole: str = "") -> str:
    """Return in one line what is refused first. whole: what to call values that are no object."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


def is_finite(tensor: "Tensor") -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # no bounds of 8-bit floats
    # One pass without a copy; NaN comes out as the lowest and the highest.
    return all(math.isfinite(end.item()) for end in wide.aminmax())


def first_not_finite(tensors: "Mapping[str, Tensor]") -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all hold numbers."""
    return next((name for name, one in tensors.items() if not is_finite(one)), None)


def check_finite(tensors: "Mapping[str, Tensor]", fault: str, advice: str) -> None:
    """Raise UserError, with these words, if a tensor holds NaN or infinity."""
    odd = first_not_finite(tensors)
    if odd is not None:
        raise UserError(f"{fault} (first in {odd}); {advice}")


def check_scores(scores: Iterable[float], whose: str = "") -> None:
    """Raise UserError unless all scores of a model are numbers: others would make an arbitrary
    answer the best.

    whose: the id of the example that they belong to.
    """
    if not all(map(math.isfinite, scores)):
        raise UserError(
            f"{whose or 'this model'}: the model's scores are not numbers, so there is no "
            "prediction; its weights are damaged, or model.dtype is too narrow for them"
        )
