"""The order in which rows are trained on: of each epoch, and nothing else.

The stock samplers draw an epoch's order from torch's global random state as it happens to be. A run resumed in the middle of its
second epoch has lost that state: it replays the order of the first, so some rows come twice and others never. Here an epoch's
order follows from the seed and the epoch's number, in every process and after every restart.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

if TYPE_CHECKING:
    from transformers import Trainer


class EpochOrder(Sampler[int]):
    """Random, or with rows of like length together where the arguments say `group_by_length`."""

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        self._rows = trainer.train_dataset
        grouped = trainer.args.train_sampling_strategy == "group_by_length"
        self._lengths = [len(row["input_ids"]) for row in self._rows] if grouped else None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self._trainer.args, int(self._trainer.state.epoch or 0)
        generator = torch.Generator().manual_seed(args.seed + epoch)
        if self._lengths is None:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        batch_size = args.train_batch_size * args.gradient_accumulation_steps
        return iter(get_length_grouped_indices(self._lengths, batch_size, generator=generator))
