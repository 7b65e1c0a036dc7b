"""A stop or a kill at any moment loses no sealed checkpoint, and the run ends as one without it."""

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

from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.system import progress
from llama_peft.training import callbacks, checkpoints
from llama_peft.training import fit as training
from llama_peft.training import trainer as steady
from tests.support import forked, runs
from tests.support.trainings import recipe_of, weights


def words_of(recipe: Recipe, folder: Path) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return ["train", str(path)]


def signalled(step: int, number: int) -> None:
    """Run in a child process: a signal comes while a step is computed."""
    plain = steady.SteadyTrainer.training_step

    def training_step(self: Any, *args: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), number)
        return plain(self, *args)

    steady.SteadyTrainer.training_step = training_step


LONG = {"max_steps": 40, "eval_steps": 10, "logging_steps": 1, "per_device_train_batch_size": 4}


CONSTANT = {"lr_scheduler_type": "constant"}
"""With this, one step too many changes the weights."""


ENDS = {"steps", "epochs", "train_loss", "best_step", "best_validation_loss"}
"""The facts of a run that a stop must not change."""


@pytest.fixture(scope="module")
def uninterrupted(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the weights of a run that nothing interrupts, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    started = time.monotonic()
    recipe = recipe_of(make_recipe, base, "classification", folder / "run", **LONG)
    found = weights(training.train(recipe))
    return found, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_at_the_end_of_the_step(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], float],
    number: int,
) -> None:
    run = tmp_path / "run"
    words = words_of(recipe_of(make_recipe, base, "classification", run, **LONG), tmp_path)

    log = tmp_path / "log"
    code, text = forked.run([*words, "--fresh"], log, hook=lambda: signalled(13, number))
    assert code == 128 + number, text
    assert "Traceback" not in text
    assert f"stopped; to continue: llama_peft train {tmp_path / 'recipe.yaml'}" in text
    kept = checkpoints.newest_sealed(run / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-13"
    code, text = forked.run(words, log)
    assert code == 0 and f"continuing from {kept}" in text, text
    found = weights(run)
    assert all(torch.equal(found[key], value) for key, value in uninterrupted[0].items())


def test_a_training_says_its_losses_in_one_line(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trainer would print a dictionary at each log, which says neither what is trained nor how long."""
    monkeypatch.setattr(progress, "_SHORTEST", 0.0)
    caplog.set_level("INFO")
    keys = {"max_steps": 4, "eval_steps": 2, "logging_steps": 1}
    training.train(recipe_of(make_recipe, base, "classification", tmp_path / "run", **keys))
    said = capsys.readouterr()
    assert "'loss'" not in said.out + said.err + caplog.text
    (line,) = [one.getMessage() for one in caplog.records if "progress" in one.name]
    assert re.match(r"training: 4 steps in .*, loss \d[\d.]*, best validation loss \d", line), line


def test_killed_at_random_moments_it_ends_with_the_same_bits(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], float],
) -> None:
    """Law 10: kill -9 in steps, evaluation, saves and export; each start continues the last one."""
    run = tmp_path / "run"
    keys = LONG | {"eval_steps": 2} | CONSTANT
    often = recipe_of(make_recipe, base, "classification", run, **keys)
    words = words_of(often, tmp_path)
    rng, steps = random.Random(1), []
    for _ in range(4):
        child = forked.start(words, tmp_path / "log")
        time.sleep(rng.uniform(0.3, 0.9) * uninterrupted[1])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sealed = checkpoints.newest_sealed(run / "checkpoints")
        steps.append(int(sealed.name.split("-")[1]) if sealed else 0)
    assert steps == sorted(steps), "nothing sealed was lost"
    code, text = forked.run(words, tmp_path / "log")
    assert code == 0, text
    found = weights(run)
    plain = training.train(often.with_train({"output_dir": str(tmp_path / "plain")}))
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
    """Also after the last seal, when no step or no patience is left. Each time the folder is moved."""
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
        code, text = forked.run(words, tmp_path / "log", hook=die_after_a_seal)
        (tmp_path / f"start-{starts}").rename(tmp_path / f"start-{starts + 1}")
        starts += 1
    assert code == 0, text
    assert starts > 2
    run = tmp_path / f"start-{starts}"
    found = runs.record_of(run)
    assert found.model_dump(include=ENDS) == facts.model_dump(include=ENDS)
    assert all(torch.equal(weights(run)[key], value) for key, value in weights(whole).items())


EPOCHS = CONSTANT | {
    "per_device_train_batch_size": 4,
    "learning_rate": 0.02,
    "max_steps": 21,
    "early_stopping_patience": 1,
}


@pytest.fixture(scope="module")
def unstopped(
    make_recipe: Callable[..., Recipe], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of several epochs that nothing stops."""
    folder = tmp_path_factory.mktemp("unstopped") / "run"
    return training.train(recipe_of(make_recipe, base, "classification", folder, **EPOCHS))


@pytest.mark.parametrize(
    ("step", "and_killed"), [(2, False), (6, False), (6, True), (8, False), (9, True)]
)
def test_stopped_anywhere_in_an_epoch_it_ends_where_the_others_end(
    make_recipe: Callable[..., Recipe],
    base: Path,
    tmp_path: Path,
    unstopped: Path,
    step: int,
    and_killed: bool,
) -> None:
    """A stop adds no evaluation that early stopping counts, and skips none.

    This holds even if a kill follows at once.
    """

    def stopped() -> None:
        signalled(step, signal.SIGINT)
        if and_killed:
            steady.SteadyTrainer.evaluate = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)

    run = tmp_path / "run"
    words = words_of(recipe_of(make_recipe, base, "classification", run, **EPOCHS), tmp_path)
    for hook, codes in ((stopped, (130, -signal.SIGKILL)), (None, (0,))):
        code, text = forked.run(words, tmp_path / "log", hook=hook)
        assert code in codes, text
    facts, found = runs.record_of(unstopped), runs.record_of(run)
    assert found.model_dump(include=ENDS) == facts.model_dump(include=ENDS)
    losses = [
        [line for line in map(json.loads, (each / "history.jsonl").open()) if "eval_loss" in line]
        for each in (unstopped, run)
    ]
    assert [(x["step"], x["eval_loss"]) for x in losses[0]] == [
        (x["step"], x["eval_loss"]) for x in losses[1]
    ]
    assert all(torch.equal(weights(run)[key], value) for key, value in weights(unstopped).items())
