"""Several measurements of a ladder at a time: the same results, whoever has made them."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.ladder import steps
from llama_peft.errors import Died, UserError
from llama_peft.inference import unfinished
from llama_peft.ladder import jobs, walk
from llama_peft.model import room
from llama_peft.recipe import Recipe
from llama_peft.run_folder.ladder.finished import read_finished
from llama_peft.run_folder.ladder.rungs import measurements
from llama_peft.run_folder.layout import PREDICTIONS
from llama_peft.system import terminal
from llama_peft.system.processes import job, launch
from tests.support import forked
from tests.support.small import make_recipe, save_base

KEYS = {"rungs": ["majority", "zero-shot", "head", "tuned"], "seeds": [1, 2], "forgetting": False}


@pytest.fixture
def ladder(tmp_path: Path) -> Callable[..., Recipe]:
    """Returns a recipe whose ladder has six measurements."""
    base = save_base(tmp_path / "base")

    def build(name: str = "run", **train: Any) -> Recipe:
        keys = {"output_dir": str(tmp_path / name / "run"), "seed": 1, **train}
        return make_recipe("classification", base, lora={"r": 2}, train=keys, ladder=KEYS)

    return build


class Started(list[forked.Rank]):
    """The jobs that were begun, as forks; `before` is called with the number of each."""

    before: Callable[[int], object] = staticmethod(lambda rank: None)

    def start(self, command: Sequence[str], rank: int, *of: Any) -> forked.Rank:
        self.before(rank)
        self.append(forked.Rank(command, rank, *of))
        return self[-1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    found = Started()
    monkeypatch.setattr(launch, "_start", found.start)
    monkeypatch.setattr(terminal, "_name", "")
    yield found


def finished(recipe: Recipe) -> Mapping[str, object]:
    known = read_finished(Path(recipe.run_folder))
    return known.results if known else {}


def test_two_at_a_time_measure_what_one_after_the_other_does(
    ladder: Callable[..., Recipe], started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ladder("one"), ladder("two")
    walk.run(one, steps)
    walk.run(two, steps, jobs=2)
    assert len(started) == 2
    plan = measurements(two, 24)
    assert len(plan) == 6 and set(finished(two)) == {step.results for step in plan}
    for step in plan:
        alone, beside = (
            Path(recipe.run_folder, step.results, PREDICTIONS).read_bytes() for recipe in (one, two)
        )
        assert alone == beside, step.name
    monkeypatch.setattr(steps, "measure", lambda one, *_: pytest.fail(f"{one.name} again"))
    walk.run(two, steps)  # nothing is left
    said = [steps.verdict(Path(recipe.run_folder)) for recipe in (one, two)]
    assert [any("(2 jobs at a time)" in line for line in lines) for lines in said] == [False, True]


def test_a_killed_job_ends_the_others_and_the_same_command_continues(
    ladder: Callable[..., Recipe], started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, plain = ladder(), unfinished._stored

    def die(*of: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        started.before = lambda rank: patch.setattr(unfinished, "_stored", die if rank else plain)
        with pytest.raises(Died, match=r"process 1 of the 2 .* killed by signal 9 .* continues"):
            walk.run(recipe, steps, jobs=2)
    assert len(finished(recipe)) < 6
    walk.run(recipe, steps)
    assert len(finished(recipe)) == 6


def test_no_more_jobs_than_measurements(
    ladder: Callable[..., Recipe], started: Started, capfd: pytest.CaptureFixture[str]
) -> None:
    """One measurement is made in this process, two in two jobs."""
    recipe = ladder()
    walk.run(recipe, steps, jobs=8, only="zero-shot")
    assert not started
    walk.run(recipe, steps, jobs=8, only="head")
    assert len(started) == 2 and len(finished(recipe)) == 3


def test_a_mistake_in_a_job_is_that_of_the_command(
    ladder: Callable[..., Recipe], started: Started
) -> None:
    """The own training cannot be left out. What is finished is kept."""
    huge = ladder(learning_rate=1e30)
    with pytest.raises(UserError, match=r"^tuned, seed 1: step \d: .* is (nan|inf)"):
        walk.run(huge, steps, jobs=2)
    assert all(child.poll() is not None for child in started)
    assert "training.json" not in os.listdir(huge.run_folder)
    assert finished(huge)


def test_each_step_is_taken_once_and_its_number_begins_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ladder: Callable[..., Recipe]
) -> None:
    monkeypatch.setattr(terminal, "_name", "")
    plan = measurements(ladder(), 24)
    (tmp_path / "next").write_text("0")
    (tmp_path / "content").write_text("these")
    one, other = (jobs.taken(tmp_path, plan, "these") for _ in range(2))
    assert [next(one), next(other)] == plan[:2]
    assert terminal.shared_name() == "1/6 2/6"
    assert [*one] == plan[2:] and not [*other]
    with pytest.raises(UserError, match="the data have changed"):
        next(jobs.taken(tmp_path, plan, "others"))


@pytest.mark.parametrize(
    ("known", "count", "expected"),
    [
        (None, 2, [("0", "2"), ("1", "2"), ("0", "2")]),
        ("5,7,8", 3, [("5", "1"), ("7", "1"), ("8", "1")]),
    ],
)
def test_jobs_share_the_gpus(
    ladder: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    known: str | None,
    count: int,
    expected: list[tuple[str, str]],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if known:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", known)
    monkeypatch.setattr(jobs, "has_gpu", lambda recipe: True)
    monkeypatch.setattr(jobs, "gpu_kind", lambda: "cuda")
    monkeypatch.setattr(jobs, "count_gpus", lambda: count)
    monkeypatch.setattr(jobs, "free_memory", lambda recipe: 6_000)
    found = jobs.devices(ladder(), 3)
    assert [(its["CUDA_VISIBLE_DEVICES"], its[job.BESIDE]) for its in found] == expected
    assert {int(its[job.MEMORY]) * int(its[job.BESIDE]) for its in found} == {6_000}
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "9,8,7")
    assert jobs.devices(ladder(), 3) == found, "only AMD's torch reads it"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert {its["HIP_VISIBLE_DEVICES"] for its in jobs.devices(ladder(), 3)[:1]} == {"9"}


def test_jobs_share_the_memory(
    ladder: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ladder()
    monkeypatch.setattr(room, "_host_memory", lambda: 12_000)
    assert jobs.devices(recipe, 1) == [{}]
    (settings, *others) = jobs.devices(recipe, 3)
    assert others == [settings] * 2
    for free in (12_000, 4_000, 3_000):  # what the other jobs take is not free already
        monkeypatch.setattr(room, "_host_memory", lambda free=free: free)
        assert room.free_memory(recipe) == free
        with job.as_one_of(settings):
            assert room.free_memory(recipe) == min(free, 4_000) and job.sharers() == 3


def test_what_cannot_be_given_to_jobs(
    ladder: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ladder()
    with pytest.raises(UserError, match="--jobs 2: rows from Python stay in the process"):
        walk.run(recipe, steps, jobs=2, given={"train": [{"text": "a", "label": "positive"}]})
    with pytest.raises(UserError, match=r"--jobs 2: .*: leave away --jobs or --processes"):
        walk.run(recipe, steps, jobs=2, processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--jobs 2: .* torchrun"):
        walk.run(recipe, steps, jobs=2)
    assert not Path(recipe.run_folder).exists()
