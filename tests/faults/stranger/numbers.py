"""Numbers that are none, or that nothing of ours can hold, in weights and records."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llama_peft.system.seal import seal
from tests.faults.models.damaged import reseal

from .case import HEAD, LORA, SPAN, Case, Plan, Scene, trains
from .stage import change_adapter, change_json

NAN, INF = math.nan, math.inf


def cases() -> Iterator[Case]:
    for key, value, cheap in ADAPTER:
        yield _adapter(key, value, cheap)
    for kind, name in WEIGHTS:
        for value in (NAN, INF, 1e38):
            yield _weights(kind, name, value)
    for key, value in RECORD:
        yield _record(key, value)
    for value in (NAN, INF, 1e308, "0.5", None, True):
        yield _threshold(value)
    for name, change in RESULTS.items():
        yield _results(name, change)
    for name, keys in CONFIG.items():
        yield _config(name, keys)
    for key, value in STATE:
        yield _state(key, value)
    for name, line in PREDICTIONS.items():
        yield _predictions(name, line)
    for base, change in BASES.items():
        yield _base(base, change)


ADAPTER = [
    ("lora_alpha", NAN, True), ("lora_alpha", INF, False), ("lora_alpha", 1e300, False),
    ("lora_alpha", "1e999", False), ("lora_alpha", "eight", False), ("lora_alpha", None, False),
    ("lora_alpha", [], False), ("r", 0, False), ("r", -1, False), ("r", NAN, False), ("r", 10**9, False),
    ("r", "two", False), ("r", 10**30, False), ("lora_dropout", "x", False),
    ("alpha_pattern", {"q_proj": NAN}, False), ("rank_pattern", {"q_proj": 10**9}, False),
    ("alpha_pattern", {"q_proj": INF}, False), ("layers_to_transform", [10**30], False),
    ("layers_to_transform", -1, False),
]  # fmt: skip


def _adapter(key: str, value: object, cheap: bool) -> Case:
    def plan(scene: Scene) -> Plan:
        run = scene.finished()
        change_adapter(run, **{key: value})
        return Plan(["predict", str(run), "a fine film"])

    return Case(f"number: {key} {value!r} in an adapter", plan, cheap=cheap)


WEIGHTS = [
    (LORA, "adapter/adapter_model.safetensors"),
    (HEAD, "head.safetensors"),
    (SPAN, "adapter/adapter_model.safetensors"),
]


def _weights(kind: str, name: str, value: float) -> Case:
    def plan(scene: Scene) -> Plan:
        run = scene.finished(kind)
        tensors = load_file(run / name)
        for tensor in tensors.values():
            tensor.view(-1)[0] = value
        save_file(tensors, run / name)
        reseal(run)
        asked = ["--question", "Who?", "--context", "Ada did."] if kind == SPAN else ["a film"]
        if math.isfinite(value):  # the weights are numbers, but what they give is none
            return Plan(["predict", str(run), *asked], same=_finite)
        return Plan(["predict", str(run), *asked])

    return Case(
        f"number: {value} in the weights of a {kind}",
        plan,
        cheap=(kind, value == INF) == (HEAD, True),
    )


def _finite(scene: Scene, done: Any) -> str:
    words = done.last_line.split()
    return "a number that is none" if {"nan", "inf", "-inf"} & set(words) else ""


RECORD: list[tuple[str, object]] = [
    ("steps", 10**30), ("steps", -1), ("steps", NAN), ("wall_seconds", NAN), ("wall_seconds", -1.0), ("wall_seconds", INF),
    ("peak_memory_bytes", -5), ("train_loss", NAN), ("parameters", {"total": -1, "trainable": 0, "base": 0}),
    ("head", {"layer": 10**9, "pooling": "last"}), ("version", 10**30), ("version", -1), ("examples", {"train": -4}),
]  # fmt: skip


def _record(key: str, value: object) -> Case:
    def plan(scene: Scene) -> Plan:
        run = scene.finished()
        change_json(run / "training.json", lambda values: values.update({key: value}))
        return Plan(["predict", str(run), "a fine film"])

    return Case(f"number: {key} {value!r} in training.json", plan)


def _threshold(value: object) -> Case:
    def plan(scene: Scene) -> Plan:
        scene.shop.tuned(SPAN)
        run = scene.finished(SPAN)
        change_json(run / "threshold.json", lambda v: v.update(no_answer_threshold=value))
        return Plan(["predict", str(run), "--question", "Who?", "--context", "Ada did."])

    return Case(f"number: the threshold is {value!r}", plan)


def _accuracy(value: object) -> Callable[[dict[str, Any]], object]:
    return lambda v: [scores.update(accuracy=value) for scores in v["results"].values()]


RESULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "accuracy NaN": _accuracy(NAN),
    "accuracy infinite": _accuracy(INF),
    "accuracy a text": _accuracy("1"),
    "accuracy null": _accuracy(None),
    "-3 examples": lambda v: [n.update(original=-3, effective=-3) for n in v["n-samples"].values()],
    "10^30 examples": lambda v: [n.update(effective=10**30) for n in v["n-samples"].values()],
}


def _results(name: str, change: Callable[[dict[str, Any]], object]) -> Case:
    def plan(scene: Scene) -> Plan:
        tuned = scene.shop.tuned(LORA)
        shutil.copytree(tuned, scene.out)
        change_json(scene.out / "results.json", change)
        return Plan(["compare", str(tuned), str(scene.out)], "eval")

    return Case(f"number: {name} in results.json", plan)


CONFIG: dict[str, dict[str, object]] = {
    "10^12 hidden": {"hidden_size": 10**12},
    "-64 hidden": {"hidden_size": -64},
    "no hidden": {"hidden_size": 0},
    "10^30 blocks": {"num_hidden_layers": 10**30},
    "half a block": {"num_hidden_layers": 1.5},
    "no heads": {"num_attention_heads": 0},
    "-3 words": {"vocab_size": -3},
    "a NaN epsilon": {"rms_norm_eps": NAN},
}


def _config(name: str, keys: dict[str, object]) -> Case:
    def plan(scene: Scene) -> Plan:
        base = Path(shutil.copytree(scene.shop.base, scene.folder / "base"))
        change_json(base / "config.json", lambda values: values.update(keys), summed=False)
        return Plan(scene.shop.write(scene.shop.recipe(LORA, scene.folder, base), scene.folder))

    return Case(f"number: {name} in a base's config", plan)


STATE: list[tuple[str, object]] = [
    ("global_step", 10**30), ("global_step", NAN), ("global_step", -7), ("global_step", 7.5), ("global_step", "7"),
    ("max_steps", 10**30), ("epoch", NAN), ("epoch", -1.0), ("best_metric", NAN), ("best_global_step", 10**30), ("train_batch_size", -1),
    ("num_train_epochs", 10**30), ("save_steps", 0), ("logging_steps", NAN), ("num_input_tokens_seen", -1),
]  # fmt: skip


def _state(key: str, value: object) -> Case:
    """A number in the newest checkpoint; the older one is taken."""

    def plan(scene: Scene) -> Plan:
        words = scene.unfinished()
        newest = scene.run / "checkpoints/checkpoint-7"
        change_json(newest / "trainer_state.json", lambda v: v.update({key: value}), summed=False)
        seal(newest)
        return Plan(words, same=trains(LORA))

    return Case(f"number: {key} {value!r} in a checkpoint", plan, cheap=(key, value) == STATE[0])


PREDICTIONS: dict[str, dict[str, object]] = {
    "probability NaN": {"no_answer_probability": NAN},
    "probability infinite": {"no_answer_probability": INF},
    "probability 7": {"no_answer_probability": 7.0},
    "probability -1": {"no_answer_probability": -1.0},
}


def _predictions(name: str, keys: dict[str, object]) -> Case:
    def plan(scene: Scene) -> Plan:
        tuned = scene.shop.tuned(SPAN)
        lines = [json.loads(line) | keys for line in (tuned / "predictions.jsonl").open()]
        path = scene.folder / "mine.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        recipe = str(tuned.parent / "recipe.yaml")
        words = ["score", "--task", recipe, "--predictions", str(path), "--output", str(scene.out)]
        return Plan(words, "eval")

    return Case(f"number: {name} in predictions", plan)


def _weight(value: float) -> Callable[[Path], object]:
    def change(base: Path) -> None:
        tensors: dict[str, torch.Tensor] = load_file(base / "model.safetensors")
        tensors["model.layers.0.self_attn.q_proj.weight"].fill_(value)
        save_file(tensors, base / "model.safetensors", {"format": "pt"})

    return change


BASES = {"3e38": _weight(3e38), "NaN": _weight(NAN), "-infinite": _weight(-INF)}


def _base(name: str, change: Callable[[Path], object]) -> Case:
    def plan(scene: Scene) -> Plan:
        base = Path(shutil.copytree(scene.shop.base, scene.folder / "base"))
        change(base)
        task = [
            "run",
            "--task",
            str(scene.shop.reference(LORA) / "recipe.yaml"),
            "--model",
            str(base),
        ]
        return Plan([*task, "--output", str(scene.out)], "eval")

    return Case(f"number: a base whose weights are {name} is evaluated", plan)
