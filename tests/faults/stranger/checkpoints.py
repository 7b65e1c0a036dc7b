"""Checkpoints that a stranger wrote and sealed: the newest one is passed over, the older one taken."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llama_peft.system.seal import seal
from tests.faults.hostile import Evil

from .case import HEAD, LORA, Case, Plan, Scene, goes_on, trains
from .stage import change_json

NEWEST = "checkpoints/checkpoint-7"


def cases() -> Iterator[Case]:
    for name in PICKLES:
        yield _newest(f"a pickle as {name}", _pickle(name), cheap=name in CHEAP)
        yield _newest(f"a pickle in a zip file as {name}", _zipped(name))
    for name, change in CHANGES.items():
        yield _newest(name, change, cheap=name in CHEAP)
    for name, change in HEADS.items():
        yield _newest(f"{name} of a head alone", change, HEAD)
    yield Case("checkpoint: a pickle in the only one", _only)
    yield Case("checkpoint: an unknown key in every one", _every)
    yield Case("checkpoint: trainer_state.json with a best one elsewhere", _best_elsewhere)


PICKLES = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "adapter_model.bin",
    "training_args.bin",
    "scaler.pt",
)
CHEAP = ("optimizer.pt", "trainer_state.json with an unknown key")


def _newest(
    name: str, change: Callable[[Path], object], kind: str = LORA, cheap: bool = False
) -> Case:
    def plan(scene: Scene) -> Plan:
        words = scene.unfinished(kind)
        newest = scene.run / NEWEST
        change(newest)
        seal(newest)
        return Plan(words, same=trains(kind))

    return Case(f"checkpoint: {name}", plan, cheap=cheap)


def _pickle(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        raw = pickle.dumps(Evil(folder.parents[3] / "outside/executed"))
        (folder / name).write_bytes(raw)
        if name == "adapter_model.bin":
            (folder / "adapter_model.safetensors").unlink()

    return change


def _zipped(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        torch.save(Evil(folder.parents[3] / "outside/executed"), folder / name)
        if name == "adapter_model.bin":
            (folder / "adapter_model.safetensors").unlink()

    return change


def _state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: change_json(folder / "trainer_state.json", change, summed=False)


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _entry(**keys: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["log_history"].append(keys)


def _tensors(
    name: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return edit


def _optimizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        change(state)
        torch.save(state, folder / "optimizer.pt")

    return edit


def _wrong_shape(state: dict[str, Any]) -> None:
    for values in state["state"].values():
        values["exp_avg"] = values["exp_avg"].flatten()[:1].clone()


def _nan_momentum(state: dict[str, Any]) -> None:
    for values in state["state"].values():
        values["exp_avg"].fill_(float("nan"))


def _first_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).fill_(float("nan"))


def _linked(folder: Path) -> None:
    outside = folder.parents[3] / "outside"
    shutil.move(folder / "optimizer.pt", outside / "optimizer.pt")
    (folder / "optimizer.pt").symlink_to(outside / "optimizer.pt")


def _copied_from(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder.with_name("checkpoint-6") / name, folder / name)


STATEFUL = {"SealCheckpoints": {"args": {"keep": 0, "started": 0}, "attributes": {}}}
EXPORTABLE = {
    "TrainerControl": {"args": {"nobody": 1}, "attributes": {"should_training_stop": True}}
}
CHANGES: dict[str, Callable[[Path], object]] = {
    "trainer_state.json with an unknown key": _state(lambda v: v.update(nobody=1)),
    "trainer_state.json with arguments of a callback": _state(lambda v: v.update(stateful_callbacks=EXPORTABLE)),
    "trainer_state.json with another callback": _state(lambda v: v.update(stateful_callbacks=STATEFUL)),
    "trainer_state.json with callbacks that are a list": _state(lambda v: v.update(stateful_callbacks=[1])),
    "trainer_state.json with an entry without a step": _state(_entry(loss=1.0)),
    "trainer_state.json with an entry of text": _state(_entry(step="last", loss="low")),
    "trainer_state.json with a loss that is NaN": _state(_entry(step=7, loss=float("nan"))),
    "trainer_state.json with a history of numbers": _state(lambda v: v.update(log_history=[1, 2])),
    "trainer_state.json without a history": _state(lambda v: v.pop("log_history")),
    "trainer_state.json without a step": _state(lambda v: v.pop("global_step")),
    "trainer_state.json with a best one that is a number": _state(lambda v: v.update(best_model_checkpoint=7)),
    "trainer_state.json that is a list": _text("trainer_state.json", "[]"),
    "trainer_state.json that is empty": _text("trainer_state.json", ""),
    "trainer_state.json that is nested": _text("trainer_state.json", "[" * 100_000),
    "trainer_state.json of an older step": _copied_from("trainer_state.json"),
    "spent.json that is a list": _text("spent.json", "[]"),
    "spent.json without a key": _text("spent.json", "{}"),
    "spent.json with a text for seconds": _text("spent.json", json.dumps({"seconds": "x", "peak_memory_bytes": 1})),
    "spent.json with NaN": _text("spent.json", '{"seconds": NaN, "peak_memory_bytes": -1}'),
    "spent.json that is nested": _text("spent.json", "[" * 100_000),
    "an optimizer of other shapes": _optimizer(_wrong_shape),
    "an optimizer of NaN": _optimizer(_nan_momentum),
    "an optimizer without groups": _optimizer(lambda state: state.pop("param_groups")),
    "an optimizer that is a link": _linked,
    "an adapter of NaN": _tensors("adapter_model.safetensors", _first_nan),
    "an adapter without a weight": _tensors("adapter_model.safetensors", lambda t: t.pop(next(iter(t)))),
    "an adapter that is a text": _text("adapter_model.safetensors", "no weights"),
    "an adapter's config that is a list": _text("adapter_config.json", "[]"),
    "an adapter's config of another method": _text("adapter_config.json", '{"peft_type": "PROMPT_TUNING"}'),
    "a scheduler that is empty": _text("scheduler.pt", ""),
    "a generator that is a text": _text("rng_state.pth", "random"),
}  # fmt: skip
HEADS: dict[str, Callable[[Path], object]] = {
    "a model of NaN": _tensors("model.safetensors", _first_nan),
    "a model without a weight": _tensors("model.safetensors", lambda t: t.pop(next(iter(t)))),
    "a model of other shapes": _tensors(
        "model.safetensors", lambda t: t.update({n: x[:1].clone() for n, x in t.items()})
    ),
    "a pickle as pytorch_model.bin": _pickle("pytorch_model.bin"),
}


def _only(scene: Scene) -> Plan:
    """No older one is there: the training starts again, and ends as an undisturbed one."""
    words = scene.unfinished()
    for path in (scene.run / "checkpoints").iterdir():
        if path.name != "checkpoint-7":
            shutil.rmtree(path)
    newest = scene.run / NEWEST
    change_json(
        newest / "trainer_state.json", lambda v: v.update(best_model_checkpoint=None), False
    )
    _pickle("optimizer.pt")(newest)
    seal(newest)
    return Plan(words, same=trains(LORA))


def _every(scene: Scene) -> Plan:
    words = scene.unfinished()
    for path in (scene.run / "checkpoints").iterdir():
        _state(lambda v: v.update(nobody=1))(path)
        seal(path)
    return Plan(words, same=trains(LORA))


def _best_elsewhere(scene: Scene) -> Plan:
    """Which of a run's checkpoints is the best may be anything, but it is one of the run."""
    words = scene.unfinished()
    best = str(scene.outside / "folder/checkpoint-6")
    newest = scene.run / NEWEST
    _state(lambda v: v.update(best_model_checkpoint=best, best_global_step=6))(newest)
    seal(newest)
    return Plan(words, same=goes_on)
