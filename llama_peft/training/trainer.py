"""Training steps that survive running out of memory, and stop at the first number that is none.

The stock Trainer logs a NaN as 0.0 and goes on with ruined weights; its own batch finder starts again with weights that are
already trained and forgets accumulation. Here the same step is done again in smaller pieces, so the trajectory stays but for
the order of summation; and a loss or gradient that is not finite ends the run before the optimizer takes it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llama_peft.errors import UserError
from llama_peft.prefix_tree.pack import IGNORE_INDEX
from llama_peft.system.memory import free_memory, is_out_of_memory
from llama_peft.system.seal import is_sealed
from llama_peft.training.sampler import EpochOrder

log = logging.getLogger(__name__)

IDS = "ids"
"""Key of a batch that names the examples of each of its rows; the model never sees it."""


class SteadyTrainer(Trainer):
    """A Trainer whose batches may carry `ids`, a list of example ids for each row."""

    _pieces = 1
    """In how many pieces a batch is computed; doubled when memory runs out, and kept."""
    _share = 1.0
    """Part of the batch's loss that the present piece makes up."""
    _step_ids: tuple[str, ...] = ()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)
        return EpochOrder(self)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        ids = [id_ for row in inputs.pop(IDS, []) for id_ in row]
        self._step_ids = (*self._step_ids, *ids)
        before = [None if p.grad is None else p.grad.clone() for p in _trained(model)]
        while (loss := self._attempt(model, inputs, num_items_in_batch)) is None:
            for parameter, gradient in zip(_trained(model), before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            free_memory()
        if not torch.isfinite(loss):
            self._refuse("loss", loss.item())
        return loss

    def _attempt(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor | None:
        """The batch's loss, its gradients added; None where memory ran out and smaller pieces are to be tried."""
        rows = _num_rows(inputs)
        losses = []
        try:
            for piece in _split(inputs, self._pieces):
                # A loss that is summed over `num_items_in_batch` adds up by itself, a mean does not.
                summed = num_items_in_batch is not None and self.model_accepts_loss_kwargs
                self._share = 1.0 if summed else _num_rows(piece) / rows
                losses.append(super().training_step(model, piece, num_items_in_batch))
            return torch.stack(losses).sum()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(rows)
            return None
        finally:
            self._share = 1.0

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """The loss of a validation batch, in smaller pieces where memory runs out."""
        while (loss := self._validate(model, inputs, ignore_keys)) is None:
            free_memory()
        return loss, None, None

    def _validate(
        self, model: nn.Module, inputs: dict[str, Any], ignore_keys: list[str] | None
    ) -> Tensor | None:
        held = {key: value for key, value in inputs.items() if key != IDS}
        try:
            pieces = list(_split(held, self._pieces))
            losses = [
                super(SteadyTrainer, self).prediction_step(model, p, True, ignore_keys)[0]
                for p in pieces
            ]
            weights = torch.tensor([float(_num_terms(piece)) for piece in pieces])
            return (torch.stack(losses).cpu() * weights).sum() / weights.sum()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(_num_rows(held))
            return None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with named_mistake("train.optim"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with named_mistake("train.lr_scheduler_type, train.lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer forgets which checkpoint is the best where the run folder has been moved since."""
        found = super()._init_training_state(*args, **kwargs)
        if step := self.state.best_global_step:
            best = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
            self.state.best_model_checkpoint = str(best)
        return found

    def _run_epoch(self, **kwargs: Any) -> None:
        """Trainer makes one more step with a run that was cut off after its last one, in the middle of an epoch."""
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
        """Trainer would keep the last weights where the best ones are gone, and take damaged ones as they are."""
        best = Path(str(self.state.best_model_checkpoint))
        if self.is_world_process_zero() and not is_sealed(best):
            raise UserError(
                f"{best}: the best checkpoint is gone or damaged; the same command goes on from an older one"
            )
        super()._load_best_model()

    def _halve(self, rows: int) -> None:
        if self.accelerator.num_processes > 1:
            raise UserError(
                "memory ran out, and with several processes no batch is split: halve "
                "train.per_device_train_batch_size and double train.gradient_accumulation_steps; "
                "the same command then needs --fresh"
            ) from None
        if self._pieces >= rows:
            raise UserError(
                "memory ran out with one row at a time: lower train.max_length, or set "
                "train.activation_checkpointing: true; the sealed checkpoints are as they were"
            ) from None
        self._pieces *= 2
        log.warning(
            "memory ran out: a batch of %d rows is now computed in %d pieces", rows, self._pieces
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if self._share == 1.0:
            return found
        return (
            (found[0] * self._share, *found[1:])
            if isinstance(found, tuple)
            else found * self._share
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_inputs(
            {key: value for key, value in inputs.items() if key != IDS}
        )
        return prepared

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once a step, before the optimizer. Under float16 a scaler skips steps whose gradients overflow."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            self._refuse("the norm of the gradient", float(norm))
        self._step_ids = ()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        loss = logs.get("eval_loss")
        if loss is not None and not torch.isfinite(torch.tensor(loss)):
            self._refuse("the validation loss", loss)
        super().log(logs, start_time)

    def _refuse(self, what: str, value: float) -> None:
        ids, step = self._step_ids, self.state.global_step + 1
        batch = f"; its batch: {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}" if ids else ""
        base = ", at the base's weights" if step == 1 else ""  # nothing was learned yet
        raise UserError(
            f"step {step}: {what} is {value}{batch}. The sealed checkpoints are as they were; "
            f"look at these rows{base}, or lower train.learning_rate or train.max_grad_norm"
        )


@contextmanager
def named_mistake(keys: str) -> Iterator[None]:
    """What the library refuses of a recipe's keys, in one line that names them: a package that is missing, an argument that
    is unknown."""
    try:
        yield
    except (ImportError, ValueError, TypeError, RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{keys}: {lines[0]}") from error


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _num_rows(inputs: dict[str, Any]) -> int:
    return len(next(iter(inputs.values())))


def _num_terms(inputs: dict[str, Any]) -> int:
    """What the loss of a batch is the mean of: labelled tokens, or rows."""
    labels = inputs.get("labels")
    if labels is None or labels.dim() == 1:
        return _num_rows(inputs)
    return int((labels != IGNORE_INDEX).sum())


def _split(inputs: dict[str, Any], pieces: int) -> Iterator[dict[str, Any]]:
    """The batch in at most `pieces` runs of rows."""
    rows = _num_rows(inputs)
    size = -(-rows // pieces)
    for first in range(0, rows, size):
        yield {key: value[first : first + size] for key, value in inputs.items()}
