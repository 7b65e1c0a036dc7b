"""Training steps that survive running out of memory, and stop at a number that is not finite.

The stock Trainer logs a NaN as 0.0 and continues with ruined weights. Its own batch finder starts
again with weights that are already trained, and ignores accumulation. Here the same step is
computed again in smaller pieces, so only the order of summation differs, and a loss or gradient
that is not finite ends the run before the optimizer uses it.

Six private methods of Trainer are overridden, because no public hook is in their place;
tests/training/test_trainer_hooks.py says what each of them must do.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from llama_peft.errors import UserError
from llama_peft.model.backbone import first_line
from llama_peft.prefix_tree.pack import IGNORE_INDEX
from llama_peft.system.memory import (
    free_memory,
    is_out_of_memory,
    random_state,
    set_random_state,
)
from llama_peft.system.processes import job
from llama_peft.system.seal import is_sealed
from llama_peft.training.features.frozen_blocks import on_states
from llama_peft.training.loss_weights import LossWeights
from llama_peft.training.processes.batch import (
    IDS,
    Inputs,
    LastRows,
    first_rows,
    num_own,
    num_rows,
    split,
    take_ids,
)
from llama_peft.training.sampler import EpochOrder, LongestFirst

log = logging.getLogger(__name__)


class SteadyTrainer(Trainer):
    """A Trainer whose batches may carry `ids`, a list of example ids for each row."""

    _pieces = 1
    """How many pieces a batch is computed in; doubled when memory runs out, and then kept."""
    _share = 1.0
    """The part of the step's loss that the present piece makes up, times the number of processes,
    because DDP averages their gradients."""
    _step_ids: tuple[str, ...] = ()
    _step_losses: tuple[Tensor, ...] = ()
    """The losses of the present step's batches, which are looked at together with its gradient."""
    _weights: LossWeights | None = None
    _chooses: tuple[str, Callable[[], float]] | None = None
    """The name of a score of the validation part, and the function that computes it."""
    frozen: Sequence[nn.Module] = ()
    """The blocks whose states come with the batches."""
    computes_in = "float32"
    """The type of the base's activations, for messages."""

    def weigh(self, weights: LossWeights | None) -> None:
        """Train and validate with these weights in the loss."""
        self._weights = weights

    def choose_by(self, name: str, score: Callable[[], float]) -> None:
        """Compute a score of the model at each validation, beside the loss."""
        self._chooses = name, score

    def evaluation_loop(self, *args: object, **kwargs: object) -> EvalLoopOutput:
        """Return the validation loss, with the score that chooses checkpoints."""
        output = super().evaluation_loop(*args, **kwargs)
        if self._chooses is not None:
            name, score = self._chooses
            # Every process needs the same number, or each would keep its own best checkpoint.
            output.metrics[f"eval_{name}"] = job.decided(score)
        return output

    def get_batch_samples(
        self, epoch_iterator: Iterator[Inputs], num_batches: int, device: torch.device
    ) -> tuple[list[Inputs], Tensor | int | None]:
        """Return the batches of one step, and over how much its loss is a mean.

        Under a head these are the rows of all batches of all processes, or their weights; for
        answers the library counts labels. So neither accumulation, nor the number of processes, nor
        a last batch that is smaller changes the step.
        """
        own = map(self._without_repeats, epoch_iterator)
        batches, items = super().get_batch_samples(own, num_batches, device)
        if not batches or self.model_accepts_loss_kwargs:
            return batches, items
        self.loss_is_scaled_for_ga = True  # so it is not divided by the number of batches too
        if self._weights is None:
            last = self._last_rows(self.train_dataset, self.args.train_batch_size)
            return batches, last.in_batches(len(batches), self._is_last_batch)
        labels = [batch["labels"][: num_own(batch)] for batch in batches]
        terms = torch.stack([self._weights.terms(its) for its in labels])
        return batches, self.accelerator.reduce(terms.sum().to(device), reduction="sum")

    def _last_rows(self, dataset: Dataset, size: int) -> LastRows:
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        return LastRows(rows=len(dataset), size=size, processes=processes, rank=rank)

    @property
    def _is_last_batch(self) -> bool:
        """Return whether the batch that was given last is the last one of its epoch."""
        return bool(self.accelerator.gradient_state.end_of_dataloader)

    def _without_repeats(self, batch: Inputs) -> Inputs:
        """Return the rows of a training batch that no other process has.

        A process without such a row keeps one that counts for nothing, because the others wait for
        its gradients.
        """
        own = self._last_rows(self.train_dataset, self.args.train_batch_size).own
        if not self._is_last_batch or own >= num_rows(batch):
            return batch
        kept = first_rows(batch, max(own, 1))
        kept[IDS] = batch.get(IDS, [[]] * own)[:own]
        if own == 0 and self.model_accepts_loss_kwargs:
            kept["labels"] = torch.full_like(kept["labels"], IGNORE_INDEX)
        return kept

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)
        return EpochOrder(self)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # The library hardly groups a validation of few batches, and each time in another order.
        if self.args.train_sampling_strategy != "group_by_length" or eval_dataset is None:
            return super()._get_eval_sampler(eval_dataset)
        return LongestFirst(eval_dataset)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | list[list[str]]],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add a batch's gradients and return its loss, in smaller pieces if memory runs out."""
        own = num_own(inputs)
        self._step_ids = (*self._step_ids, *take_ids(inputs))
        before = [None if p.grad is None else p.grad.clone() for p in _trained(model)]
        draws = random_state()
        while (loss := self._attempt(model, inputs, num_items_in_batch, own)) is None:
            set_random_state(draws)  # so that dropout is that of a step that never failed
            for parameter, gradient in zip(_trained(model), before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            free_memory()
        self._step_losses = (*self._step_losses, loss.float())
        return loss

    def _attempt(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | int | None, own: int
    ) -> Tensor | None:
        """Add the gradients of a batch and return its loss.

        own: its rows that count. Returns None if memory ran out; the next attempt then uses smaller
        pieces.
        """
        rows = num_rows(inputs)
        losses = []
        try:
            for piece in split(inputs, self._pieces):
                self._share = self._part(num_rows(piece), rows, num_items_in_batch) if own else 0.0
                with on_states(self.frozen, piece, self.args.device) as given:
                    losses.append(super().training_step(model, given, num_items_in_batch))
            return torch.stack(losses).sum()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(rows)
            return None
        finally:
            self._share = 1.0

    def _part(self, piece: int, rows: int, items: Tensor | int | None) -> float:
        """Return by what the loss of a piece is multiplied. piece, rows: those of it and its batch.

        A loss that is summed and divided by all of the step adds up by itself, a mean does not.
        """
        if items is None:
            return piece / rows
        if self.model_accepts_loss_kwargs or self._weights is not None:
            return 1.0
        return piece * self.accelerator.num_processes / items

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | list[list[str]]],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """Return the loss of a validation batch, computed in smaller pieces if memory runs out."""
        held = {key: value for key, value in inputs.items() if key != IDS}
        if self._is_last_batch and self.accelerator.num_processes > 1:
            own = self._last_rows(self.eval_dataset, self.args.eval_batch_size).own
            held = first_rows(held, max(own, 1))
        while (loss := self._validate(model, held, ignore_keys)) is None:
            free_memory()
        return loss, None, None

    def _validate(
        self, model: nn.Module, inputs: Inputs, ignore_keys: list[str] | None
    ) -> Tensor | None:
        try:
            pieces = list(split(inputs, self._pieces))
            losses = []
            for piece in pieces:
                with on_states(self.frozen, piece, self.args.device) as given:
                    losses.append(super().prediction_step(model, given, True, ignore_keys)[0])
            weights = torch.tensor([float(_num_terms(piece)) for piece in pieces])
            return (torch.stack(losses).cpu() * weights).sum() / weights.sum()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(num_rows(inputs))
            return None

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """Return the scheduler. Raises UserError if the library refuses the recipe's choice."""
        with named_mistake("train.lr_scheduler_type, train.lr_scheduler_kwargs"):
            return super().create_scheduler(num_training_steps, optimizer)

    def _run_epoch(self, **kwargs: object) -> None:
        """Run an epoch, unless the run was cut off after its last step, in the middle of an epoch.

        Trainer would make one more step.
        """
        patience = [
            callback.early_stopping_patience - callback.early_stopping_patience_counter
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]
        if self.state.global_step >= self.state.max_steps or min(patience, default=1) <= 0:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _load_best_model(self) -> None:
        """Load the best checkpoint. Raises UserError if it is missing or damaged.

        Trainer would keep the last weights if it is missing, and load damaged ones.
        """
        best = Path(str(self.state.best_model_checkpoint))
        if self.is_world_process_zero() and not is_sealed(best):
            raise UserError(
                f"{best}: the best checkpoint is missing or damaged: "
                "give the same command again, which continues from an older one"
            )
        super()._load_best_model()

    def _halve(self, rows: int) -> None:
        """Double the number of pieces. Raises UserError if a batch cannot be split further."""
        if self.accelerator.num_processes > 1:
            raise UserError(
                "memory ran out, and with several processes no batch is split: halve "
                "train.per_device_train_batch_size, double train.gradient_accumulation_steps, "
                "and add --fresh to the same command"
            ) from None
        if self._pieces >= rows:
            raise UserError(
                "memory ran out with one row at a time: lower train.max_length, or set "
                "train.activation_checkpointing: true; the sealed checkpoints are kept"
            ) from None
        self._pieces *= 2
        log.warning(
            "memory ran out: a batch of %d rows is now computed in %d pieces", rows, self._pieces
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the loss of a piece, scaled to its part of the batch's loss."""
        if self._weights is not None:
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
            loss = self._weights.loss(outputs.logits, inputs["labels"], num_items_in_batch)
            if num_items_in_batch is not None:
                # It counts all processes, and DDP averages their gradients.
                loss = loss * self.accelerator.num_processes
            found = (loss, outputs) if return_outputs else loss
        else:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._share == 1.0:
            return found
        if isinstance(found, tuple):
            return (found[0] * self._share, *found[1:])
        return found * self._share

    def _get_grad_norm(
        self, model: nn.Module, grad_norm: Tensor | float | None = None
    ) -> Tensor | float:
        """Return the norm of the gradient. Raises UserError if it is not finite.

        Trainer calls this once a step, before the optimizer. In float16 the loss is scaled up, the
        scaler leaves out a step whose gradient overflows, and halves the scale. A gradient that is
        still not finite at a scale of 1 is not finite by itself.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        numbers = torch.stack([*self._step_losses, torch.as_tensor(norm).to(self.args.device)])
        *losses, size = numbers.tolist()  # the one time in a step that the device is waited for
        for loss in losses:
            if not isfinite(loss):
                self._refuse("loss", loss)
        if not isfinite(size):
            scaler = self.accelerator.scaler
            if scaler is None or scaler.get_scale() <= 1:
                self._refuse("the norm of the gradient", size)
            log.info(
                "step %d is left out, because its gradient overflows in float16: the scale of the "
                "loss falls from %g to its half",
                *(self.state.global_step + 1, scaler.get_scale()),
            )
        self._step_ids, self._step_losses = (), ()
        return norm

    def check_learnt(self) -> None:
        """Raise UserError if the scaler has left out every step, so that nothing was learned."""
        # Trainer moves the schedule after each step that the optimizer made, also before a resume.
        steps, made = self.state.global_step, self.lr_scheduler.state_dict()["last_epoch"]
        if self.accelerator.scaler is not None and made == 0 < steps:
            raise UserError(
                f"the gradients of all {steps} steps overflow in float16, so nothing was learned: "
                "train for more steps, or set model.dtype: float32, and add --fresh"
            )

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load the scale of the loss, which only a training in float16 has.

        The checkpoint may come from an older GPU. Trainer would fail there.
        """
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers. Raises UserError if the validation loss is not finite."""
        loss = logs.get("eval_loss")
        if loss is not None and not torch.isfinite(torch.tensor(loss)):
            self._refuse("the validation loss", loss)
        super().log(logs, start_time)

    def _refuse(self, what: str, value: float) -> None:
        ids, step = self._step_ids, self.state.global_step + 1
        batch = f"; its batch: {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}" if ids else ""
        base = " and at the base's weights" if step == 1 else ""  # nothing was learned yet
        wider = ", or set model.dtype: float32" if self.computes_in == "float16" else ""
        raise UserError(
            f"step {step}: {what} is {value} in {self.computes_in}{batch}. Look at these rows{base}, "
            f"or lower train.learning_rate or train.max_grad_norm{wider}; the sealed checkpoints are "
            "kept"
        )


@contextmanager
def named_mistake(keys: str) -> Iterator[None]:
    """Turn what the library refuses into one line that names the recipe's keys.

    Examples are a missing package and an unknown argument.
    """
    try:
        yield
    except (ImportError, ValueError, TypeError, RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{keys}: {first_line(error)}") from error


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _num_terms(inputs: Mapping[str, Tensor]) -> int:
    """Return over how many labelled tokens or rows the loss of a batch is the mean."""
    labels = inputs.get("labels")
    if labels is None or labels.dim() == 1:
        return num_rows(inputs)
    return int((labels != IGNORE_INDEX).sum())
