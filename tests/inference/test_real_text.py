"""Shapes of tasks learn from real text on a real base in 4 bits, beat zero-shot and the floor, and reload.

The rows are made of film reviews (SST-2) and questions (SQuAD): what is asked of them can be checked in
the text itself. The reload is what a reader of the card has: transformers and PEFT without this package.
"""

import csv
import functools
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from eval import evaluate, report
from llama_peft import data, train
from llama_peft.model import backbone
from llama_peft.model.quantize import mend_cpu_4bit
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import HEAD
from llama_peft.run_folder.results import Scores
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.self_check import input_ids
from llama_peft.run_folder.weights import load_tuned

Rows = list[dict[str, Any]]
ASKED = {
    "person": r"\bwho\b|\bwhose\b",
    "time": r"\bwhen\b|what year|what century",
    "place": r"\bwhere\b|what (city|country)",
    "amount": r"how (many|much|long|far|large|old)",
    "digits": r"\d",
    "negation": r"\bnot\b|n't\b|\bnever\b|\bno\b",
}
"""What a question asks or holds."""


@functools.cache
def reviews(shared: Path) -> list[tuple[str, str]]:
    """Sentences with their sentiment, in a seeded order."""
    with (shared / "data/sst2/train.tsv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    names = ("negative", "positive")
    found = sorted({(row["sentence"].strip(), names[int(row["label"])]) for row in rows})
    return random.Random(0).sample(found, len(found))


@functools.cache
def questions(shared: Path) -> list[tuple[str, str]]:
    """Questions with the title of their article, in a seeded order."""
    articles = json.loads((shared / "data/squad/squad_v2.json").read_text())["data"]
    found = sorted(
        {
            (entry["question"].strip(), article["title"].replace("_", " "))
            for article in articles
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        }
    )
    return random.Random(0).sample(found, len(found))


def pairs(shared: Path, count: int) -> Rows:
    """Which of two texts is a film review: the first, the second, both or neither."""
    kinds = {"both": (1, 1), "first": (1, 0), "second": (0, 1), "neither": (0, 0)}
    sources = [
        (text for text, _ in source(shared) if 6 <= len(text.split()) <= 10)
        for source in (questions, reviews)
    ]
    rows: Rows = []
    for name, (one, other) in itertools.islice(itertools.cycle(kinds.items()), count):
        rows.append({"one": next(sources[one]), "other": next(sources[other]), "label": name})
    return rows


def several_labels(shared: Path, count: int) -> Rows:
    rows: Rows = [
        {"text": text, "label": [name for name, words in ASKED.items() if re.search(words, text.lower())]}
        for text, _ in questions(shared)
    ]  # fmt: skip
    some = [row for row in rows if row["label"]]
    none = [row for row in rows if not row["label"]]
    return some[: count * 4 // 5] + none[: count // 5]


def numbers(shared: Path, count: int) -> Rows:
    """How many words a review has."""
    texts = [text for text, _ in reviews(shared)[:count]]
    return [{"text": text, "label": float(len(text.split()))} for text in texts]


def free_answers(shared: Path, count: int) -> Rows:
    """Which of four articles a question is about, without a passage."""
    found = questions(shared)
    titles = {title for title, _ in Counter(title for _, title in found).most_common(4)}
    rows: Rows = [
        {"question": text, "answers": [title]} for text, title in found if title in titles
    ]
    return rows[:count]


HEAD_ALONE = {"lora": None, "head": {"pooling": "mean"}}
SHAPES: dict[str, tuple[Callable[[Path, int], Rows], dict[str, Any]]] = {
    "pairs": (
        pairs,
        {
            "task": "classification",
            "dataset": {"columns": {"text": ["one", "other"]}, "validation_size": 0.0},
            "prompt": {"zero_shot": "First: {one}\nSecond: {other}\nFilm reviews:"},
            "train": {"per_device_train_batch_size": 16, "learning_rate": 2e-3},
        },
    ),
    "several labels": (
        several_labels,
        HEAD_ALONE | {"task": "classification", "dataset": {"single_label": False}},
    ),
    "numbers": (
        numbers,
        HEAD_ALONE
        | {
            "task": "regression",
            "prompt": {
                "zero_shot": "{text}\nNumber of words:",
                "verbalizers": ["1", "5", "10", "20", "30"],
            },
        },
    ),
    "free answers": (
        free_answers,
        {
            "task": "generative_qa",
            "dataset": {"columns": {"context": None}},
            "prompt": {"instruction": "Name the subject.\n\n"},
            "eval": {"max_new_tokens": 8},
            "train": {"per_device_train_batch_size": 16, "learning_rate": 4e-3},
        },
    ),
}


def recipe_of(shape: str, shared: Path, folder: Path, count: int, **keys: Any) -> dict[str, Any]:
    """The recipe of a shape on its rows; `keys` are those of train."""
    make, own = SHAPES[shape]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in make(shared, count)))
    usual: dict[str, Any] = {
        "name": "real",
        "model": {"model_name_or_path": str(shared / "llama-mini"), "dtype": "float32"},
        "lora": {"r": 8},
    }
    lone = own.get("lora", usual) is None
    fixed = {"output_dir": str(folder / "run"), "use_cpu": True}
    fixed |= {"num_train_epochs": 40.0, "learning_rate": 1e-2} if lone else {}
    return {
        **usual,
        **own,
        "dataset": {"path": str(file), **own.get("dataset", {})},
        "train": {**fixed, **own.get("train", {}), **keys},
    }


def stock_model(run: Path, recipe: Recipe, labels: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What transformers and PEFT make of a run without this package: from ids to logits."""
    packing = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "score"],
    )
    kind, words = recipe.kind, {"quantization_config": packing, "dtype": torch.float32}
    base = recipe.model.model_name_or_path
    if kind.head is None:
        model = AutoModelForCausalLM.from_pretrained(base, **words)
    else:
        pad = backbone.load_tokenizer(recipe.model).pad_token_id
        words |= {"problem_type": kind.problem_type, "num_labels": kind.outputs(labels)}
        model = AutoModelForSequenceClassification.from_pretrained(base, pad_token_id=pad, **words)
    mend_cpu_4bit(model)  # some processors would compute otherwise
    if recipe.lora is not None:
        model = PeftModel.from_pretrained(model, run / "adapter").eval()
        return lambda ids: model(input_ids=ids).logits
    weight_CD = load_file(run / HEAD)["score.weight"]
    reader = model.eval().model
    return lambda ids: reader(input_ids=ids).last_hidden_state.mean(dim=1) @ weight_CD.T


def reload_difference(run: Path, count: int = 8) -> float:
    """The largest difference of two logits of test examples: this package against the libraries."""
    opened = open_run(run)
    ours, theirs = load_tuned(opened), stock_model(run, opened.recipe, len(opened.labels))
    found = []
    for example in data.load(opened.recipe).parts["test"][:count]:
        ids = torch.tensor([input_ids(ours.encoder, opened.recipe, example)])
        with torch.no_grad():
            logits = ours.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            found.append((logits - theirs(ids)).abs().max().item())
    return max(found)


def measured(shape: str, shared: Path, folder: Path, count: int, **keys: Any) -> dict[str, Scores]:
    """Train on the rows of a shape, and return the scores of zero-shot, tuned and the floor."""
    recipe = recipe_of(shape, shared, folder, count, **keys)
    run = train(recipe)
    zero_shot = evaluate(task=recipe, output=run / "zero-shot").results["real"]
    tuned = evaluate(run, output=run / "tuned").results["real"]
    (table,) = report.compare([run])
    always = [row for row in table.rows if row.name.startswith("always")]
    floor = {
        name: float(cell.text)
        for row in always
        for name, cell in zip(table.columns, row.cells, strict=True)
        if cell.text
    }
    return {"zero-shot": zero_shot, "tuned": tuned, "floor": floor}


@pytest.mark.parametrize(
    ("shape", "count", "metric", "epochs"),
    [
        ("pairs", 80, "accuracy", 2.0),
        ("several labels", 200, "f1_micro", 40.0),
        ("numbers", 200, "mse", 40.0),
        ("free answers", 80, "f1", 2.0),
    ],
)
def test_a_shape_learns_from_real_text_and_reloads(
    shared: Path, tmp_path: Path, shape: str, count: int, metric: str, epochs: float
) -> None:
    scores = measured(shape, shared, tmp_path, count, num_train_epochs=epochs)
    tuned = scores["tuned"][metric]
    others = [scores[name][metric] for name in ("zero-shot", "floor") if metric in scores[name]]
    if metric == "mse":
        assert tuned < min(others) / 2
    else:
        assert tuned > max(others) + (5 if metric == "f1" else 0.1)
    # transformers multiplies the states of all tokens by a head, and we those of the last alone.
    assert reload_difference(tmp_path / "run") <= (1e-6 if shape == "pairs" else 0)
