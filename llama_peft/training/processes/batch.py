"""The rows of a batch: pieces of them, and which of the last ones of an epoch this process trains on.

accelerate gives whole batches to the processes in turn, and fills the last ones with rows from the
beginning of the epoch, so that each process has a batch. These rows would count twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

IDS = "ids"
"""The key of a batch for the example ids of each of its rows, which the model never gets."""
PACKED = "packed"
"""The key of a batch for its tokens as tree rows, which only the whole batch has."""
STATES = "states"
"""The key of a batch for what its frozen blocks compute (B, T, D); the model never gets it itself."""
ORIGINS = "origins"
"""The key of a batch for which token of its rows each token of its tree rows is."""
_WHOLE = PACKED, ORIGINS, "segments"
"""What only the whole batch has: pieces of it find their segments themselves."""
Inputs = dict[str, Tensor]
"""What the model gets: tensors by the names of its arguments."""


@dataclass(frozen=True, kw_only=True)
class LastRows:
    """rows: those of an epoch. size: the rows of a batch of one process. rank: of this process."""

    rows: int
    size: int
    processes: int
    rank: int

    @property
    def own(self) -> int:
        """Return how many rows of its last batch no other process has: the first ones, or none."""
        return min(max(self._left - self.rank * self.size, 0), self.size)

    def in_batches(self, count: int, with_last: bool) -> int:
        """Return how many rows the next batches of all processes hold. count: those of one process.

        with_last: whether the last one of them is the last one of the epoch.
        """
        whole = self.size * self.processes
        return whole * count - (whole - self._left if with_last else 0)

    @property
    def _left(self) -> int:
        whole = self.size * self.processes
        return self.rows % whole or whole


def take_ids(inputs: dict[str, Tensor | list[list[str]]]) -> list[str]:
    """Remove the example ids from a batch and return them."""
    return [id_ for row in inputs.pop(IDS, []) for id_ in row]


def num_own(inputs: Mapping[str, Tensor]) -> int:
    """Return how many rows of a batch count: one that no other process needs has no ids."""
    return len(inputs[IDS]) if IDS in inputs else num_rows(inputs)


def first_rows(inputs: Mapping[str, Tensor], count: int) -> Inputs:
    """Return the first rows of a batch, without what only the whole batch has."""
    if count >= num_rows(inputs):
        return dict(inputs)
    return {key: value[:count] for key, value in inputs.items() if key not in _WHOLE}


def num_rows(inputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))


def split(inputs: Mapping[str, Tensor], pieces: int) -> Iterator[Inputs]:
    """Yield the rows of a batch in at most `pieces` parts, without what only the whole batch has."""
    if pieces == 1:
        yield dict(inputs)
        return
    rows = num_rows(inputs)
    size = -(-rows // pieces)
    for first in range(0, rows, size):
        yield {
            key: value[first : first + size] for key, value in inputs.items() if key not in _WHOLE
        }
