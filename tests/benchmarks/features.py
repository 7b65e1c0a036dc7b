"""Five epochs of a classification head alone: states computed once, and the frozen backbone in the loop.

Both are this project's Trainer on the same random batches of 16 real sentences, with the same seed; in the loop every batch is
padded to its longest and runs through the backbone, as a published baseline did. In float32 both must end on the same weights.
The clock holds the pass that computes the states, and every epoch; encoding is off it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from llama_peft import data
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.tokens.prompts import PromptEncoder
from llama_peft.training import setup
from llama_peft.training.features.head import FeatureHead, collate, states_of
from llama_peft.training.rows import ClassificationRow, collator, encode_part

from . import measure
from .material import SHARED, Base, recipe
from .measure import Contestant, Prepared

EPOCHS = 5
BATCH_SIZE = 16
TOLERANCE = 1e-6


def run(base: Base, count: int, repeats: int) -> dict[str, Any]:
    """Measure, compare the weights, and return the result."""
    settings = {name: _recipe(base, count, name) for name in ("prefix_tree", "length_sorted")}
    encoder = PromptEncoder(
        backbone.load_tokenizer(settings["prefix_tree"].model), settings["prefix_tree"].prompt
    )
    examples = data.load(settings["prefix_tree"]).parts["train"]
    rows = encode_part(settings["prefix_tree"], encoder, "train", examples)
    contestants = [
        Contestant(name="loop", prepare=lambda: _loop(settings["prefix_tree"], encoder, rows)),
        *(
            Contestant(name=name, prepare=lambda its=its: _once(its, encoder, rows))  # type: ignore[misc]
            for name, its in settings.items()
        ),
    ]
    measured = measure.in_turns(contestants, repeats)
    expected = measured["loop"].outcome
    errors = {name: (measured[name].outcome - expected).abs().max().item() for name in settings}
    if max(errors.values()) > TOLERANCE and "float32" in base.facts()["precision"]:
        raise AssertionError(f"weights differ: {errors}")
    ours = min(settings, key=lambda name: measured[name].median)
    return measure.result(
        "features",
        [each.row(EPOCHS * len(rows)) for each in measured.values()],
        measure.ratios(measured, ours, {"features_vs_loop": "loop"}),
        ours=ours,
        sentences=len(rows),
        tokens=sum(len(row["input_ids"]) for row in rows),
        data="SST-2 train" if (SHARED / "data").is_dir() else "tiny reviews",
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        **base.facts(),
        checks={"largest_weight": expected.abs().max().item(), "largest_weight_error": errors},
    )


def sentences(count: int) -> dict[str, Any]:
    """The dataset section of `count` sentences to train on, real or generated ones, which leave room for a validation part."""
    real = SHARED / "data/sst2/train.tsv"
    found: dict[str, Any] = (
        {"path": str(real), "columns": {"text": "sentence", "label": "label"}}
        if real.is_file()
        else {"path": "tiny", "name": "reviews", "parts": {"train": 2 * count, "test": 2}}
    )
    return {**found, "labels": ["negative", "positive"], "max_train_samples": count}


def _recipe(base: Base, count: int, features: str) -> Recipe:
    return recipe(
        base.folder,
        task="classification",
        lora=None,
        head={"features": features},
        dataset=sentences(count),
        train={
            "use_cpu": not torch.cuda.is_available(),
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": 1e-3,
        },
    )


def _once(settings: Recipe, encoder: PromptEncoder, rows: list[ClassificationRow]) -> Prepared:
    model = backbone.load(settings, "classification", 2)
    folder = tempfile.TemporaryDirectory()

    def train() -> Any:
        with folder:
            kept = states_of(settings, model, "train", rows, Path(folder.name))
            head = FeatureHead(model.score)
            return _trained(settings, head, encoder, kept, collate, Path(folder.name))

    return Prepared(model, train)


def _loop(settings: Recipe, encoder: PromptEncoder, rows: list[ClassificationRow]) -> Prepared:
    model = backbone.load(settings, "classification", 2)
    folder = tempfile.TemporaryDirectory()
    head = setup.trained_module(settings, model)
    padded = collator(settings, encoder.tokenizer.pad_token_id)

    def train() -> Any:
        with folder:
            return _trained(settings, head, encoder, rows, padded, Path(folder.name))

    return Prepared(model, train)


def _trained(
    settings: Recipe,
    model: Any,
    encoder: PromptEncoder,
    rows: Any,
    collate: Callable[..., object],
    folder: Path,
) -> Any:
    """The head's weights at the end."""
    trainer = setup.build_trainer(settings, model, encoder, rows, [], collate, folder)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.score.weight.detach().clone()
