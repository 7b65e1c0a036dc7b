"""Recipes that are wrong. Each is refused in one line."""

from collections.abc import Iterator
from pathlib import Path

from .shop import Fault, Seen, Shop


def faults(full: bool) -> Iterator[Fault]:
    yield _control()
    for text in RECIPES:
        yield recipe_fault(text)
    for override in OVERRIDES:
        yield _override(override)


PARTS = "parts: {train: 24, validation: 8, test: 8}"
SMALL = f"task: classification\ndataset: {{path: tiny, name: reviews, {PARTS}}}\n"
RECIPES = [
    "",
    "[]",
    "just a word",
    "task: classification",
    "dataset: {path: tiny}",
    "task: clasification\ndataset: {path: tiny}",
    SMALL + "task: extractive_qa\n",
    SMALL + "train: {learnign_rate: 1}\n",
    SMALL + "train: {learning_rate: fast}\n",
    SMALL + "train: {learning_rate: -1}\n",
    SMALL + "train: {learning_rate: .nan}\n",
    SMALL + "train: {learning_rate: .inf}\n",
    SMALL + "train: {num_train_epochs: 0}\n",
    SMALL + "train: {max_steps: 0}\n",
    SMALL + "train: {per_device_train_batch_size: 1.5}\n",
    SMALL + "train: {per_device_train_batch_size: 0}\n",
    SMALL + "train: {seed: yes}\n",
    SMALL + "train: {use_cpu: 'no'}\n",
    SMALL + "train: {optim: adam_w}\n",
    SMALL + "train: {packing: tree}\n",
    SMALL + "train: {max_length: 1000000000000000000000}\n",
    SMALL + "lora: {r: 0}\n",
    SMALL + "lora: {r: 4, target_modules: [no_such_layer]}\n",
    SMALL + "lora: {r: 4, target_modules: []}\n",
    SMALL + "lora: {r: 4, lora_dropout: 2}\n",
    SMALL + "lora: {rank: 4}\n",
    SMALL + "quantization: {load_in_4bit: true, load_in_8bit: true}\n",
    SMALL + "quantization: {bnb_4bit_quant_type: nf5}\n",
    SMALL + "head: {pooling: max}\n",
    SMALL + "head: {layer: 99}\n",
    SMALL + "prompt: {zero_shot: no slot here}\n",
    SMALL + "prompt: {verbalizers: [same, same]}\n",
    SMALL + "eval: {splits: [nowhere]}\n",
    SMALL + "hub: {push: true}\n",
    f"task: generative_qa\ndataset: {{path: tiny, name: passages, {PARTS}}}\nlora: null\n",
    f"task: classification\ndataset: {{path: tiny, name: nothing, {PARTS}}}\n",
    "task: classification\ndataset: {path: tiny, name: reviews, parts: {train: 0}}\n",
    SMALL.replace("name: reviews", "name: reviews, validation_size: 1.5"),
    "task: classification\ndataset: {path: /no/such/file.csv}\n",
    SMALL + "model: {model_name_or_path: ''}\n",
    SMALL + "model: {model_name_or_path: tiny, trust_remote_code: true}\n",
]
OVERRIDES = [
    "train.learnign_rate=1e-4", "train.learning_rate=", "train.learning_rate", "=1", "train=",
    "train.max_steps=many", "lora.r=-1", "nothing.here=1", "train.learning_rate=[1]",
    "head.layer=0", "dataset.labels=[a]", "model.dtype=float8",
]  # fmt: skip


def _control() -> Fault:
    """The recipe that the faults below change is itself accepted."""

    def accepted(shop: Shop, folder: Path) -> Seen:
        (folder / "recipe.yaml").write_text(SMALL)
        words = [str(folder / "recipe.yaml"), f"model.model_name_or_path={shop.base}"]
        done = shop.run(["validate", *words])
        return Seen("right" if done.code == 0 else "wrong", done.last_line)

    return Fault("recipe", "control: nothing is wrong", accepted)


def recipe_fault(text: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        path = folder / "recipe.yaml"
        path.write_text(text)
        words = [str(path), f"train.output_dir={folder / 'run'}"]
        if "model:" not in text:
            words.append(f"model.model_name_or_path={shop.base}")
        return shop.refused(shop.run(["train", *words]), folder)

    return Fault("recipe", repr(text.removeprefix(SMALL).strip()), inflict)


def _override(word: str) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        words = shop.write(shop.recipe("classification head", folder), folder)
        return shop.refused(shop.run([*words, word]), folder)

    return Fault("recipe", f"override {word!r}", inflict)
