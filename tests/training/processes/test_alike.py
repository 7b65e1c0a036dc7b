"""Two processes take the steps of one, for every kind of training, also where the rows do not share evenly."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from llama_peft.recipe import Recipe
from llama_peft.system.files import read_json
from llama_peft.system.processes import job
from llama_peft.system.seal import SEAL
from llama_peft.training import fit as training
from llama_peft.training.processes import shared_base
from llama_peft.training.trainer import SteadyTrainer
from tests.support import forked

TOLERANCE = 1e-6
LORA = {"r": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("classification", {"lora": LORA}),
    "weighted": ("classification", {"lora": LORA, "train": {"class_weights": {"positive": 5.0}}}),
    "tree rows under a head": (
        "classification",
        {"lora": LORA, "train": {"packing": "prefix_tree"}},
    ),
    "a head alone, on states": ("classification", {}),
    "numbers": ("regression", {"lora": LORA}),
    "spans": ("extractive_qa", {"lora": LORA}),
    "answers in trees": (
        "generative_qa",
        {"lora": LORA, "train": {"packing": "prefix_tree", "max_length": 220}},
    ),
}
BITS = {"quantization": {"load_in_4bit": True}}
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": KINDS["labels"],
    "spans under a head alone": ("extractive_qa", {}),
    "computed again": (
        "classification",
        {"lora": {"r": 4, "use_dora": True}, "train": {"activation_checkpointing": True}},
    ),
    "answers in 4 bits": ("generative_qa", {**KINDS["answers in trees"][1], **BITS}),
}
"""Kinds that are trained with the base shared out, too."""


def recipe_of(
    make_recipe: Callable[..., Recipe], base: Path, kind: str, folder: Path, **train: Any
) -> Recipe:
    """9 rows in steps of 4: the last step of an epoch has one row, for two processes."""
    task, sections = (KINDS | SHARED)[kind]
    if task == "regression":
        rows = "".join(f"a text of {n} words,{n % 4}.5\n" for n in range(9))
        parts = {}
        for part in ("train", "validation", "test"):
            parts[part] = str(folder.parent / f"{part}.csv")
            Path(parts[part]).write_text("text,label\n" + rows)
        data: dict[str, Any] = {"path": None, "name": None, "parts": parts}
        sections = sections | {"prompt": {"verbalizers": ["0", "1", "2", "3"]}}
    else:
        data = {"parts": {"train": 9, "validation": 5, "test": 4}}
    keys = {
        "output_dir": str(folder / kind.replace(" ", "-")),
        "max_steps": -1,
        "num_train_epochs": 2.0,
        "per_device_eval_batch_size": 2,
        # Adam divides a gradient by its own size, so it makes the rounding of a tiny one large.
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    keys |= sections.get("train", {}) | train
    return make_recipe(task, base, **sections | {"train": keys, "dataset": data})


@pytest.fixture(scope="module")
def runs(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], tuple[Path, Path]]:
    """Return the run of one process and that of two, of a kind. All are trained at once, in two forks, and
    then those that share the base out.
    """
    forked.import_libraries()
    folder, base = tmp_path_factory.mktemp("alike"), make_base()
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    (folder / "shared").mkdir()
    batches = {"one": (4, 1), "two": (1, 2), "shared": (1, 2)}
    kinds = {"one": KINDS | SHARED, "two": KINDS, "shared": SHARED}

    def recipes(place: str) -> list[Recipe]:
        size, pieces = batches[place]
        keys = {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces}
        return [recipe_of(make_recipe, base, kind, folder / place, **keys) for kind in kinds[place]]

    def train(place: str) -> None:
        for recipe in recipes(place):
            training.train(recipe)

    def start(hook: Callable[[], object], log: Path) -> int:
        return forked.fork(lambda: (hook(), second_is_late(), train("two")), log)

    alone = forked.fork(lambda: train("one"), folder / "log")
    codes = [*forked.ranks(2, start, folder), forked.ended(alone)]
    logs = ["rank-0.log", "rank-1.log", "log"]
    assert codes == [0, 0, 0], "\n".join((folder / log).read_text()[-3000:] for log in logs)

    def share(hook: Callable[[], object], log: Path) -> int:
        return forked.fork(lambda: (hook(), shared_for_sure(), train("shared")), log)

    codes = forked.ranks(2, share, folder)
    assert codes == [0, 0], "\n".join((folder / log).read_text()[-3000:] for log in logs)

    def of(kind: str, place: str) -> tuple[Path, Path]:
        name = kind.replace(" ", "-")
        return folder / "one" / name, folder / place / name

    return of


def second_is_late() -> None:
    """In a process of two: the second one writes its part of each checkpoint after the first one."""
    original = SteadyTrainer._save_rng_state

    def save(self: Any, folder: str) -> None:
        time.sleep(0.2 * self.args.process_index)
        original(self, folder)

    SteadyTrainer._save_rng_state = save


def shared_for_sure() -> None:
    """In a process of two: the base is shared out, and each has half of every block's frozen weights."""
    job.share_base(1)
    original = shared_base.share_base

    def share(base: Any, trained: Any) -> None:
        original(base, trained)
        blocks = base.get_decoder().layers.named_parameters()
        for name, weight in blocks:
            assert isinstance(weight, DTensor) != weight.requires_grad, name
            if isinstance(weight, DTensor):
                assert 2 * weight.to_local().numel() == weight.numel(), name

    shared_base.share_base = share


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = [run / "head.safetensors", run / "adapter/adapter_model.safetensors"]
    return {
        f"{path.name}/{name}": one
        for path in files
        if path.is_file()
        for name, one in load_file(path).items()
    }


@pytest.mark.parametrize(
    ("kind", "place"),
    [*((kind, "two") for kind in KINDS), *((kind, "shared") for kind in SHARED)],
)
def test_the_trajectory_is_that_of_one_process(
    runs: Callable[[str, str], tuple[Path, Path]], kind: str, place: str
) -> None:
    one, two = runs(kind, place)
    expected, found = history(one), history(two)
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    compared = set()
    for ours, other in zip(found, expected, strict=True):
        for name in {
            "loss",
            "grad_norm",
            "eval_loss",
            "learning_rate",
            "examples_per_step",
            "tokens_per_step",
        } & other.keys():
            assert ours[name] == pytest.approx(other[name], rel=TOLERANCE, abs=TOLERANCE), name
            compared.add(name)
    assert compared >= {"loss", "grad_norm", "eval_loss"}
    ours, others = weights(two), weights(one)
    seals = [read_json(path, SEAL) for path in (two / "checkpoints").iterdir()]
    assert seals and all(seal.keys() >= {f"rng_state_{n}.pth" for n in range(2)} for seal in seals)
    for name, weight in others.items():
        assert (ours[name] - weight).abs().max() < TOLERANCE, name
