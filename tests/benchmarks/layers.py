"""What `head.layer: auto` finds: validation accuracy of a head alone at the last layer, at each pooling, and where auto leads.

Real SST-2 sentences (generated reviews without ../shared), split with another seed each time; the embedded model and, where it
lies at hand, ../shared's of 8M parameters, in NF4.
"""

import tempfile
from pathlib import Path
from typing import Any

from llama_peft import data, tiny
from llama_peft.inference import predict
from llama_peft.training import fit as training
from tests.support import runs

from . import measure
from .features import sentences
from .material import SHARED, recipe

CHOICES: dict[str, dict[str, Any]] = {
    "last layer, last token": {},
    "last layer, mean": {"pooling": "mean"},
    "auto": {"layer": "auto"},
}


def run(rows: int, seeds: int) -> dict[str, Any]:
    """Train each choice with each seed and return the result."""
    bases = {"embedded, 1.2M parameters": tiny.MODEL_DIR}
    if (SHARED / "llama-mini").is_dir():
        bases["llama-mini, 8.4M parameters"] = SHARED / "llama-mini"
    found = [
        {
            "name": f"{base}: {choice}",
            "base": base,
            "choice": choice,
            "seeds": [_validated(folder, head, rows, seed) for seed in range(1, seeds + 1)],
        }
        for base, folder in bases.items()
        for choice, head in CHOICES.items()
    ]
    facts = {"train_rows": rows, "data": sentences(rows)["path"].rpartition("/")[2]}
    return measure.result("layers", found, {}, precision="NF4", epochs=5, **facts)


def _validated(base: Path, head: dict[str, Any], rows: int, seed: int) -> dict[str, Any]:
    """Layer, pooling, and accuracy on the validation part of one run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = recipe(
            base,
            task="classification",
            lora=None,
            quantization={"load_in_4bit": True},
            head=head,
            dataset={
                **sentences(rows),
                "seed": seed,
                "validation_size": 0.03,
            },
            train={
                "output_dir": f"{folder}/run",
                "seed": seed,
                "num_train_epochs": 5,
                "learning_rate": 3e-3,
                "per_device_train_batch_size": 64,
                "use_cpu": True,
            },
        )
        run = runs.load(training.train(settings))
        examples = data.load(run.recipe).parts["validation"]
        gold = {example.id: run.labels[example.label] for example in examples}  # type: ignore[union-attr,index]
        right = [
            p.prediction == gold[p.id] for batch in predict.predict(run, examples) for p in batch
        ]
        return {
            "seed": seed,
            "layer": run.recipe.head.layer,
            "pooling": run.recipe.head.pooling,
            "accuracy": sum(right) / len(right),
            "validation_rows": len(right),
        }
