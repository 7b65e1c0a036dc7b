"""A training goes on in another number of processes, and takes the steps that it would have taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.training import fit as training
from llama_peft.training.processes.resumed import same_step
from tests.support import forked
from tests.training.processes.test_alike import (
    TOLERANCE,
    history,
    recipe_of,
    shared_for_sure,
    weights,
)


def train(processes: int, recipe: Recipe, stop: int, folder: Path, shared: bool = False) -> None:
    """Train in forks until a step is done, and stop as at a signal; 0 trains to the end.

    shared: whether the processes share the base out.
    """

    def run() -> None:
        if shared:
            shared_for_sure()
        from llama_peft.training.callbacks import StopOnSignal

        def step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop:
                self.received = 15
            right(self, args, state, control, **kwargs)

        right = StopOnSignal.on_step_end
        StopOnSignal.on_step_end = step_end  # type: ignore[method-assign]
        training.train(recipe)

    forked.import_libraries()
    if processes == 1:
        (folder / "log").touch()
        code = forked.ended(forked.fork(run, folder / "log"))
        assert (code == 0) == (stop == 0), (folder / "log").read_text()[-3000:]
        return

    def start(hook: Callable[[], object], log: Path) -> int:
        return forked.fork(lambda: (hook(), run()), log)

    codes = forked.ranks(processes, start, folder)
    assert [code == 0 for code in codes] == [stop == 0] * 2, (folder / "rank-0.log").read_text()


def test_two_processes_then_one_then_two(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The one process makes two pieces of a step that two processes had one of each. Two may share the
    base out before and after two that do not.
    """
    base, keys = make_base(), {"num_train_epochs": 2.0, "per_device_train_batch_size": 2}
    keys |= {"optim": "adamw_torch", "learning_rate": 2e-3}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, parts = (
        recipe_of(make_recipe, base, "labels", tmp_path / name, **keys)
        for name in ("whole", "parts")
    )
    train(2, whole, 0, tmp_path)
    run = Path(parts.run_folder)
    for processes, shared, stop, newest in (
        (2, True, 1, "1"),
        (2, False, 2, "2"),
        (1, False, 4, "4"),
        (2, True, 0, "6"),
    ):
        train(processes, parts, stop, tmp_path, shared)
        spent = json.loads((run / f"checkpoints/checkpoint-{newest}/spent.json").read_text())
        assert (spent["processes"], spent["rows_per_step"]) == (processes, 4)
    expected, found = history(Path(whole.run_folder)), history(run)
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    for ours, other in zip(found, expected, strict=True):
        for name in {"loss", "grad_norm", "eval_loss"} & other.keys():
            assert ours[name] == pytest.approx(other[name], rel=TOLERANCE, abs=TOLERANCE), name
    ours = weights(run)
    for name, weight in weights(Path(whole.run_folder)).items():
        assert (ours[name] - weight).abs().max() < TOLERANCE, name


@pytest.mark.parametrize(
    ("rows", "processes", "expected"),
    [
        (8, 2, {}),  # as it was begun
        (16, 2, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        (16, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}),
        (16, 8, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}),
        (12, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}),
        (18, 3, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}),
        (16, 3, None),
    ],
)
def test_a_step_keeps_its_rows_and_no_batch_grows(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    processes: int,
    expected: dict[str, int] | None,
) -> None:
    recipe = make_recipe("classification", "tiny", train={"per_device_train_batch_size": 4})
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for before in (2, processes):  # the last to continue may have had another number than the first
        parts = {"processes": before, "rows_per_step": rows}
        (tmp_path / "spent.json").write_text(json.dumps(parts))
        if expected is not None:
            assert same_step(recipe, tmp_path) == expected
    if expected is not None:
        return
    with pytest.raises(UserError, match="16 rows, which 3 processes cannot share evenly"):
        same_step(recipe, tmp_path)
