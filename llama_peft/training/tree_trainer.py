"""Training on prefix-tree rows: the loss on answer positions, the self-check, the SFTTrainer.

The LM head is a fifth of a small model's forward pass and its logits are half a megabyte a token;
answers are a few percent of the tokens. So only the positions that predict a label are projected.
trl does that on CUDA alone; here it holds everywhere. Importing this module imports trl (seconds):
import it where training starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from trl import SFTTrainer

from llama_peft.errors import UserError
from llama_peft.prefix_tree.pack import (
    IGNORE_INDEX,
    EncodedLike,
    Row,
    answer_logits,
    collate,
    install,
    pack,
)
from llama_peft.training.trainer import SteadyTrainer


class Check(NamedTuple):
    """Mean losses of the same examples: as tree rows, and one by one through the bare model."""

    tree_loss: float
    plain_loss: float


def answer_loss(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of the labels, as transformers' ForCausalLMLoss.

    Summed in float32 and divided by the labels of the whole accumulated batch, or of this one.
    """
    logits_NV, labels_N = answer_logits(model, inputs)
    total = functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
    return total / (labels_N.numel() if num_items_in_batch is None else num_items_in_batch)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: Sequence[Row], batch_size: int = 1) -> float:
    """The loss of rows; every label weighs the same, so tree and plain rows can be compared."""
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = _to_device(collate(rows[start : start + batch_size]), model)
        labels = int((batch["labels"] != IGNORE_INDEX).sum())
        total += answer_loss(model, batch, 1).item()
        count += labels
    return total / count


@torch.no_grad()
def check(
    model: torch.nn.Module,
    examples: Sequence[EncodedLike],
    max_length: int,
    tolerance: float | None = None,
) -> Check:
    """Compare the loss of `examples` as tree rows with their loss one by one, without our masks.

    Dropout is off for the comparison: with it the two draw different noise, in training too. The
    tolerance is relative; by default 1e-4 for a float32 model and 3e-2 below, where the order of
    summation shows. Raises UserError if they part.
    """
    if tolerance is None:
        tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    with _without_dropout(model):
        tree_loss = mean_loss(model, pack(examples, max_length))
        alone = [
            answer_loss(model, _stock_inputs(model, example), 1).item() for example in examples
        ]
    plain_loss = sum(alone) / sum(len(example.completion) for example in examples)
    if not abs(tree_loss - plain_loss) <= tolerance * max(abs(plain_loss), 1.0):
        raise UserError(
            f"prefix-tree rows give a loss of {tree_loss:.6f} where the same {len(examples)} "
            f"examples one by one give {plain_loss:.6f}: this model or attention backend is not "
            "masked right; set train.packing: none"
        )
    return Check(tree_loss, plain_loss)


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
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off, and nothing else: `eval()` lets bitsandbytes repack 4-bit weights on CPU."""
    active = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


class TreeTrainer(SteadyTrainer, SFTTrainer):
    """SFTTrainer on prepared rows (tree or plain) that logs what an optimizer step held.

    Needs `data_collator=collate` and, in SFTConfig, `remove_unused_columns=False` and
    `dataset_kwargs={"skip_prepare_dataset": True}`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        install(self.model)
        self._held = torch.zeros(2, dtype=torch.long)  # examples and tokens since the last log
        self._logged_step: int | None = None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if model.training:
            self._count(inputs)
        if return_outputs or inputs["input_ids"].is_cuda:  # there trl's own head does it in tiles
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = answer_loss(model, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the count is that of all processes, and DDP averages their gradients
            loss = loss * self.accelerator.num_processes
        return loss

    def _count(self, inputs: Mapping[str, Tensor]) -> None:
        if self._logged_step is None:
            self._logged_step = self.state.global_step
        labelled = inputs["labels"] != IGNORE_INDEX
        examples = (labelled[:, 1:] & ~labelled[:, :-1]).sum()
        counts = torch.stack([examples, inputs["attention_mask"].sum()])
        self._held += self.accelerator.reduce(counts, reduction="sum").cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._logged_step is not None:
            steps = max(1, self.state.global_step - self._logged_step)
            examples, tokens = (self._held / steps).tolist()
            logs |= {"examples_per_step": examples, "tokens_per_step": tokens}
            self._held.zero_()
            self._logged_step = self.state.global_step
        super().log(logs, start_time)
