"""Peak memory of the fullest batch, on the whole card and as if it were a smaller one.

A cap limits torch's allocator to what a card of that size leaves beside the driver's context. A work whose blocks fit under
a smaller cap is not run again: it would ask for the same.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from llama_peft.rehearsal import rows as material
from llama_peft.rehearsal.device.cards import CONTEXT, GIB
from llama_peft.system.memory import free_memory
from llama_peft.tokens.prompts import Encoded
from llama_peft.training import setup
from tests.benchmarks import decoding, measure, training

from .heads import Given, encoded, train_quietly
from .setting import RECIPES, Part, Setting

CAPS = (16, 12, 8, 6, 4)
"""GB, as cards are sold."""
Work = Callable[[], dict[str, Any]]
"""Does it with the fullest batches, and returns facts about it."""


def turns(setting: Setting) -> Part:
    """Yield a row for each work and cap."""
    rows: list[dict[str, Any]] = []
    for name, work in works(setting).items():
        for row in under_caps(work):
            rows.append({"name": name, **row})
            yield measure.result("memory", rows, {}, **setting.base.facts())


def works(setting: Setting) -> dict[str, Work]:
    """What is measured: the product's recipes, the stock trainer, and both ways to decode."""
    questions = setting.drawn().examples
    longest = sorted(questions, key=lambda one: -len(one.context))[: 2 * training.STOCK_BATCH]
    prompts = [Encoded(one.id, setting.base.encoder.question(one)) for one in longest]
    makers = training.trainers(setting.base, 2048, 2048)
    found: dict[str, Work] = {name: product(setting, name) for name in RECIPES}
    for name in ("stock_default", "stock_length_grouped"):
        found[f"squad {name}"] = partial(_stock, training.preparation(makers[name], longest))
    for name in ("tree", "generate"):
        found[f"decoding {name}"] = partial(_decode, setting, prompts, name)
    return found


def under_caps(work: Work, caps: tuple[int, ...] = CAPS) -> Iterator[dict[str, Any]]:
    """Yield what a work takes without a cap, then under each cap from the largest on."""
    found = {"cap": None, **_measured(work)}
    yield found
    for cap in caps if torch.cuda.is_available() else ():
        if cap * GIB > torch.cuda.get_device_properties().total_memory:
            continue
        if "failure" in found:  # less memory does not help
            found = {"cap": cap, "failure": found["failure"]}
        elif found["held_bytes"] > cap * GIB - CONTEXT:
            with capped(cap * GIB - CONTEXT):
                found = {"cap": cap, **_measured(work)}
        else:
            found = {**found, "cap": cap}
        yield found


@contextmanager
def capped(size: int) -> Iterator[None]:
    """Let torch have no more than `size` bytes of the GPU."""
    total = torch.cuda.get_device_properties().total_memory
    free_memory()
    torch.cuda.set_per_process_memory_fraction(size / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _measured(work: Work) -> dict[str, Any]:
    found = _peaks(work)
    free_memory()  # what an exception held
    return found


def _peaks(work: Work) -> dict[str, Any]:
    try:
        measure.reset_peak()
        facts = work()
    except Exception as error:
        return {"failure": measure.failure(error)}
    peak = measure.peak()
    held = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else peak
    return {"peak_bytes": peak, "held_bytes": held, **facts}


def product(setting: Setting, name: str) -> Work:
    """Two optimizer steps of a recipe, the second on its fullest batch, as a rehearsal makes them."""

    @cache
    def given() -> Given:
        return encoded(recipe, material.gather(recipe).dataset.parts["train"])

    recipe = setting.recipe(name, "train.max_steps=2")
    return lambda: _two_steps(given())


def _two_steps(given: Given) -> dict[str, Any]:
    recipe = given.recipe
    size = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"  # states lie beside it
        loaded = given.load()
        typical, fullest = material.batches(loaded.rows["train"], size)
        measure.reset_peak()  # loading is over, the states of a head alone are not
        attached = setup.attach(loaded, folder)
        fed: list[Any] = [*typical, *fullest]
        if recipe.on_states:
            fed = [attached.rows["train"][0]] * len(fed)  # states all have one size
        trainer = setup.build_trainer(
            *(loaded.recipe, attached.model, loaded.encoder, fed, []),
            *(attached.collate, folder),
        )
        trainer.args.train_sampling_strategy = "sequential"
        train_quietly(trainer)
    width = max(len(row["input_ids"]) for row in fullest)
    return {"pieces": trainer._pieces, "batch": [len(fullest), width]}


def _stock(prepare: Callable[[], measure.Prepared]) -> dict[str, Any]:
    prepared = prepare()
    measure.reset_peak()
    prepared.run()
    return {}


def _decode(setting: Setting, prompts: list[Encoded], name: str) -> dict[str, Any]:
    contestants = {one.name: one for one in decoding.contestants(setting.base, prompts, 2048)}
    prepared = contestants[name].prepare()
    measure.reset_peak()
    prepared.run()
    return {}
