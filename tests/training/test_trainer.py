"""Training that is hurt: memory runs out, numbers break, signals come, processes die. Nothing finished is lost or wrong."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file

from llama_peft import cli
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.system import seal
from llama_peft.training import callbacks, checkpoints
from llama_peft.training import fit as training
from llama_peft.training import trainer as steady
from tests.support import forked, runs

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
    right = steady.SteadyTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if not hasattr(self, "was"):
            self.was = self.compute_loss

            def compute(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if model.training:
                    before(self, inputs)
                return self.was(model, inputs, *args, **kwargs)

            self.compute_loss = compute
        return right(self, model, inputs, *rest)

    monkeypatch.setattr(steady.SteadyTrainer, "training_step", step)


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
def test_the_first_number_that_is_none_stops_the_run_and_names_its_rows(
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


def words_of(recipe: Recipe, folder: Path) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return ["train", str(path)]


def signalled(step: int, number: int) -> None:
    """In a child: a signal comes while a step is computed."""
    plain = steady.SteadyTrainer.training_step

    def training_step(self: Any, *args: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return plain(self, *args)

    steady.SteadyTrainer.training_step = training_step


LONG = {"max_steps": 40, "eval_steps": 10, "logging_steps": 1, "per_device_train_batch_size": 4}
CONSTANT = {"lr_scheduler_type": "constant"}
"""A step too many changes the weights."""
ENDS = {"steps", "epochs", "train_loss", "best_step", "best_validation_loss"}
"""Facts of a run that a stop does not change."""


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

    child = forked.start([*words, "--fresh"], tmp_path / "log", hook=lambda: signalled(13, number))
    _, status = os.waitpid(child, 0)
    text = (tmp_path / "log").read_text()
    assert os.waitstatus_to_exitcode(status) == 128 + number, text
    assert "Traceback" not in text
    assert f"stopped; to continue: llama_peft train {tmp_path / 'recipe.yaml'}" in text
    kept = checkpoints.newest_sealed(run / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-13"
    child = forked.start(words, tmp_path / "log")
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
    keys = LONG | {"eval_steps": 2} | CONSTANT
    recipe = recipe_of(make_recipe, base, "classification", run, **LONG | CONSTANT)
    often = recipe_of(make_recipe, base, "classification", run, **keys)
    words = words_of(often, tmp_path)
    rng, steps = random.Random(1), []
    for _ in range(10):
        child = forked.start(words, tmp_path / "log")
        time.sleep(rng.uniform(0.3, 0.9) * unhurt[1])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sealed = checkpoints.newest_sealed(run / "checkpoints")
        steps.append(int(sealed.name.split("-")[1]) if sealed else 0)
    assert steps == sorted(steps), "nothing sealed was lost"
    child = forked.start(words, tmp_path / "log")
    assert os.waitpid(child, 0)[1] == 0, (tmp_path / "log").read_text()
    found = weights(run)
    plain = training.train(
        recipe.model_copy(update={"train": often.train.model_copy(
            update={"output_dir": str(tmp_path / "plain")})})
    )  # fmt: skip
    assert all(torch.equal(found[key], value) for key, value in weights(plain).items())


@pytest.mark.parametrize(
    "keys",
    [
        {"max_steps": 5, "eval_steps": 2},
        {"max_steps": 5},
        {"max_steps": 20, "eval_steps": 1, "early_stopping_patience": 2, "learning_rate": 0.05},
    ],
    ids=["steps", "epochs", "early stopping"],
)
def test_killed_after_each_seal_it_ends_where_the_others_end(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    """The last seal too, after which no step is left, nor patience; and each time the folder is moved."""
    keys = keys | CONSTANT | {"logging_steps": 1}

    def recipe_in(name: str) -> Recipe:
        return recipe_of(make_recipe, base, "classification", tmp_path / name, **keys)

    def die_after_a_seal() -> None:
        callbacks.rotate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    whole = training.train(recipe_in("whole"))
    facts = runs.record_of(whole)
    code, starts = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        words = words_of(recipe_in(f"start-{starts}"), tmp_path)
        child = forked.start(words, tmp_path / "log", hook=die_after_a_seal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (tmp_path / f"start-{starts}").rename(tmp_path / f"start-{starts + 1}")
        starts += 1
    assert code == 0, (tmp_path / "log").read_text()
    assert starts > 2
    run = tmp_path / f"start-{starts}"
    found = runs.record_of(run)
    assert found.model_dump(include=ENDS) == facts.model_dump(include=ENDS)
    assert all(torch.equal(weights(run)[key], value) for key, value in weights(whole).items())


@pytest.mark.parametrize(
    ("step", "and_killed"), [(2, False), (6, False), (6, True), (8, False), (9, True)]
)
def test_stopped_anywhere_in_an_epoch_it_ends_where_the_others_end(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, step: int, and_killed: bool
) -> None:
    """No stop is an evaluation that costs patience, or an epoch that is never evaluated, also by a kill right after it."""
    keys = CONSTANT | {"per_device_train_batch_size": 4, "learning_rate": 0.02, "max_steps": 21}
    keys |= {"early_stopping_patience": 1}

    def stopped() -> None:
        signalled(step, signal.SIGINT)
        if and_killed:
            steady.SteadyTrainer.evaluate = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

    whole = training.train(recipe_of(make_recipe, base, "classification", tmp_path / "w", **keys))
    run = tmp_path / "run"
    words = words_of(recipe_of(make_recipe, base, "classification", run, **keys), tmp_path)
    for hook, codes in ((stopped, (130, -signal.SIGKILL)), (None, (0,))):
        child = forked.start(words, tmp_path / "log", hook=hook)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in codes, (tmp_path / "log").read_text()
    facts, found = runs.record_of(whole), runs.record_of(run)
    assert found.model_dump(include=ENDS) == facts.model_dump(include=ENDS)
    losses = [
        [line for line in map(json.loads, (each / "history.jsonl").open()) if "eval_loss" in line]
        for each in (whole, run)
    ]
    assert [(x["step"], x["eval_loss"]) for x in losses[0]] == [
        (x["step"], x["eval_loss"]) for x in losses[1]
    ]
    assert all(torch.equal(weights(run)[key], value) for key, value in weights(whole).items())


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


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_fresh_with_a_mistake_costs_no_finished_run(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    run = training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run"))
    before = contents(run)
    mistakes: list[dict[str, Any]] = [
        {"model": {"model_name_or_path": str(tmp_path / "typo")}},
        {"dataset": {"path": None, "name": None, "parts": {"train": "typo.csv"}}},
    ]
    for mistake in mistakes:
        keys = {"train": {"output_dir": str(run)}, "lora": {"r": 4}} | mistake
        with pytest.raises(UserError, match="typo"):
            training.train(make_recipe("classification", base, **keys), fresh=True)
        assert contents(run) == before
    training.train(recipe_of(make_recipe, base, "classification", run, seed=7), fresh=True)
    assert (
        contents(run)["adapter/adapter_model.safetensors"]
        != before["adapter/adapter_model.safetensors"]
    )


def test_fresh_removes_nothing_where_there_is_no_run(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "README.md"
    mine.write_text("mine")
    (tmp_path / "adapter").mkdir()
    training.train(recipe_of(make_recipe, base, "classification", tmp_path), fresh=True)
    assert mine.read_text() == "mine"


def test_a_best_checkpoint_that_is_damaged_is_never_what_a_run_ends_with(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(folder: Path) -> Recipe:
        # The rate is so high that the first validation stays the best.
        keys = {"eval_steps": 1, "save_total_limit": 1, "learning_rate": 1.0, "max_steps": 4}
        return recipe_of(make_recipe, base, "classification", folder, **keys)

    whole = training.train(recipe(tmp_path / "whole"))
    assert runs.record_of(whole).best_step < 4

    def damage(trainer: Any, inputs: dict[str, Any]) -> None:
        if trainer.state.global_step == 3:
            best = Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors"
            raw = bytearray(best.read_bytes())
            raw[-1] ^= 1
            best.write_bytes(raw)

    hurt(monkeypatch, damage)
    with pytest.raises(UserError, match="the best checkpoint is gone or damaged"):
        training.train(recipe(tmp_path / "cut"))
    assert (
        checkpoints.newest_sealed(tmp_path / "cut/checkpoints") is None
    )  # all name it as the best
    monkeypatch.undo()
    again = training.train(recipe(tmp_path / "cut"))
    assert all(torch.equal(weights(again)[key], value) for key, value in weights(whole).items())


def test_what_was_passed_over_does_not_crowd_out_what_is_sealed(tmp_path: Path) -> None:
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(str(step))
    seal.seal(tmp_path / "checkpoint-5")
    resumed = checkpoints.newest_sealed(tmp_path)
    assert resumed == tmp_path / "checkpoint-5"
    checkpoints.remove_newer(tmp_path, resumed)
    seven = tmp_path / "checkpoint-7"
    seven.mkdir()
    (seven / "weights").write_text("7")
    seal.seal(seven)
    checkpoints.rotate(tmp_path, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]


def test_a_resumed_run_tells_what_all_of_it_took(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(folder: Path) -> Recipe:
        keys = {"eval_steps": 1, "logging_steps": 1}
        return recipe_of(make_recipe, base, "classification", folder, **keys)

    def fail(trainer: Any, inputs: dict[str, Any]) -> None:
        if trainer.state.global_step == 2:
            raise RuntimeError("the power goes out")

    whole = runs.record_of(training.train(recipe(tmp_path / "whole")))
    hurt(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="power"):
        training.train(recipe(tmp_path / "cut"))
    monkeypatch.undo()
    path = checkpoints.newest_sealed(tmp_path / "cut/checkpoints")
    assert path is not None
    checkpoints.write_spent(path, checkpoints.Spent(1000.0, 2**50), checkpoints.read_origin(path))
    seal.seal(path)
    cut = runs.record_of(training.train(recipe(tmp_path / "cut")))
    assert cut.train_loss == pytest.approx(whole.train_loss, rel=1e-6)
    assert 1000 < cut.wall_seconds < 1300 and cut.peak_memory_bytes == 2**50


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/x/y"), r"No space left on device \(/x/y\)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory ran out"),
        (MemoryError(), "memory ran out"),
    ],
)
def test_a_full_machine_is_one_line(
    error: Exception,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["program", "--"])

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit, match="2"):
        cli.run(app)
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)
    found = capsys.readouterr().err.strip()
    assert re.search(f"^error: .*{said}", found) and "\n" not in found
