"""Small trainings of an adapter that tests interrupt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from llama_peft.recipe import Recipe
from llama_peft.training import setup
from llama_peft.training.trainer import SteadyTrainer


def recipe_of(
    make_recipe: Callable[..., Recipe], base: Path, task: str, folder: Path, **train: Any
) -> Recipe:
    keys = {"output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 8} | train
    return make_recipe(task, base, lora={"r": 4}, train=keys)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


def hurt(monkeypatch: pytest.MonkeyPatch, before: Callable[[Any, dict[str, Any]], None]) -> None:
    """Call `before` with the trainer and the inputs of every loss that training computes."""
    right = SteadyTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if not hasattr(self, "was"):
            self.was = self.compute_loss

            def compute(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if model.training:
                    before(self, inputs)
                return self.was(model, inputs, *args, **kwargs)

            self.compute_loss = compute
        return right(self, model, inputs, *rest)

    monkeypatch.setattr(SteadyTrainer, "training_step", step)


def autocast(monkeypatch: pytest.MonkeyPatch, dtype: str, scale: float = 2.0**16) -> None:
    """Make trainings on the CPU compute as on a GPU: under autocast, in float16 with a scaler.

    scale: that of the loss in the first step.
    """
    arguments, init = setup.training_arguments, Accelerator.__init__

    def mixed(*given: Any) -> dict[str, object]:
        key = "fp16" if dtype == "float16" else "bf16"
        return {**arguments(*given), key: True}

    def scaled(self: Accelerator, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        # accelerate does both on any device but a CPU
        self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)

    monkeypatch.setattr(setup, "training_arguments", mixed)
    if dtype == "float16":
        monkeypatch.setattr(Accelerator, "__init__", scaled)


def lose_power(trainer: Any, inputs: dict[str, Any]) -> None:
    """Fail in the third step, to be given to `hurt`."""
    if trainer.state.global_step == 2:
        raise RuntimeError("the power goes out")
