"""Training that is hurt: memory runs out, numbers break, signals come, processes die. Nothing finished is lost or wrong."""

import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_peft import checkpoint, cli, steady
from llama_peft import train as training
from llama_peft.__main__ import app
from llama_peft.recipe import Recipe, UserError

TASKS = ["classification", "extractive_qa", "generative_qa"]


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()


def recipe_of(
    make_recipe: Callable[..., Recipe], base: Path, task: str, folder: Path, **train: Any
) -> Recipe:
    keys = {"output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 8} | train
    return make_recipe(task, base, lora={"r": 4}, train=keys)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


def hurt(monkeypatch: pytest.MonkeyPatch, before: Callable[[Any, dict[str, Any]], None]) -> None:
    """Calls `before` with the trainer and the inputs of every loss that training computes."""
    right = steady.Steady.training_step

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if not hasattr(self, "was"):
            self.was = self.compute_loss

            def compute(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if model.training:
                    before(self, inputs)
                return self.was(model, inputs, *args, **kwargs)

            self.compute_loss = compute
        return right(self, model, inputs, *rest)

    monkeypatch.setattr(steady.Steady, "training_step", step)


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
    """The trajectory stays, though the failed attempt has already spoilt the gradients."""
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
    losses = [checkpoint.read_facts(run)["train_loss"] for run in (whole, cut)]
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
def test_the_first_number_that_is_none_stops_the_run_and_names_its_rows(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    recipe = recipe_of(make_recipe, base, "classification", tmp_path / "run", eval_steps=1)
    right = steady.Steady.compute_loss

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = right(self, *args, **kwargs)
        if self.state.global_step == 2 and args[0].training:
            if where == "loss":
                return found * float("nan")
            found.register_hook(lambda gradient: gradient * float("inf"))
        return found

    monkeypatch.setattr(steady.Steady, "compute_loss", compute)
    with pytest.raises(
        UserError, match=r"step 3: .* is (nan|inf); its batch: reviews-train-"
    ) as error:
        training.train(recipe)
    assert str(error.value).count("reviews-train-") == 8
    run = tmp_path / "run"
    kept = checkpoint.newest_sealed(run / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-2"
    state = load_file(kept / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not (run / "training.json").exists()


def forked(words: list[str], log: Path) -> int:
    """The command line in a child that shares what is imported; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("w") as file:
            sys.stdout = sys.stderr = file
            logging.getLogger().handlers.clear()  # those of pytest
            sys.argv = ["llama-peft", *words]
            cli.run(app)
            code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def words_of(recipe: Recipe, folder: Path) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text("\n".join(["task: classification", *_yaml(recipe)]) + "\n")
    return ["train", str(path)]


def _yaml(recipe: Recipe) -> list[str]:
    from llama_peft.recipe import dump_recipe

    return [line for line in dump_recipe(recipe).splitlines() if not line.startswith("task:")]


def wait_for(path: Path, child: int, lines: int) -> None:
    """Until the loss curve has so many lines."""
    for _ in range(1200):
        if path.is_file() and len(path.read_text().splitlines()) >= lines:
            return
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended too soon"
        time.sleep(0.01)
    raise AssertionError(f"{path} did not grow")


LONG = {"max_steps": 40, "eval_steps": 10, "logging_steps": 1, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def unhurt(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], float]:
    """The weights of a run that nothing disturbs, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("unhurt")
    started = time.monotonic()
    recipe = recipe_of(make_recipe, base, "classification", folder / "run", **LONG)
    found = weights(training.train(recipe))
    return found, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_the_step(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    unhurt: tuple[dict[str, torch.Tensor], float],
    number: int,
) -> None:
    run = tmp_path / "run"
    words = words_of(recipe_of(make_recipe, base, "classification", run, **LONG), tmp_path)
    child = forked([*words, "--fresh"], tmp_path / "log")
    wait_for(run / "history.jsonl", child, 13)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    text = (tmp_path / "log").read_text()
    assert os.waitstatus_to_exitcode(status) == 128 + number, text
    assert "Traceback" not in text
    assert f"stopped; to continue: llama-peft train {tmp_path / 'recipe.yaml'}" in text
    kept = checkpoint.newest_sealed(run / "checkpoints")
    assert kept is not None and int(kept.name.split("-")[1]) >= 13
    child = forked(words, tmp_path / "log")
    assert os.waitpid(child, 0)[1] == 0, (tmp_path / "log").read_text()
    assert f"continuing from {kept}" in (tmp_path / "log").read_text()
    found = weights(run)
    assert all(torch.equal(found[key], value) for key, value in unhurt[0].items())


def test_killed_at_random_moments_it_ends_with_the_same_bits(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    unhurt: tuple[dict[str, torch.Tensor], float],
) -> None:
    """Law 10: kill -9, in steps, in evaluation, in saves, in the export; each start continues the last."""
    run = tmp_path / "run"
    keys = LONG | {"eval_steps": 2}
    recipe = recipe_of(make_recipe, base, "classification", run, **LONG)
    often = recipe_of(make_recipe, base, "classification", run, **keys)
    words = words_of(often, tmp_path)
    rng, steps = random.Random(1), []
    for _ in range(10):
        child = forked(words, tmp_path / "log")
        time.sleep(rng.uniform(0.3, 0.9) * unhurt[1])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sealed = checkpoint.newest_sealed(run / "checkpoints")
        steps.append(int(sealed.name.split("-")[1]) if sealed else 0)
    assert steps == sorted(steps), "nothing sealed was lost"
    child = forked(words, tmp_path / "log")
    assert os.waitpid(child, 0)[1] == 0, (tmp_path / "log").read_text()
    found = weights(run)
    plain = training.train(
        recipe.model_copy(update={"train": often.train.model_copy(
            update={"output_dir": str(tmp_path / "plain")})})
    )  # fmt: skip
    assert all(torch.equal(found[key], value) for key, value in weights(plain).items())
