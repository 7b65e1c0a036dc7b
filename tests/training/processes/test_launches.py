"""How several processes meet, and what is refused before they load a base."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from llama_peft.errors import UserError
from llama_peft.model import room
from llama_peft.recipe import Recipe
from llama_peft.system.memory import gpu_kind
from llama_peft.system.processes import job
from llama_peft.training import fit as training
from llama_peft.training.callbacks import StopOnSignal
from llama_peft.training.processes.start import train_in


def test_a_launch_with_fsdp_shares_the_base_out_by_our_own_hand(
    make_recipe: Callable[..., Recipe],
    make_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """accelerate must not see it. Each process is estimated with its part, and never below what it loads."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(job.SHARES_BASE, "")
    monkeypatch.delenv(job.SHARES_BASE)
    job.join(use_cpu=True)
    assert "ACCELERATE_USE_FSDP" not in os.environ and not job.shares_base()
    base = make_base(num_hidden_layers=12)
    recipe = make_recipe("classification", base, lora={"r": 2})
    alone = room.for_machine(recipe)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert job.shares_base()
    shared = room.for_machine(recipe)
    assert alone is not None and shared is not None
    whole, part = alone.memory[0].bytes, shared.memory[0].bytes
    assert whole / 4 < part < whole
    assert whole + shared.memory[-1].bytes <= shared.smallest <= alone.smallest
    monkeypatch.setattr(job, "join", lambda use_cpu: None)
    where = {"output_dir": str(tmp_path / "run")}
    for refused in ({"metric_for_best_model": "accuracy"}, {"torch_compile": True}):
        with pytest.raises(UserError, match=f"train.{next(iter(refused))}: .*--share-base"):
            training.train(recipe.with_train({**where, **refused}))


def test_processes_meet_on_the_cpu_also_if_a_machine_has_nothing_else(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would take a process that is not told so, and finds no GPU, for one alone."""

    def join(use_cpu: bool) -> None:
        raise UserError(f"meets on the CPU: {use_cpu}")

    monkeypatch.setattr(job, "join", join)
    recipe = make_recipe(
        "classification", "tiny", train={"output_dir": str(tmp_path / "run"), "use_cpu": False}
    )
    with pytest.raises(UserError, match=f"CPU: {gpu_kind() is None}"):
        training.train(recipe)


def test_a_single_process_has_nobody_to_share_with() -> None:
    with pytest.raises(UserError, match="add --processes 2"):
        job.share_base(1)


def test_a_launched_process_gets_a_signal_twice_and_still_ends_its_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A system stops every process that it finds, and the launcher passes its own signal on."""
    monkeypatch.setenv(job.LAUNCHER, "1")
    stop = StopOnSignal()
    stop.on_train_begin(TrainingArguments("x"), TrainerState(), TrainerControl())
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        stop.restore()
    assert stop.received == signal.SIGTERM
    assert capfd.readouterr().err.count("stopping at the end of this step") == 1


def test_what_cannot_be_given_to_several_processes(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe("classification", "tiny", train={"output_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match="rows from Python stay in the process"):
        train_in(2, recipe, given={"train": [{"text": "a", "label": "positive"}]})
    monkeypatch.setattr("llama_peft.model.room.has_gpu", lambda recipe: True)
    monkeypatch.setattr("llama_peft.model.room.count_gpus", lambda: 1)
    with pytest.raises(
        UserError, match=r"--processes 2: each process needs a GPU of its own, .* 1"
    ):
        train_in(2, recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="has started 2 processes already: leave the option"):
        train_in(2, recipe)
