"""LoRA on the upper third: frozen blocks whose states are computed once, against all blocks in every epoch."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from llama_peft import data
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training import setup
from llama_peft.training.features.frozen_blocks import frozen_blocks, with_states
from llama_peft.training.rows import ClassificationRow, collator, encode_part

from . import measure
from .features import sentences
from .material import Base, recipe
from .measure import Contestant, Prepared

EPOCHS = 3
BATCH_SIZE = 16
UPPER = [7, 8, 9]
"""Of ten blocks."""
TOLERANCE = 1e-3
"""Adam makes whole steps of gradients that are almost zero."""


def run(base: Base, count: int, repeats: int) -> dict[str, Any]:
    """Measure, compare the adapters, and return the result."""
    settings = {
        "all blocks": _recipe(base, count, None, reuse=False),
        "upper blocks": _recipe(base, count, UPPER, reuse=False),
        "upper blocks, reused": _recipe(base, count, UPPER, reuse=True),
    }
    first = settings["all blocks"]
    encoder = PromptEncoder(backbone.load_tokenizer(first.model), first.prompt)
    rows = encode_part(first, encoder, "train", data.load(first).parts["train"])
    contestants = [
        Contestant(name=name, prepare=lambda its=its: _prepared(its, encoder, rows))  # type: ignore[misc]
        for name, its in settings.items()
    ]
    measured = measure.in_turns(contestants, repeats)
    plain, ours = measured["upper blocks"].outcome, measured["upper blocks, reused"].outcome
    error = max((its - ours[name]).abs().max().item() for name, its in plain.items())
    if error > TOLERANCE and "float32" in base.facts()["precision"]:
        raise AssertionError(f"weights differ: {error}")
    against = {"reused_vs_upper": "upper blocks", "reused_vs_all": "all blocks"}
    return measure.result(
        "frozen_blocks",
        [each.row(EPOCHS * len(rows)) for each in measured.values()],
        measure.ratios(measured, "upper blocks, reused", against),
        sentences=len(rows),
        tokens=sum(len(row["input_ids"]) for row in rows),
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        adapted=f"blocks {UPPER} of 10",
        **base.facts(),
        checks={"largest_weight_error": error},
    )


def _recipe(base: Base, count: int, chosen: list[int] | None, reuse: bool) -> Recipe:
    return recipe(
        base.folder,
        task="classification",
        lora={"r": 16, "layers_to_transform": chosen},
        dataset=sentences(count),
        train={
            "use_cpu": not torch.cuda.is_available(),
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": 2e-4,
            "packing": "prefix_tree",
            "reuse_frozen_blocks": reuse,
        },
    )


def _prepared(settings: Recipe, encoder: PromptEncoder, rows: list[ClassificationRow]) -> Prepared:
    torch.manual_seed(0)
    base = backbone.load(settings, "classification", 2)
    model = setup.trained_module(settings, base)
    folder = tempfile.TemporaryDirectory()
    collate: Any = collator(settings, encoder.tokenizer.pad_token_id)

    def train() -> dict[str, torch.Tensor]:
        with folder:
            place, frozen, batches = Path(folder.name), [], collate
            if settings.train.reuse_frozen_blocks:
                frozen = frozen_blocks(base)
                batches = with_states(
                    settings, base, len(frozen), {"train": rows}, collate, place / "run"
                )
            trainer = setup.build_trainer(
                settings, model, encoder, rows, [], batches, place / "run"
            )
            trainer.frozen = frozen
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return {
                name: its.detach().clone()
                for name, its in base.named_parameters()
                if its.requires_grad
            }

    return Prepared(model, train)
