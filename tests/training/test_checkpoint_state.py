"""A sealed checkpoint that no training can continue from is skipped, and the older one is taken."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_peft.recipe import Recipe
from llama_peft.system import seal
from llama_peft.training import checkpoints, fit
from llama_peft.training.checkpoint_state import Fit, trouble
from tests.support.trainings import hurt, lose_power, recipe_of, weights

WEIGHTS = "adapter_model.safetensors"
Change = Callable[[Path], object]


STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


class Evil:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("executed"), "executed")


@pytest.fixture(scope="module")
def recipe(
    make_recipe: Callable[..., Recipe], make_base: Callable[..., Path]
) -> Callable[[Path], Recipe]:
    base = make_base()

    def make(folder: Path) -> Recipe:
        keys = {"eval_steps": 1, "logging_steps": 1, "early_stopping_patience": 9}
        return recipe_of(make_recipe, base, "classification", folder, **keys)

    return make


@pytest.fixture(scope="module")
def cut(recipe: Callable[[Path], Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that was cut off after the second."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        hurt(patch, lose_power)
        fit.train(recipe(folder))
    return folder


@pytest.fixture
def run(cut: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cut, tmp_path / "run"))


def stated(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "trainer_state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def control(**values: Any) -> Change:
    return stated(stateful_callbacks={"TrainerControl": values})


def logged(entry: object) -> Change:
    return stated(log_history=[entry])


def spent(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "spent.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def pickled(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Evil()))


def saved(name: str, value: object) -> Change:
    return lambda folder: torch.save(value, folder / name)


def edited(name: str, edit: Callable[[Any], object]) -> Change:
    def change(folder: Path) -> None:
        value = torch.load(folder / name, weights_only=False)
        edit(value)
        torch.save(value, folder / name)

    return change


def tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def unpacks_to_more(folder: Path) -> None:
    with zipfile.ZipFile(folder / "scheduler.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scheduler/data.pkl", b"0" * 10_000_000)


def laughs(levels: int) -> object:
    value: object = 1.0
    for _ in range(levels):
        value = [value] * 10
    return value


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def subfolder(folder: Path) -> None:
    (folder / "other").mkdir()
    shutil.copy(folder / WEIGHTS, folder / "other")


CHANGES: dict[str, Change] = {
    **{f"pickled {name}": pickled(name) for name in STATES},
    **{f"empty {name}": saved(name, {}) for name in STATES},
    **{f"list {name}": saved(name, [1]) for name in STATES},
    **{f"no {name}": without(name) for name in (*STATES, "spent.json", "trainer_state.json", WEIGHTS)},
    "pickled adapter too": pickled("adapter_model.bin"),
    "pickled model too": pickled("pytorch_model.bin"),
    "other weights too": lambda folder: shutil.copy(folder / WEIGHTS, folder / "model.safetensors"),
    "shards too": text("model.safetensors.index.json", "{}"),
    "config too": text("config.json", "{"),
    "adapter below": subfolder,
    "odd scaler": saved("scaler.pt", {"scale": 0.0}),
    "unpacks to more": unpacks_to_more,
    "laughs": saved("scheduler.pt", {"last_epoch": 2, "a": laughs(12)}),
    "a method": edited("scheduler.pt", lambda found: found.update(step=1)),
    "NaN rate": edited("scheduler.pt", lambda found: found.update(base_lrs=[float("nan")])),
    "text rate": edited("optimizer.pt", lambda found: found["param_groups"][0].update(lr="x")),
    "NaN moment": edited("optimizer.pt", lambda found: found["state"][0]["exp_avg"].fill_(float("nan"))),
    "huge tensor": edited("optimizer.pt", lambda found: found["state"][0].update(exp_avg=torch.zeros(1).expand(10**12))),
    "lost parameter": edited("optimizer.pt", lambda found: found["param_groups"][0]["params"].pop(0)),
    "odd generator": edited("rng_state.pth", lambda found: found.update(python=(3, (1, 2), None))),
    "short generator": edited("rng_state.pth", lambda found: found.update(cpu=found["cpu"][:9])),
    "NaN weight": tensors(lambda found: {name: one * float("nan") for name, one in found.items()}),
    "infinite weight": tensors(lambda found: {name: one + float("inf") for name, one in found.items()}),
    "lost weight": tensors(lambda found: dict(list(found.items())[1:])),
    "cut weight": tensors(lambda found: {name: one[:1].clone() for name, one in found.items()}),
    "no weights": text(WEIGHTS, "x"),
    "huge step": stated(global_step=10**30, max_steps=10**30),
    "step of another": stated(global_step=1),
    "step beyond": stated(max_steps=1),
    "negative step": stated(global_step=-1),
    "step as text": stated(global_step="2"),
    "step as truth": stated(global_step=True),
    "NaN epoch": stated(epoch=float("nan")),
    "infinite best": stated(best_metric=float("inf")),
    "unknown key": stated(surprise=1),
    "known in the class only": stated(save_to_json="x"),
    "callback arguments": control(args={"surprise": 1}, attributes={}),
    "callback attributes": control(args={}, attributes={"state": 1}),
    "callback list": stated(stateful_callbacks=["TrainerControl"]),
    "unknown callback": stated(stateful_callbacks={"PrinterCallback": {"args": {}, "attributes": {}}}),
    "NaN logged step": logged({"step": float("nan"), "loss": 1.0}),
    "no logged step": logged({"loss": 1.0}),
    "NaN logged loss": logged({"step": 1, "loss": float("nan")}),
    "text logged": logged({"step": 1, "loss": "x"}),
    "log entry of text": logged("x"),
    "log of later steps": logged({"step": 3, "loss": 1.0}),
    "no log": stated(log_history={"step": 1}),
    "no evaluation": stated(eval_steps=0),
    "text interval": stated(save_steps="x"),
    "best elsewhere": stated(best_global_step=None, best_model_checkpoint="/tmp/elsewhere"),
    "best to come": stated(best_global_step=3, best_model_checkpoint="checkpoint-3"),
    "best missing": stated(best_global_step=0, best_model_checkpoint="checkpoint-0"),
    "brackets": text("trainer_state.json", "[" * 100_000),
    "a number of 5,000 digits": text("trainer_state.json", '{"global_step": ' + "9" * 5_000 + "}"),
    "1e999": text("trainer_state.json", '{"global_step": 2, "max_steps": 3, "total_flos": 1e999}'),
    "not JSON": text("trainer_state.json", "{"),
    "NaN seconds": spent(seconds=float("nan")),
    "negative seconds": spent(seconds=-1.0),
    "text seconds": spent(seconds="1"),
    "huge memory": spent(peak_memory_bytes=10**30),
    "a list as origin": spent(recipe=["x"]),
    "spent list": text("spent.json", "[1]"),
    "spent brackets": text("spent.json", "[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_cannot_be_used_is_skipped(
    name: str, run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    folder = run / "checkpoints"
    shapes = {
        key: tuple(one.shape) for key, one in load_file(folder / "checkpoint-2" / WEIGHTS).items()
    }
    training = Fit(shapes, 3)
    assert checkpoints.newest_sealed(folder, training) == folder / "checkpoint-2"
    CHANGES[name](folder / "checkpoint-2")
    seal.seal(folder / "checkpoint-2")
    found = checkpoints.newest_sealed(folder, training)
    assert found in (None, folder / "checkpoint-1")
    assert (
        f"{folder / 'checkpoint-2'} is incomplete or damaged"
        in caplog.messages[-1] + caplog.messages[0]
    )
    assert all("\n" not in message for message in caplog.messages)
    assert not (run / "executed").exists()


def test_a_file_that_the_seal_does_not_name_is_not_read(run: Path) -> None:
    folder = run / "checkpoints/checkpoint-2"
    sums = json.loads((folder / seal.SEAL).read_text())
    del sums["optimizer.pt"]
    (folder / seal.SEAL).write_text(json.dumps(sums))
    assert seal.is_sealed(folder) and "does not name every file" in str(trouble(folder))


def test_steps_that_a_scaler_left_out_are_no_fault(run: Path) -> None:
    folder = run / "checkpoints/checkpoint-2"
    logged({"step": 1, "loss": 1.0, "grad_norm": float("inf")})(folder)
    assert trouble(folder) is None


@pytest.mark.parametrize(
    "change", [pickled("optimizer.pt"), stated(log_history=[{"loss": 1.0}]), control(args={"x": 1})]
)
def test_a_training_continues_from_the_older_checkpoint(
    change: Change, run: Path, cut: Path, recipe: Callable[[Path], Recipe], tmp_path: Path
) -> None:
    whole = fit.train(recipe(Path(shutil.copytree(cut, tmp_path / "whole"))))
    change(run / "checkpoints/checkpoint-2")
    seal.seal(run / "checkpoints/checkpoint-2")
    again = fit.train(recipe(run))
    assert all(torch.equal(weights(again)[key], one) for key, one in weights(whole).items())


def test_a_step_that_the_training_does_not_have_is_not_its_end(
    run: Path, recipe: Callable[[Path], Recipe]
) -> None:
    far = run / "checkpoints/checkpoint-900"
    shutil.copytree(run / "checkpoints/checkpoint-2", far)
    stated(global_step=900, max_steps=900)(far)
    seal.seal(far)
    record = json.loads((fit.train(recipe(run)) / "training.json").read_text())
    assert record["steps"] == 3 and record["resumed_from"] == "checkpoint-2"


def test_a_state_that_only_the_library_refuses_is_one_line(
    run: Path, recipe: Callable[[Path], Recipe]
) -> None:
    from llama_peft.errors import UserError

    def narrow(found: Any) -> None:
        found["state"][0]["exp_avg"] = torch.zeros(3)

    edited("optimizer.pt", narrow)(run / "checkpoints/checkpoint-2")
    seal.seal(run / "checkpoints/checkpoint-2")
    with pytest.raises(UserError, match=r"checkpoint-2: the training cannot continue from this"):
        fit.train(recipe(run))
