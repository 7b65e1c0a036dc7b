"""LoRA on upper blocks only: what the frozen blocks below compute of each row, computed once.

A batch brings these states along, and the model starts above the frozen blocks. Loss and gradients
are those of the plain training, which `train.reuse_frozen_blocks: false` is.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llama_peft.errors import UserError
from llama_peft.features import blocks
from llama_peft.features.cache import cache_folder, compute, sums_of
from llama_peft.features.shards import Stored
from llama_peft.features.states import Key
from llama_peft.prefix_tree.batch import Packed, as_trees, origins
from llama_peft.prefix_tree.loss import without_dropout
from llama_peft.recipe import Recipe
from llama_peft.training.processes.batch import ORIGINS, PACKED, STATES, Inputs
from llama_peft.training.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Collate = Callable[..., Mapping[str, object]]


def frozen_blocks(model: "PreTrainedModel") -> Sequence[nn.Module]:
    """Return the blocks of a base, with its adapter, that no training changes, lowest first.

    Raises UserError if there is none, or if what they compute is not all that the blocks above read, or
    not always the same.
    """
    if reason := blocks.unfit(model):
        raise UserError(
            f"train.reuse_frozen_blocks: {reason}, so states cannot stand in their place: remove this key"
        )
    found = blocks.frozen(model)
    if not found:
        raise UserError(
            "train.reuse_frozen_blocks: something is trained on the first block or below it, so no block "
            "stays as it is: set lora.layers_to_transform to upper blocks, or remove this key"
        )
    return found


def with_states(
    recipe: Recipe,
    model: "PreTrainedModel",
    count: int,
    rows: Mapping[str, Sequence[Row]],
    collate: Collate,
    run: Path,
) -> Collate:
    """Return a collator that adds what the lowest `count` blocks compute of its rows (B, T, D).

    The states of all parts are in the cache or added to it. Raises UserError if the disk is too
    small.
    """
    key, cache = Key(count, "tokens"), cache_folder(run)
    stored = [
        Stored(compute(recipe, model, part, its, cache, (key,)), key.name)
        for part, its in rows.items()
        if its
    ]
    return partial(_with_states, collate, stored)


def _with_states(
    collate: Collate, stored: Sequence[Stored], rows: Sequence[Row]
) -> Mapping[str, object]:
    batch = {**collate(rows)}
    each = [_of(stored, row) for row in rows]
    batch[STATES] = pad_sequence(each, batch_first=True)
    if PACKED in batch:
        mask = cast("Tensor", batch["attention_mask"])
        batch[ORIGINS] = origins(cast("Packed", batch[PACKED]), mask)
    return batch


def _of(stored: Sequence[Stored], row: Row) -> Tensor:
    texts = sums_of([row])
    return next(states for its in stored if (states := its.of(texts)) is not None)


@contextmanager
def on_states(
    frozen: Sequence[nn.Module], inputs: Inputs, device: torch.device
) -> Iterator[Inputs]:
    """Start the model above frozen blocks, if a batch has their states; yields what the model gets."""
    states = inputs.get(STATES)
    if states is None:
        yield inputs
        return
    others = {key: value for key, value in inputs.items() if key not in (STATES, ORIGINS)}
    if ORIGINS in inputs:
        states = as_trees(states, inputs[ORIGINS])
    with blocks.given(frozen, states.to(device, non_blocking=True)):
        yield others


def check_states(
    batch: Mapping[str, object],
    model: nn.Module,
    validate: Callable[[nn.Module, Inputs, bool], tuple[Tensor | None, None, None]],
    dtype: torch.dtype,
) -> None:
    """Compare the loss on the states of a batch with that of the blocks that would compute them.

    validate: Trainer's `prediction_step`. dtype: in which the blocks compute. Dropout is off. Raises
    UserError if the two differ by more than sums in another order do.
    """
    given = cast("Inputs", batch)
    plain = {key: value for key, value in given.items() if key not in (STATES, ORIGINS)}
    with torch.no_grad(), without_dropout(model):
        losses = [validate(model, its, True)[0] for its in (given, plain)]
    found, expected = (float(loss) for loss in losses if loss is not None)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    if not abs(found - expected) <= tolerance * max(abs(expected), 1.0):
        raise UserError(
            f"the states of the frozen blocks give a loss of {found:.6f}, but these blocks one of "
            f"{expected:.6f}: set train.reuse_frozen_blocks: false"
        )
    log.info("self-check: the loss is %.5f on states, and %.5f with all blocks", found, expected)
