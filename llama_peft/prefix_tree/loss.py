"""The loss on answer positions, and the self-check that tree rows give the loss of plain examples.

The LM head takes a fifth of a small model's forward pass, and its logits take half a megabyte for
each token, while answers are a few percent of the tokens. So only the positions that predict a
label are projected. trl does that on CUDA alone; here it holds everywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from llama_peft.errors import UserError
from llama_peft.prefix_tree.pack import IGNORE_INDEX, EncodedLike, TreeRow, collate, pack

# Shapes: N labelled positions, V vocabulary.

_AS_EVER = nullcontext()


class AnswerLogits(NamedTuple):
    """The logits that predict labels, and these labels."""

    logits_NV: Tensor
    labels_N: Tensor


class Losses(NamedTuple):
    """Mean losses of the same examples: as tree rows, and one by one without our masks."""

    tree: float
    one_by_one: float


def answer_logits(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> AnswerLogits:
    """Return the logits at the positions that predict a label, and these labels.

    This goes through the model's own forward, so that DDP, PEFT and Gemma's soft-capping still
    apply.
    """
    targets = functional.pad(inputs["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
    predicts = targets != IGNORE_INDEX
    arguments = {key: value for key, value in inputs.items() if key != "labels"}
    outputs = model(**{**arguments, "use_cache": False, "logits_to_keep": predicts})
    return AnswerLogits(outputs.logits, targets[predicts])


def answer_loss(
    model: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Return the cross-entropy of the labels, as transformers' ForCausalLMLoss.

    It is summed in float32 and divided by the labels of the whole accumulated batch, or of this
    one.
    """
    logits_NV, labels_N = answer_logits(model, inputs)
    total = functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
    return total / (labels_N.numel() if num_items_in_batch is None else num_items_in_batch)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: Sequence[TreeRow]) -> float:
    """Return the mean loss over all labels, so that tree and plain rows can be compared."""
    total, count = 0.0, 0
    for row in rows:
        batch = _to_device(collate([row]), model)
        total += answer_loss(model, batch, 1).item()
        count += sum(label != IGNORE_INDEX for label in row["labels"])
    return total / count


@torch.no_grad()
def self_check(
    model: torch.nn.Module,
    examples: Sequence[EncodedLike],
    max_length: int,
    plainly: AbstractContextManager[None] = _AS_EVER,
) -> Losses:
    """Return the loss of `examples` as tree rows and one by one. Raises UserError if they differ.

    plainly: in which the second is computed. Dropout is off, because the two would draw different
    noise (in training they do). The relative tolerance is 1e-4 for a float32 model and 3e-2 for
    others, whose sums depend on their order.
    """
    with without_dropout(model):
        tree = mean_loss(model, pack(examples, max_length))
        with plainly:
            alone = [
                answer_loss(model, _stock_inputs(model, example), 1).item() for example in examples
            ]
    one_by_one = sum(alone) / sum(len(example.completion) for example in examples)
    return _agreed(Losses(tree, one_by_one), len(examples), model.dtype)


@torch.no_grad()
def check_batch(
    model: torch.nn.Module,
    batch: Mapping[str, object],
    dtype: torch.dtype,
    plainly: AbstractContextManager[None] = _AS_EVER,
) -> Losses:
    """Return the loss of a head's batch from its tree rows and from its padded rows.

    dtype: in which the backbone computes. plainly: in which the second loss is computed. Raises
    UserError if they differ, as in `self_check`.
    """
    device = next(model.parameters()).device
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), dict(batch))
    padded = {key: value for key, value in inputs.items() if key != "packed"}
    with without_dropout(model):
        tree = model(**inputs).loss.item()
        with plainly:
            found = Losses(tree, model(**padded).loss.item())
    return _agreed(found, len(inputs["input_ids"]), dtype)


def _agreed(found: Losses, examples: int, dtype: torch.dtype) -> Losses:
    """Return the losses. Raises UserError if they differ."""
    tree, alone = found
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    if not abs(tree - alone) <= tolerance * max(abs(alone), 1.0):
        raise UserError(
            f"prefix-tree rows give a loss of {tree:.6f}, but the same {examples} examples "
            f"one by one give {alone:.6f}: the mask is wrong for this model or attention "
            "backend, or blocks were compiled wrongly; set train.packing: none, and no torch_compile"
        )
    return found


def _stock_inputs(model: torch.nn.Module, example: EncodedLike) -> dict[str, Tensor]:
    tokens = [*example.prompt, *example.completion]
    labels = [IGNORE_INDEX] * len(example.prompt) + list(example.completion)
    return _to_device(
        {"input_ids": torch.tensor([tokens]), "labels": torch.tensor([labels])}, model
    )


def _to_device(batch: Mapping[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Switch only dropout off: `eval()` lets bitsandbytes repack 4-bit weights on CPU."""
    active = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()
