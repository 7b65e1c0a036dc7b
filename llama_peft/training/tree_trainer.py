"""The SFTTrainer for answers, on prefix-tree rows or on one example a row.

Importing this module imports trl, which takes seconds, so only the start of a training does it.
"""

from collections.abc import Iterator, Mapping, Sequence

import datasets
import torch
from datasets.table import InMemoryTable
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from trl import SFTTrainer

from llama_peft.prefix_tree.loss import answer_loss
from llama_peft.prefix_tree.mask import install
from llama_peft.prefix_tree.pack import IGNORE_INDEX
from llama_peft.training.trainer import SteadyTrainer


class TreeDataset(datasets.Dataset):
    """Rows in the one form that SFTTrainer takes, which leaves them where they are."""

    def __init__(self, rows: Sequence[object]) -> None:
        super().__init__(InMemoryTable.from_pydict({"row": range(len(rows))}))
        self._rows = rows

    def __getitem__(self, number: int) -> object:
        return self._rows[number]

    def __getitems__(self, numbers: Sequence[int]) -> list[object]:
        return [self._rows[number] for number in numbers]

    def __iter__(self) -> Iterator[object]:
        return iter(self._rows)


class TreeTrainer(SteadyTrainer, SFTTrainer):
    """SFTTrainer on prepared rows that logs how many examples and tokens an optimizer step held.

    It needs a collator of `training/rows.py` as `data_collator` and, in SFTConfig,
    `remove_unused_columns=False` and `dataset_kwargs={"skip_prepare_dataset": True}`.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        install(self.model)
        self._held = torch.zeros(2, dtype=torch.long)  # examples and tokens since the last log
        self._logged_step: int | None = None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the loss of a batch; on CUDA trl's own head computes it in tiles."""
        if model.training and torch.is_grad_enabled():
            self._count(inputs)
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        fused = inputs["input_ids"].is_cuda and has_plain_head(self.model)
        computed = fused_answer_loss if fused else answer_loss
        loss = computed(model, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The count is that of all processes, and DDP averages their gradients.
            loss = loss * self.accelerator.num_processes
        return loss

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # The loss is a mean over batches of means over their labels: it depends on the batches, and
        # stays comparable with that of earlier runs.
        return super(SteadyTrainer, self)._get_eval_sampler(eval_dataset)

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Write nothing: trl would write its own card into the folder of the checkpoints."""

    def _count(self, inputs: Mapping[str, Tensor]) -> None:
        if self._logged_step is None:
            self._logged_step = self.state.global_step
        labelled = inputs["labels"] != IGNORE_INDEX
        examples = (labelled[:, 1:] & ~labelled[:, :-1]).sum()
        counted = inputs["attention_mask"] * labelled.any(dim=1, keepdim=True)
        counts = torch.stack([examples, counted.sum()])
        # Kept on the device: to look at them would wait for it in every step.
        self._held = self.accelerator.reduce(counts, reduction="sum") + self._held.to(counts.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add examples and tokens per step to the training losses that are logged."""
        if "loss" in logs and self._logged_step is not None:
            steps = max(1, self.state.global_step - self._logged_step)
            examples, tokens = (self._held / steps).tolist()
            logs |= {"examples_per_step": examples, "tokens_per_step": tokens}
            self._held.zero_()
            self._logged_step = self.state.global_step
        super().log(logs, start_time)


def has_plain_head(model: torch.nn.Module) -> bool:
    """Return whether the LM head is its weights alone, which trl's own head reads.

    It is not if tokens are trained beside them (`lora.trainable_token_indices`) in a tied head.
    """
    return not isinstance(model.get_output_embeddings(), TrainableTokensWrapper)


def fused_answer_loss(
    model: torch.nn.Module,
    inputs: dict[str, Tensor],
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Return the loss of `answer_loss`, by the head that trl puts on a model.

    trl's own `compute_loss` does so too, and looks at five numbers of each batch, for each of which
    the device is waited for.
    """
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    total = -outputs.log_probs.sum()  # zero where there is no label
    return total / (outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch)
