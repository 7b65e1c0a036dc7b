"""Steps when memory runs out, and when a loss or a gradient is not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.training import checkpoints
from llama_peft.training import fit as training
from llama_peft.training import trainer as steady
from tests.support import runs
from tests.support.trainings import hurt, recipe_of, weights

TASKS = ["classification", "extractive_qa", "generative_qa"]


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_out_of_memory_does_the_same_step_in_smaller_pieces(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
    accumulation: int,
) -> None:
    """The weights stay the same, although the failed attempt has already changed the gradients."""
    keys = {"gradient_accumulation_steps": accumulation}
    whole = training.train(recipe_of(make_recipe, base, task, tmp_path / "whole", **keys))

    def run_out(trainer: Any, inputs: dict[str, Any]) -> None:
        if len(inputs["input_ids"]) > 3:
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.ones_like(parameter)
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hurt(monkeypatch, run_out)
    cut = training.train(recipe_of(make_recipe, base, task, tmp_path / "cut", **keys))
    assert "computed in 2 pieces" in caplog.text and "computed in 4 pieces" in caplog.text
    expected, found = weights(whole), weights(cut)
    learnt = [key for key in expected if "lora_B" in key]  # these start at zero
    moved = torch.cat([expected[key].flatten() for key in learnt]).norm()
    distance = torch.cat([(expected[key] - found[key]).flatten() for key in learnt]).norm()
    assert distance < 2e-2 * moved  # Adam turns noise in a tiny gradient into a step
    losses = [runs.record_of(run).train_loss for run in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_memory_for_less_than_one_row_is_one_line(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(trainer: Any, inputs: dict[str, Any]) -> None:
        raise MemoryError

    hurt(monkeypatch, run_out)
    with pytest.raises(UserError, match=r"one row at a time: lower train\.max_length"):
        training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run"))


def test_other_errors_are_not_mistaken_for_memory(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Any, inputs: dict[str, Any]) -> None:
        raise RuntimeError("a bug")

    hurt(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_first_number_that_is_not_finite_stops_the_run_and_names_its_rows(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    recipe = recipe_of(make_recipe, base, "classification", tmp_path / "run", eval_steps=1)
    right = steady.SteadyTrainer.compute_loss

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = right(self, *args, **kwargs)
        if self.state.global_step == 2 and args[0].training:
            if where == "loss":
                return found * float("nan")
            found.register_hook(lambda gradient: gradient * float("inf"))
        return found

    monkeypatch.setattr(steady.SteadyTrainer, "compute_loss", compute)
    with pytest.raises(
        UserError, match=r"step 3: .* is (nan|inf); its batch: reviews-train-"
    ) as error:
        training.train(recipe)
    assert str(error.value).count("reviews-train-") == 8
    run = tmp_path / "run"
    kept = checkpoints.newest_sealed(run / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-2"
    state = load_file(kept / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not (run / "training.json").exists()


@pytest.mark.parametrize("task", TASKS)
def test_validation_that_runs_out_of_memory_gives_the_same_loss(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
) -> None:
    def validated(folder: Path) -> float:
        run = training.train(recipe_of(make_recipe, base, task, folder, max_steps=1))
        return float(runs.record_of(run).best_validation_loss)

    from llama_peft.training.tree_trainer import TreeTrainer

    expected = validated(tmp_path / "whole")
    trainer = TreeTrainer if task == "generative_qa" else steady.SteadyTrainer
    right = trainer.compute_loss

    def compute(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training and len(inputs["input_ids"]) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return right(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", compute)
    assert validated(tmp_path / "cut") == pytest.approx(expected, rel=1e-5)
    assert "computed in 2 pieces" in caplog.text


def test_a_loss_that_is_not_a_number_stops_the_run(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    keys = {
        "learning_rate": 1e30,
        "max_steps": 6,
        "output_dir": str(tmp_path / "run"),
        "max_grad_norm": 0.0,
    }
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=keys)
    with pytest.raises(UserError, match=r"is (nan|inf)"):
        training.train(recipe)
    assert not (tmp_path / "run/training.json").exists()
