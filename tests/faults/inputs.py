"""Recipes and data that are wrong. Each is refused in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_peft.recipe import strict_yaml as recipe_yaml

from .shop import Fault, Seen, Shop


def faults(full: bool) -> Iterator[Fault]:
    yield from _controls()
    for text in RECIPES:
        yield recipe_fault(text)
    for override in OVERRIDES:
        yield _override(override)
    for name, file in TEXTS.items():
        yield _data("classification head", name, *file)
    for name, file in QUESTIONS.items():
        yield _data("span + LoRA", name, *file)


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
    SMALL + "train: {packing: prefix_tree}\n",
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


def _controls() -> Iterator[Fault]:
    """The recipe and the data that the faults below change are themselves accepted."""

    def accepted(shop: Shop, words: list[str]) -> Seen:
        done = shop.run(["validate", *words])
        return Seen("right" if done.code == 0 else "wrong", done.last_line)

    def recipe(shop: Shop, folder: Path) -> Seen:
        (folder / "recipe.yaml").write_text(SMALL)
        return accepted(
            shop, [str(folder / "recipe.yaml"), f"model.model_name_or_path={shop.base}"]
        )

    yield Fault("recipe", "control: nothing is wrong", recipe)
    for kind, name, raw in (
        ("classification head", "a.csv", b"text,label\nfine,1\nbad,0\n"),
        ("span + LoRA", "a.json", squad(ADA)),
    ):

        def file(
            shop: Shop, folder: Path, kind: str = kind, name: str = name, raw: bytes = raw
        ) -> Seen:
            return accepted(shop, [str(_data_recipe(shop, folder, kind, name, raw))])

        yield Fault("data", f"control: nothing is wrong in {name}", file)


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


def squad(answers: Any, **extra: Any) -> bytes:
    """A file in SQuAD's form with one question."""
    question = {"id": "q", "question": "Who did?", "answers": answers} | extra
    paragraph = {"context": "Ada Lovelace did.", "qas": [question]}
    return json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}).encode()


ADA = [{"text": "Ada", "answer_start": 0}]
RIGHT = {
    ".csv": b"text,label\nwarm,1\n",
    ".json": squad(ADA).replace(b"Lovelace", b"King").replace(b'"q"', b'"q2"'),
}
TEXTS: dict[str, tuple[str, bytes]] = {
    "empty": ("a.csv", b""),
    "a header alone": ("a.csv", b"text,label\n"),
    "one row": ("a.csv", b"text,label\nfine,1\n"),
    "no such column": ("a.csv", b"words,label\nfine,1\nbad,0\n"),
    "a text is empty": ("a.csv", b"text,label\n,1\nfine,0\n"),
    "a text is blank": ("a.csv", b"text,label\n   ,1\nfine,0\n"),
    "no label": ("a.csv", b"text,label\nfine,\nbad,0\n"),
    "a label that is a fraction": ("a.csv", b"text,label\nfine,0.5\ngood,1\nbad,0\n"),
    "one class": ("a.csv", b"text,label\nfine,1\ngood,1\nwarm,1\n"),
    "Latin-1": ("a.csv", "text,label\ncaf\xe9,1\nbad,0\n".encode("latin-1")),
    "UTF-16": ("a.csv", "text,label\nfine,1\nbad,0\n".encode("utf-16")),
    "binary": ("a.csv", bytes(range(256)) * 4),
    "same id twice": ("a.csv", b"id,text,label\n1,fine,1\n1,bad,0\n"),
    "ragged": ("a.csv", b"text,label\nfine,1,2,3\nbad,0\n"),
    "an open quote": ("a.csv", b'text,label\n"fine,1\nbad,0\n'),
    "JSON cut off": ("a.json", b'[{"text": "fine", "label": 1}, {"te'),
    "JSON that is a number": ("a.json", b"7"),
    "JSON lines, one broken": ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": \n'),
    "JSON lines of lists": ("a.jsonl", b"[1]\n[2]\n"),
    "texts that are numbers": ("a.json", b'[{"text": 3, "label": 1}, {"text": 4, "label": 0}]'),
    "a text that is called Parquet": ("a.parquet", b"PAR1 but no more"),
    "an unknown format": ("a.xlsx", b"PK"),
}
QUESTIONS: dict[str, tuple[str, bytes]] = {
    "answer off by one": ("a.json", squad([{"text": "Ada", "answer_start": 1}])),
    "answer beyond the end": ("a.json", squad([{"text": "Ada", "answer_start": 900}])),
    "answer before the start": ("a.json", squad([{"text": "Ada", "answer_start": -17}])),
    "answer empty": ("a.json", squad([{"text": "", "answer_start": 0}])),
    "answer of another case": ("a.json", squad([{"text": "ada", "answer_start": 0}])),
    "answers a number": ("a.json", squad(7)),
    "offset a text": ("a.json", squad([{"text": "Ada", "answer_start": "0"}])),
    "no answer, yet possible": ("a.json", squad([])),
    "answer, yet impossible": ("a.json", squad(ADA, is_impossible=True)),
    "question empty": ("a.json", squad(ADA, question=" ")),
    "id missing": ("a.json", squad(ADA, id=None)),
    "no data": ("a.json", b'{"data": []}'),
    "another form": ("a.json", b'{"questions": [1, 2]}'),
    "deep nesting": ("a.json", b"[" * 100_000),
    "a huge number": ("a.json", b'{"data": ' + b"9" * 10_000 + b"}"),
}


def _data(kind: str, name: str, file: str, raw: bytes) -> Fault:
    def inflict(shop: Shop, folder: Path) -> Seen:
        return shop.refused(
            shop.run(["train", str(_data_recipe(shop, folder, kind, file, raw))]), folder
        )

    return Fault("data", f"{file.rpartition('.')[2]}: {name}", inflict)


def _data_recipe(shop: Shop, folder: Path, kind: str, file: str, raw: bytes) -> Path:
    """A recipe that trains on all of a file."""
    values = shop.recipe(kind, folder).model_dump(exclude={"dataset"}, exclude_none=True)
    (folder / file).write_bytes(raw)
    right = folder / f"right.{'csv' if kind.startswith('classification') else 'json'}"
    right.write_bytes(RIGHT[right.suffix])
    parts = {"train": str(folder / file), "test": str(right)}
    values["dataset"] = {"parts": parts, "validation_size": 0}
    path = folder / "recipe.yaml"
    path.write_text(recipe_yaml.dump(values))
    return path
