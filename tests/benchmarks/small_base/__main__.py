"""Settings for a small base and few rows: what each one scores, on real sentences and questions.

    python -m tests.benchmarks.small_base --base FOLDER [--only NAME ...]
    python -m tests.benchmarks.small_base --base FOLDER --probe
    python -m tests.benchmarks.small_base --base FOLDER --ladder [section.key=value ...]

FOLDER is a base; results/small_base.json has SmolLM2-135M-Instruct, the 8M base of ../shared and the
embedded one. Settings are compared on validation rows: whole sentences of SST-2 whose phrases are in
no train row, other questions of the same articles for their topics, and for answers the questions of
two articles that no other part has. Each setting is added to the file when it is done. --probe asks
which block of the untrained base knows whether a question has an answer. --ladder measures the one of
the README, whole and rung by rung, into a file of its own.
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
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.training.fit import train

from ..material import SHARED
from . import ladder, probe, questions
from .settings import SETTINGS, TOPICS

RESULTS = Path(__file__).parents[1] / "results/small_base.json"
LADDER = RESULTS.with_name("ladder_sst2_135m.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.small_base")
    parser.add_argument("--base", required=True)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS))
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--ladder", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    base = Path(arguments.base)
    if arguments.probe:
        _add("probes", {"base": base.name, **probe.answerability(base)})
        return
    if arguments.ladder is not None:
        found = {"base": base.name, **ladder.measured(arguments.base, arguments.ladder)}
        _add_ladder(found)
        return
    for name in arguments.only:
        _add("rows", {"name": name, "base": base.name, **measured(name, arguments.base)})


def _add(kind: str, found: dict[str, Any]) -> None:
    """Write what was measured into the file."""
    table = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": [], "probes": []}
    table[kind].append(found)
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(found))


def _add_ladder(found: dict[str, Any]) -> None:
    """Write a ladder into its file, in the place of an earlier one with the same settings."""
    known = json.loads(LADDER.read_text())["ladders"] if LADDER.is_file() else []
    others = [one for one in known if one["settings"] != found["settings"]]
    LADDER.write_text(json.dumps({"ladders": [*others, found]}, indent=1) + "\n")


def measured(name: str, base: str) -> dict[str, Any]:
    """Train one setting and return it with its scores and its CPU seconds."""
    setting = SETTINGS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = load_recipe(values(setting, base, folder))
        before = _cpu()
        run = train(recipe)
        seconds = _cpu() - before
        scores = (questions.scores_of if "rows" in setting else _of_labels)(run, recipe)
    return {**setting, **scores, "cpu_seconds": round(seconds)}


def _of_labels(run: Path, recipe: Recipe) -> dict[str, Any]:
    results = harness.run(make_job(None, str(run), None, None, None, run.parent / "tuned", []))
    scores = next(iter(results.results.values()))
    return {"accuracy": round(100 * scores["accuracy"], 1)}


def values(setting: Mapping[str, Any], base: str, folder: Path) -> dict[str, Any]:
    """The recipe of a setting, on files that are written into the folder."""
    own = (
        questions.recipe_keys(setting, folder)
        if "rows" in setting
        else _labels_recipe(setting, folder)
    )
    train = {
        "learning_rate": setting["rate"],
        "num_train_epochs": _number(setting.get("epochs", 1)),
        "per_device_train_batch_size": setting["batch"],
        "seed": setting.get("seed", 42),
        "use_cpu": True,
        "output_dir": str(folder / "run"),
        "save_total_limit": 1,
        **own.pop("train"),
    }
    lora = {} if setting.get("lora") is False else {"lora": {"r": 16, **setting.get("adapter", {})}}
    return {
        "name": "small_base",
        "task": setting["task"],
        "model": {"model_name_or_path": base, "dtype": setting.get("dtype", "float32")},
        "quantization": {"load_in_4bit": False},
        **lora,
        **own,
        "train": train,
    }


def _labels_recipe(setting: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    parts = _sentences(setting, folder) if "sst" in setting["data"] else _topics(folder)
    packing = "none" if setting.get("lora") is False else "prefix_tree"
    return {
        "head": {"layer": setting["layer"], "pooling": setting.get("pooling", "last")},
        "dataset": {"parts": parts, "columns": {"text": "text"}, "validation_size": 0.0},
        "prompt": {"template": setting["template"]},
        "train": {"max_length": 128, "packing": packing},
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
