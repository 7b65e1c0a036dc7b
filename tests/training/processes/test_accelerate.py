"""The launches of accelerate that the project describes, and those that are refused before a base is loaded.

accelerate's own command reads the files and starts torchrun's agents, which start forks of this
process: these have its libraries already.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed import run as torchrun

from llama_peft import cli
from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, dump_recipe
from llama_peft.run_folder.record import read_record
from llama_peft.training import fit as training
from llama_peft.training.callbacks import StopOnSignal
from llama_peft.training.processes import shared_base
from tests.support import forked
from tests.support.paths import ROOT
from tests.support.trainings import weights

FOLDER = ROOT / "recipes/accelerate"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
Hook = Callable[[], object]


def begin(words: list[str], log: Path, hook: Hook) -> int:
    """Begin `accelerate launch` in a fork. hook: runs in each process that it starts."""

    def command() -> None:
        read = torchrun.config_from_args

        def in_forks(args: Any) -> tuple[Any, Hook, tuple[()]]:
            config, _, given = read(args)
            config.start_method = "fork"
            return config, lambda: work(given[given.index("-m") + 1 :]), ()

        torchrun.config_from_args = in_forks
        sys.argv = ["accelerate", *words]
        launch.main()

    def work(given: list[str]) -> None:
        from llama_peft.__main__ import app

        hook()
        sys.argv = given
        try:
            cli.run(app)
        except SystemExit as end:
            sys.stdout.flush()
            if end.code:
                os._exit(end.code if isinstance(end.code, int) else 1)

    forked.import_libraries()
    return forked.fork(command, log)


def launched(recipe: Recipe, file: str, folder: Path, hooks: tuple[Hook, ...]) -> list[int]:
    """Train as a file says, two processes in all; return the exit code of the command on each machine.

    hooks: one for each machine, which run in its processes.
    """
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    given = ["--config_file", str(FOLDER / f"{file}.yaml"), "--num_processes", "2"]
    given += ["--main_process_port", str(forked.free_port())]
    if len(hooks) > 1:
        given += ["--main_process_ip", "127.0.0.1"]
    command = ["--module", "llama_peft", "train", str(folder / "recipe.yaml")]
    children = []
    for machine, hook in enumerate(hooks):
        which = ["--machine_rank", str(machine)] if len(hooks) > 1 else []
        log = folder / f"{file}-{machine}.log"
        children.append(begin([*given, *which, *command], log, hook))
    return [forked.ended(child) for child in children]


def nothing() -> None:
    pass


def test_each_file_trains_and_a_process_that_dies_on_one_of_two_machines_ends_both(
    make_recipe: Callable[..., Recipe],
    make_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All give the same bits. The machines are two launches that meet over this one's own address."""
    base, share, step_end = make_base(), shared_base.share_base, StopOnSignal.on_step_end

    def told(*given: Any) -> None:
        share(*given)
        (tmp_path / f"shared {os.environ['RANK']}").touch()

    def deadly() -> None:
        def end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            step_end(self, args, state, control, **kwargs)

        monkeypatch.setattr(StopOnSignal, "on_step_end", end)

    def recipe_of(file: str) -> Recipe:
        keys = {"output_dir": str(tmp_path / file), "max_steps": 3, "eval_steps": 1}
        return make_recipe("classification", base, lora={"r": 2}, train=keys)

    monkeypatch.setattr(shared_base, "share_base", told)
    found = {}
    for file in FILES:
        hooks: tuple[Hook, ...] = (nothing, nothing) if file == "two-machines" else (nothing,)
        recipe, logs = recipe_of(file), [tmp_path / f"{file}-{n}.log" for n in range(len(hooks))]
        if file == "two-machines":
            assert 0 not in launched(recipe, file, tmp_path, (nothing, deadly))
            here, there = (log.read_text() for log in logs)
            assert "error: another process of this job does not answer" in here
            assert "Traceback" not in here.partition("error: another process")[0]
            assert "rank      : 1" in there and "(SIGKILL)" in there
        codes = launched(recipe, file, tmp_path, hooks)
        assert set(codes) == {0}, "\n".join(log.read_text()[-3000:] for log in logs)
        assert ("continuing from" in logs[0].read_text()) == (file == "two-machines")
        run = Path(recipe.run_folder)
        assert read_record(run).processes == 2
        found[file] = weights(run)
        shared = [*tmp_path.glob("shared ?")]
        assert len(shared) == (2 if file == "fsdp" else 0)
        for one in shared:
            one.unlink()
    first = found["ddp"]
    for other in found.values():
        assert other.keys() == first.keys()
        assert all(other[name].equal(first[name]) for name in first)


@pytest.mark.parametrize("file", FILES)
def test_accelerate_reads_every_key_of_our_files(file: str) -> None:
    given = launch.launch_command_parser().parse_args(
        ["--config_file", str(FOLDER / f"{file}.yaml"), "--module", "llama_peft", "train", "sst2"]
    )
    _, config, _ = launch._validate_launch_command(given)
    kind = "FSDP" if file == "fsdp" else "MULTI_GPU"
    assert config.distributed_type == kind and config.mixed_precision == "no"
    assert config.num_processes == 2 * config.num_machines


TWO = {"fsdp_version": 2}
REFUSED: dict[str, dict[str, Any]] = {
    "DEEPSPEED": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
    "MEGATRON_LM": {
        "distributed_type": "MEGATRON_LM",
        "megatron_lm_config": {"megatron_lm_tp_degree": 2},
    },
    "PARALLELISM_CONFIG": {
        "distributed_type": "FSDP",
        "fsdp_config": TWO,
        "parallelism_config": {"parallelism_config_tp_size": 2},
    },
}
"""What would share out what is trained, as a user's file for accelerate launch asks for it."""


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("by_file", [True, False])
def test_what_would_share_out_the_base_is_refused_before_it_is_loaded(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    by_file: bool,
) -> None:
    """Asked for by a file of accelerate's, or by the environment alone."""
    settings = {f"ACCELERATE_USE_{name}": "true"}
    if by_file:
        file = tmp_path / "accelerate.yaml"
        common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}
        file.write_text(yaml.safe_dump(common | REFUSED[name]))
        words = ["--config_file", str(file), "--module", "llama_peft", "train", "sst2"]
        given, *_ = launch._validate_launch_command(
            launch.launch_command_parser().parse_args(words)
        )
        given.main_process_port = forked.free_port()
        given.deepspeed_fields_from_accelerate_config = ""
        if name == "DEEPSPEED":
            _, settings = prepare_deepspeed_cmd_env(given)
        else:
            settings = prepare_multi_gpu_env(given)
    for key, value in settings.items():
        if key.startswith("ACCELERATE"):
            monkeypatch.setenv(key, value)
    monkeypatch.setattr(backbone, "load", None)
    recipe = make_recipe("classification", "tiny", train={"output_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=rf"ACCELERATE_USE_{name}: .* shards that cannot be sealed"):
        training.train(recipe)
