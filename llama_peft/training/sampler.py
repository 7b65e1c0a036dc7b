"""The order in which rows are trained on; it depends on the seed and the number of the epoch only.

The stock samplers draw the order of an epoch from torch's global random state. A run that is
resumed in the middle of its second epoch has lost that state: it repeats the order of the first
epoch, so some rows come twice and others never. Here the order of an epoch is the same in every
process and after every restart.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

if TYPE_CHECKING:
    from transformers import Trainer


class EpochOrder(Sampler[int]):
    """Gives rows in random order, or in groups of similar length if the arguments say so."""

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        self._rows = trainer.train_dataset
        grouped = trainer.args.train_sampling_strategy == "group_by_length"
        self._lengths = _lengths(self._rows) if grouped else None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self._trainer.args, int(self._trainer.state.epoch or 0)
        generator = torch.Generator().manual_seed(args.seed + epoch)
        if self._lengths is None:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        # The rows of a step of all processes, so that the order is the same for any number of these.
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return iter(get_length_grouped_indices(self._lengths, batch_size, generator=generator))


class LongestFirst(Sampler[int]):
    """Gives rows by length, so that the batches of a validation have little padding."""

    def __init__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> None:
        longest_first = numpy.argsort(
            -numpy.array(_lengths(rows), dtype=numpy.int64), kind="stable"
        )
        self._order = array("q", longest_first.tobytes())

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


def _lengths(rows: Sequence[Mapping[str, Sequence[int]]]) -> "array[int]":
    """Return the tokens of each row."""
    return array("q", (len(row["input_ids"]) for row in rows))
