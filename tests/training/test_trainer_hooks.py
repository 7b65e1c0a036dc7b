"""The methods of transformers' Trainer that ours override are there, and called as ours expect.

Private methods may change in any version of transformers. If a test here fails, open
transformers/trainer.py of the new version beside llama_peft/training/trainer.py, and find where the
work of the method is done now.
"""

import inspect
from typing import NamedTuple

import pytest
from transformers import Trainer
from trl import SFTTrainer

from llama_peft.training.trainer import SteadyTrainer
from llama_peft.training.tree_trainer import TreeTrainer


class Hook(NamedTuple):
    """A private method that SteadyTrainer overrides."""

    parameters: tuple[str, ...]
    caller: str
    """The method of Trainer that calls it."""
    calls: tuple[str, ...]
    """What stands in the caller, in this order."""
    purpose: str


HOOKS = {
    "_get_train_sampler": Hook(
        ("self", "train_dataset"),
        "get_train_dataloader",
        ("sampler_fn=self._get_train_sampler",),
        "it gives the order of the rows; ours (EpochOrder) survives a resume",
    ),
    "_get_eval_sampler": Hook(
        ("self", "eval_dataset"),
        "get_eval_dataloader",
        ("sampler_fn=self._get_eval_sampler",),
        "it gives the order of validation rows; ours (LongestFirst) leaves little padding",
    ),
    "_run_epoch": Hook(
        (
            "self", "model", "epoch", "train_dataloader", "steps_in_epoch",
            "num_update_steps_per_epoch", "trial", "ignore_keys_for_eval", "start_time",
            "resume_from_checkpoint", "epochs_trained", "steps_trained_in_current_epoch",
        ),
        "_inner_training_loop",
        ("self._run_epoch(", "model=model", "if self.control.should_training_stop:", "break"),
        "ours skips the epoch if a resumed run has no step left",
    ),
    "_load_best_model": Hook(
        ("self",),
        "_finalize_training",
        ("self.state.best_model_checkpoint is not None", "self._load_best_model()"),
        "ours refuses a best checkpoint that is missing or damaged",
    ),
    "_load_scaler": Hook(
        ("self", "checkpoint"),
        "_prepare_for_training",
        ("self._load_scaler(resume_from_checkpoint)",),
        "ours leaves out the scale of a checkpoint in float16 if this training has none",
    ),
    "_get_grad_norm": Hook(
        ("self", "model", "grad_norm"),
        "_run_epoch",
        ("self._get_grad_norm(", "self.optimizer.step()"),
        "ours stops at a gradient that is not finite, before the optimizer uses it",
    ),
}  # fmt: skip
PUBLIC = (
    "training_step", "prediction_step", "compute_loss", "create_scheduler", "log",
    "get_batch_samples",
)  # fmt: skip


def parameters(method: object) -> tuple[str, ...]:
    assert callable(method)
    return tuple(inspect.signature(method).parameters)


@pytest.mark.parametrize("name", HOOKS)
def test_a_private_method_is_as_expected(name: str) -> None:
    hook = HOOKS[name]
    look = f"Trainer.{name} has changed ({hook.purpose}): look at Trainer.{hook.caller}"
    assert hasattr(Trainer, name), look
    assert parameters(getattr(Trainer, name)) == hook.parameters, look
    source, at = inspect.getsource(getattr(Trainer, hook.caller)), 0
    for text in hook.calls:
        at = source.find(text, at)
        assert at >= 0, f"{look}: {text!r} is not there, or in another place"


def test_no_other_private_method_is_overridden() -> None:
    for ours, stock in ((SteadyTrainer, Trainer), (TreeTrainer, SFTTrainer)):
        private = {name for name in vars(ours) if name.startswith("_") and name[1] != "_"}
        found = {name for name in private if hasattr(stock, name)} - HOOKS.keys()
        assert not found, (
            f"{ours.__name__} overrides {found}: use a public hook, or add it to HOOKS"
        )


@pytest.mark.parametrize("stock", [Trainer, SFTTrainer])
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_method_takes_what_ours_takes(name: str, stock: type[Trainer]) -> None:
    found = parameters(getattr(stock, name))
    assert found in (parameters(getattr(SteadyTrainer, name)), ("self", "args", "kwargs")), (
        f"{stock.__name__}.{name} takes {found}: change the method in training/trainer.py"
    )
