"""The same damages and deaths of the stock `Trainer`, resumed as its documentation says:
`resume_from_checkpoint=True`.
"""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_peft.model.lora import add_lora

from .shop import DAMAGES, STEPS, Done, Shop, killed
from .storage import FILES

KIND = "classification + LoRA"


def count(shop: Shop, kills: int) -> dict[str, dict[str, int]]:
    """The number of faults of each category that ended right, with an error, or with other weights
    and no message.
    """
    reference = shop.root / "stock"
    assert _run(shop, reference).code == 0
    expected = _weights(reference)
    found = {"damaged checkpoints": _empty(), "random kills": _empty()}
    for name in FILES[KIND]:
        for damage in DAMAGES:
            folder = shop.root / f"stock {name} {damage}"
            path = reference / f"checkpoint-{STEPS}" / name
            if not path.is_file():
                continue  # our seal, which it does not have
            shutil.copytree(reference, folder)
            shutil.rmtree(folder / "final")
            DAMAGES[damage](folder / f"checkpoint-{STEPS}" / name)
            found["damaged checkpoints"][_verdict(_run(shop, folder), folder, expected)] += 1
    rng = random.Random(0)
    started = time.monotonic()
    _run(shop, shop.root / "stock timed")
    length = time.monotonic() - started
    for number in range(kills):
        folder = shop.root / f"stock kill {number}"
        folder.mkdir()
        child = _start(shop, folder)
        time.sleep(rng.uniform(0.1, 1.0) * length)
        killed(child)
        found["random kills"][_verdict(_run(shop, folder), folder, expected)] += 1
    return found


def _empty() -> dict[str, int]:
    return {"right": 0, "error": 0, "silently wrong": 0}


def _verdict(done: Done, folder: Path, expected: bytes) -> str:
    if done.code != 0:
        return "error"
    return "right" if _weights(folder) == expected else "silently wrong"


def _weights(folder: Path) -> bytes:
    return (folder / "final/adapter_model.safetensors").read_bytes()


def _run(shop: Shop, folder: Path) -> Done:
    folder.mkdir(exist_ok=True)
    return shop.wait(_start(shop, folder), folder / "log")


def _start(shop: Shop, folder: Path) -> int:
    return shop.start(["--help"], folder / "log", hook=_trainer(shop, folder))


def _trainer(shop: Shop, folder: Path) -> Callable[[], None]:
    """In a child: train with the stock Trainer on our rows, from the newest checkpoint if there is
    one.
    """

    def train() -> None:
        from transformers import Trainer, TrainingArguments

        from llama_peft import data
        from llama_peft.model import backbone
        from llama_peft.tokens.prompts import PromptEncoder
        from llama_peft.training import rows

        recipe = shop.recipe(KIND, folder)
        model = backbone.load(recipe, recipe.task, 2)
        assert recipe.lora is not None
        model = add_lora(model, recipe.lora, recipe.task, recipe)
        encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
        encoded = rows.encode_part(recipe, encoder, "train", data.load(recipe).parts["train"])
        collate = rows.collator(recipe, encoder.tokenizer.pad_token_id)

        def collator(batch: Any) -> Any:
            return {key: value for key, value in collate(batch).items() if key != "ids"}

        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(folder), max_steps=STEPS, save_steps=2, use_cpu=True, report_to=[],
                remove_unused_columns=False, per_device_train_batch_size=8, label_names=["labels"],
            ),
            train_dataset=encoded,  # type: ignore[arg-type]
            data_collator=collator,
        )  # fmt: skip
        begun = any(folder.glob("checkpoint-*"))
        trainer.train(resume_from_checkpoint=True if begun else None)
        trainer.model.save_pretrained(folder / "final")
        os._exit(0)

    return train
