"""LoRA training under a head: the stock Trainer, and a batch as prefix-tree rows.

Same model, same optimizer steps: the first batches of the length-grouped order of `DRAWN` times as many examples, because a
few examples alone could not be grouped well. `stock_length_grouped` takes the stock Trainer's batches of 8 and adds up the
gradients to the batch of ours; `stock_large_batches` takes the whole batch at once; `plain` is this project's Trainer with
`train.packing: none`. Before anything is timed, all must give the same loss and the same gradients of one batch. Encoding and
building are off the clock; making batches is on it.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from llama_peft import data
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training import setup
from llama_peft.training.rows import collator, encode_part

from . import measure
from .features import sentences
from .material import SHARED, Base, recipe
from .measure import Contestant, Prepared

STOCK_BATCH = 8
DRAWN = 25
"""Examples that are grouped by length, for each that is trained on."""
RIVALS = {
    "vs_length_grouped": "stock_length_grouped",
    "vs_large_batches": "stock_large_batches",
    "vs_plain": "plain",
}


class Task(NamedTuple):
    """What is trained: the recipe's batch, and how many examples are measured."""

    name: str
    """Of the result and its ratios."""
    task: str
    batch: int
    dataset: dict[str, Any]
    keys: dict[str, Any]


def classify(count: int) -> Task:
    """SST-2 as in recipes/sst2.yaml; `count` sentences are trained on."""
    return Task("classify", "classification", 32, sentences(DRAWN * count), {"max_length": 128})


def spans(count: int) -> Task:
    """SQuAD v2 as in recipes/squad-span.yaml; `count` questions are trained on."""
    real = SHARED / "data/squad/squad_v2.json"
    found: dict[str, Any] = {"path": str(real), "max_train_samples": DRAWN * count}
    if not real.is_file():
        found = {
            "path": "tiny",
            "name": "passages",
            "parts": {"train": DRAWN * count, "validation": 1, "test": 1},
        }
    return Task("span", "extractive_qa", 16, found, {})


def run(base: Base, task: Task, repeats: int) -> dict[str, Any]:
    """Check, measure, and return the result."""
    settings = {name: _recipe(base, task, name) for name in ("none", "prefix_tree")}
    encoder = PromptEncoder(
        backbone.load_tokenizer(settings["none"].model), settings["none"].prompt
    )
    drawn = data.load(settings["none"]).parts["train"]
    rows = _first_batches(encode_part(settings["none"], encoder, "train", drawn), task.batch)
    makers: dict[str, Maker] = {
        "stock_length_grouped": _stock(settings["none"], STOCK_BATCH),
        "stock_large_batches": _stock(settings["none"], task.batch),
        "plain": _ours(settings["none"], encoder),
        "packed": _ours(settings["prefix_tree"], encoder),
    }
    checks = _compare(makers, rows[: task.batch])
    contestants = [
        Contestant(name=name, prepare=_preparation(make, rows)) for name, make in makers.items()
    ]
    measured = measure.in_turns(contestants, repeats)
    ratios = {f"{task.name}_{key}": rival for key, rival in RIVALS.items()}
    return measure.result(
        task.name,
        [each.row(len(rows), optimizer_steps=each.outcome) for each in measured.values()],
        measure.ratios(measured, "packed", ratios),
        ours="packed",
        sentences=len(rows),
        tokens=sum(len(row["input_ids"]) for row in rows),
        batch_size=task.batch,
        stock_batch_size=STOCK_BATCH,
        **base.facts(),
        checks=checks,
    )


def _first_batches(rows: Sequence[Any], batch: int) -> list[Any]:
    """The first of the batches that a training with `group_by_length` would take."""
    lengths = [len(row["input_ids"]) for row in rows]
    order = get_length_grouped_indices(lengths, batch, generator=torch.Generator().manual_seed(0))
    wanted = max(batch, len(rows) // DRAWN // batch * batch)
    return [rows[i] for i in order[:wanted]]


Rows = Sequence[Any]
Maker = Callable[[Rows, Path], Trainer]


def _recipe(base: Base, task: Task, packing: str) -> Recipe:
    return recipe(
        base.folder,
        task=task.task,
        dataset=task.dataset,
        train={
            "use_cpu": not torch.cuda.is_available(),
            "num_train_epochs": 1.0,
            "per_device_train_batch_size": task.batch,
            "packing": packing,
            **task.keys,
        },
    )


def _model(settings: Recipe) -> torch.nn.Module:
    """The base with LoRA and head; every call draws the same weights."""
    base = backbone.load(settings, settings.kind.name, 2)
    torch.manual_seed(0)
    model = setup.trained_module(settings, base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, which would hide every gradient of the first matrix
            parameter.data.normal_(std=0.01)
    return model


def _stock(settings: Recipe, batch: int) -> Maker:
    def make(rows: Rows, folder: Path) -> Trainer:
        padded = collator(settings, backbone.load_tokenizer(settings.model).pad_token_id)

        def collate(rows: Rows) -> dict[str, Any]:
            return {key: value for key, value in padded(rows).items() if key != "ids"}

        whole = settings.train.per_device_train_batch_size
        arguments = setup.training_arguments(settings, False, folder) | {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": whole // batch,
        }
        return Trainer(
            model=_model(settings),
            args=TrainingArguments(**arguments),
            data_collator=collate,
            train_dataset=rows,
        )

    return make


def _ours(settings: Recipe, encoder: PromptEncoder) -> Maker:
    def make(rows: Rows, folder: Path) -> Trainer:
        collate = collator(settings, encoder.tokenizer.pad_token_id)
        model = _model(settings)
        return setup.build_trainer(settings, model, encoder, rows, [], collate, folder)

    return make


def _preparation(make: Maker, rows: Rows) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        folder = tempfile.TemporaryDirectory()
        trainer = make(rows, Path(folder.name))
        trainer.remove_callback(PrinterCallback)
        trainer.args.train_sampling_strategy = "sequential"  # they are grouped already
        trainer.args.save_strategy = trainer.args.logging_strategy = "no"

        def train() -> int:
            with folder:
                trainer.train()
            return int(trainer.state.global_step)

        return Prepared(trainer.model, train)

    return prepare


def _compare(makers: dict[str, Maker], rows: Rows) -> dict[str, dict[str, float]]:
    """Loss of one batch of every contestant, and how far its gradient is from the first one's."""
    found: dict[str, dict[str, float]] = {}
    expected: torch.Tensor | None = None
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as folder:
            loss, gradient = _batch_gradient(make(rows, Path(folder)), len(rows))
        expected = gradient if expected is None else expected
        error = ((gradient - expected).norm() / expected.norm()).item()
        found[name] = {"loss": loss, "gradient_error": error}
        if error > (0.1 if torch.cuda.is_available() else 1e-4):
            raise AssertionError(f"{name}: {found}")
    return found


def _batch_gradient(trainer: Trainer, count: int) -> tuple[float, torch.Tensor]:
    trainer.model.train()
    total = 0.0
    for batch in trainer.get_train_dataloader():
        batch.pop("ids", None)
        batch = trainer._prepare_inputs(batch)
        loss = trainer.compute_loss(trainer.model, batch) * len(batch["input_ids"]) / count
        loss.backward()
        total += loss.item()
    trained = sorted((n, p) for n, p in trainer.model.named_parameters() if p.grad is not None)
    return total, torch.cat([p.grad.float().flatten().cpu() for _, p in trained])
