"""Settings for a small base and few rows: what each one scores, on real sentences and questions.

    python -m tests.benchmarks.small_base --base FOLDER [--only NAME ...]

FOLDER is a base; results/small_base.json has SmolLM2-135M-Instruct, the 8M base of ../shared and the
embedded one. Settings are compared on validation rows: whole sentences of SST-2 whose phrases are in
no train row, and other questions of the same articles. Each setting is added to the file when it is
done.
"""

import argparse
import csv
import json
import random
import resource
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval import harness
from eval.job import make_job
from llama_peft.recipe import load_recipe
from llama_peft.training.fit import train

from .material import SHARED

RESULTS = Path(__file__).parent / "results/small_base.json"
ASKED = "Review: {text}\nSentiment:"
TOPICS = ["Steam_engine", "Immune_system", "Warsaw", "Scottish_Parliament", "Packet_switching"]


def sst(rows: int, part: str = "validation", **keys: Any) -> dict[str, Any]:
    """A head on sentences, with LoRA unless `keys` say otherwise."""
    data = {"task": "classification", "data": f"sst {rows}", "part": part}
    return {**data, "batch": 8, "template": ASKED, "layer": 23, **keys}


def topics(rate: float | str, epochs: float | str) -> dict[str, Any]:
    """600 questions in 5 classes: the article that they are about."""
    keys = {"batch": 16, "template": "{text}", "layer": -1, "pooling": "mean"}
    return {"task": "classification", "data": "topics", "rate": rate, "epochs": epochs, **keys}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain prompt, all blocks": sst(640, rate=1e-3, batch=32, template="{text}", layer=-1),
    "prompt asks, block 23": sst(640, rate=1e-3, batch=32),
    "... batch 8": sst(640, rate=1e-3),
    "... batch 8, rate 3e-4": sst(640, rate=3e-4),
    **{
        f"head alone, rate {rate:g}, {epochs} epochs": sst(
            2000, rate=rate, epochs=epochs, batch=32, lora=False
        )
        for rate, epochs in ((2e-4, 3), (1e-3, 3), (1e-2, 3), (1e-2, 20), (1e-3, 20), (3e-2, 20))
    },
    **{
        f"topics, rate {rate:g}, {epochs} epochs": topics(rate, epochs)
        for rate in (2e-4, 1e-3, 2e-3, 3e-3, 5e-3)
        for epochs in (3, 8, 10)
    },
    "topics, auto": topics("auto", "auto"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.small_base")
    parser.add_argument("--base", required=True)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS))
    arguments = parser.parse_args()
    for name in arguments.only:
        found = {"name": name, "base": Path(arguments.base).name, **measured(name, arguments.base)}
        table = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
        table["rows"].append(found)
        RESULTS.write_text(json.dumps(table, indent=1) + "\n")
        print(json.dumps(found))


def measured(name: str, base: str) -> dict[str, Any]:
    """Train one setting and return it with its scores and its CPU seconds."""
    setting = SETTINGS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = load_recipe(values(setting, base, folder))
        before = _cpu()
        run = train(recipe)
        seconds = _cpu() - before
        results = harness.run(make_job(None, str(run), None, None, None, folder / "tuned", []))
        scores = next(iter(results.results.values()))
        accuracy = round(100 * scores["accuracy"], 1)
    return {**setting, "accuracy": accuracy, "cpu_seconds": round(seconds)}


def values(setting: Mapping[str, Any], base: str, folder: Path) -> dict[str, Any]:
    """The recipe of a setting, on files that are written into the folder."""
    parts = _sentences(setting, folder) if "sst" in setting["data"] else _topics(folder)
    lora = {} if setting.get("lora") is False else {"lora": {"r": 16}}
    return {
        "name": "small_base",
        "task": "classification",
        "model": {"model_name_or_path": base, "dtype": "float32"},
        "quantization": {"load_in_4bit": False},
        **lora,
        "head": {"layer": setting["layer"], "pooling": setting.get("pooling", "last")},
        "dataset": {"parts": parts, "columns": {"text": "text"}, "validation_size": 0.0},
        "prompt": {"template": setting["template"]},
        "train": {
            "learning_rate": setting["rate"],
            "num_train_epochs": _number(setting.get("epochs", 1)),
            "per_device_train_batch_size": setting["batch"],
            "max_length": 128,
            "packing": "prefix_tree" if lora else "none",
            "use_cpu": True,
            "output_dir": str(folder / "run"),
            "save_total_limit": 1,
        },
    }


def _number(epochs: str | float) -> str | float:
    return epochs if isinstance(epochs, str) else float(epochs)


def _sentences(setting: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Rows of SST-2 to train on, and 300 whole sentences whose phrases are none of them, or dev."""
    rows = _table("train.tsv", "sentence")
    parts: set[str] = set()
    for text in sorted({text for _, text in rows}, key=len, reverse=True):
        if text not in parts and len(text.split()) < 60:
            parts |= set(_phrases(text)) - {text}
    draw = random.Random(1)
    whole = [row for row in rows if row[1] not in parts and len(row[1].split()) >= 6]
    draw.shuffle(whole)
    known = {phrase for _, text in whole[:600] for phrase in _phrases(text)}
    rest = [row for row in rows if row[1] not in known or len(row[1].split()) < 3]
    test = whole[:300] if setting["part"] == "validation" else _table("dev.tsv", "content")
    count = int(setting["data"].split()[1])
    return _written(folder, train=draw.sample(rest, count), test=test)


def _topics(folder: Path) -> dict[str, str]:
    articles = json.loads((SHARED / "data/squad/squad_v2.json").read_text())["data"]
    rows = {
        (article["title"], " ".join(question["question"].split()))
        for article in articles
        if article["title"] in TOPICS
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    drawn = random.Random(0).sample(sorted(rows), 1000)
    return _written(folder, train=drawn[:600], test=drawn[600:])


def _table(name: str, column: str) -> list[tuple[str, str]]:
    with (SHARED / "data/sst2" / name).open(newline="") as file:
        read = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["label"], row[column].strip()) for row in read]


def _phrases(text: str) -> Iterator[str]:
    words = text.split()
    for start in range(len(words)):
        for end in range(start, len(words)):
            yield " ".join(words[start : end + 1])


def _written(folder: Path, **parts: list[tuple[str, str]]) -> dict[str, str]:
    for name, rows in parts.items():
        lines = "".join(f"{label}\t{text}\n" for label, text in rows)
        (folder / f"{name}.tsv").write_text(f"label\ttext\n{lines}")
    return {name: str(folder / f"{name}.tsv") for name in parts}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
