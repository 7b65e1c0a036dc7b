"""The launches of accelerate that the project describes, and those that are refused before a base is loaded."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.system.processes import job
from llama_peft.training import fit as training
from llama_peft.training.callbacks import StopOnSignal
from llama_peft.training.processes.start import train_in
from tests.support.paths import ROOT

FILES = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_every_key_of_our_files(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no"
    assert config.num_processes == 2 * config.num_machines


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "PARALLELISM_CONFIG"])
def test_what_would_share_out_the_base_is_refused_before_it_is_loaded(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setattr(backbone, "load", None)
    recipe = make_recipe("classification", "tiny", train={"output_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=rf"ACCELERATE_USE_{name}: .* each process holds all of it"):
        training.train(recipe)


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
