"""Settings for a small base and few rows: what each one scores, on real sentences and questions.

    python -m tests.benchmarks.small_base --base FOLDER [--only NAME ...]

FOLDER is a base; results/small_base.json has SmolLM2-135M-Instruct, the 8M base of ../shared and the
embedded one. Settings are compared on validation rows: whole sentences of SST-2 whose phrases are in
no train row, other questions of the same articles for their topics, and for answers the questions of
two articles that no other part has. Each setting is added to the file when it is done.
"""

import argparse
import csv
import json
import random
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from eval import harness
from eval.job import make_job
from eval.metrics.squad_v2 import apply_threshold, fit_threshold, squad_scores
from llama_peft import data
from llama_peft.data import QuestionExample
from llama_peft.inference.predict import Prediction, predict
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import load_tuned
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


UNANSWERED = "If the text does not answer the question, say unanswerable."
HELD_OUT = {
    "validation": ("Normans", "1973_oil_crisis"),
    "test": ("Harvard_University", "Imperialism"),
}
"""Articles of SQuAD v2's dev set; the other seven are trained on."""


def squad(rows: int | None, rate: float, **keys: Any) -> dict[str, Any]:
    """LoRA that writes answers, with the passage first unless `keys` say otherwise. rows: None for all."""
    what = {"task": "generative_qa", "data": "squad", "part": "validation", "rows": rows}
    return {**what, "rate": rate, "batch": 1, "order": "passage first", "dtype": "bfloat16", **keys}


def spans(rows: int | None, rate: float, **keys: Any) -> dict[str, Any]:
    """LoRA and a head that scores spans, which always reads the question first."""
    head = {"task": "extractive_qa", "batch": 8, "order": "question first"}
    return squad(rows, rate, **{**head, **keys})


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
        scores = (_of_answers if "rows" in setting else _of_labels)(run, recipe)
    return {**setting, **scores, "cpu_seconds": round(seconds)}


def _of_labels(run: Path, recipe: Recipe) -> dict[str, Any]:
    results = harness.run(make_job(None, str(run), None, None, None, run.parent / "tuned", []))
    scores = next(iter(results.results.values()))
    return {"accuracy": round(100 * scores["accuracy"], 1)}


def _of_answers(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Return what the model scores as it decides itself, if it always answers, and how well its
    no-answer probability tells the questions without an answer (AUC; 0.5 is chance).

    With a validation part, also what it scores with the threshold that is fitted there.
    """
    parts, tuned = data.load(recipe).parts, load_tuned(open_run(run))
    found = {
        part: [one for batch in predict(tuned, parts[part]) for one in batch]
        for part in ("validation", "test")
        if part in parts
    }
    golds = {part: _golds(parts[part]) for part in found}
    scores = answer_scores(found["test"], golds["test"])
    if "validation" in found:
        limit = fit_threshold(
            _raw(found["validation"]), golds["validation"], _chances(found["validation"])
        )
        fitted = apply_threshold(_raw(found["test"]), _chances(found["test"]), limit)
        scores["fitted"] = _official(fitted, golds["test"])
    return {"questions": len(parts["train"]), **scores}


def answer_scores(
    found: Sequence[Prediction], golds: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the scores in percent. `floor` is the EM of a model that never answers."""
    chances = _chances(found)
    silent = [not any(golds[one]) for one in chances]
    oracle = squad_scores(_raw(found), golds, chances)
    return {
        "floor": round(100 * sum(silent) / len(silent), 1),
        "decides": _official({one.id: str(one.prediction) for one in found}, golds),
        "always": _official(_raw(found), golds),
        "best_EM": round(oracle["best_exact"], 1),
        "AUC": round(auc(list(chances.values()), silent), 3),
    }


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return how often a positive has the higher score of a pair; half if both are equal."""
    ranks, count = rankdata(scores), sum(positive)
    above = sum(rank for rank, one in zip(ranks, positive, strict=True) if one)
    return float(above - count * (count + 1) / 2) / (count * (len(positive) - count))


def _official(answers: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    scores = squad_scores(answers, golds)
    names = {"EM": "exact", "F1": "f1", "HasAns_EM": "HasAns_exact", "HasAns_F1": "HasAns_f1"}
    found = {short: scores[name] for short, name in {**names, "NoAns_EM": "NoAns_exact"}.items()}
    return {name: round(value, 1) for name, value in found.items()}


def _golds(examples: Sequence[Any]) -> dict[str, list[str]]:
    return {
        one.id: [answer.text for answer in one.answers]
        for one in examples
        if isinstance(one, QuestionExample)
    }


def _raw(found: Sequence[Prediction]) -> dict[str, str]:
    return {one.id: one.raw for one in found}


def _chances(found: Sequence[Prediction]) -> dict[str, float]:
    return {one.id: one.no_answer_probability or 0.0 for one in found}


def values(setting: Mapping[str, Any], base: str, folder: Path) -> dict[str, Any]:
    """The recipe of a setting, on files that are written into the folder."""
    own = _answers_recipe(setting, folder) if "rows" in setting else _labels_recipe(setting, folder)
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


def _answers_recipe(setting: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of a setting on questions.

    A recipe's prompt has the passage first. With the question first, which is a setting here, no two
    prompts share more than the instruction, so the whole prompt is what the recipe calls the question.
    """
    writes, shares = setting["task"] == "generative_qa", setting["order"] == "passage first"
    own: dict[str, Any] = {"dataset": {"group_by": "title", "validation_size": 0.0}}
    own["dataset"]["parts"] = _questions(setting, folder, whole=writes and not shares)
    if setting["rows"]:
        own["dataset"] |= {"max_train_samples": setting["rows"], "sampling": "nested"}
    if not writes:
        head = {"head": {"layer": setting["layer"]}} if "layer" in setting else {}
        return {**own, **head, "train": {"max_length": 512, "doc_stride": 64}}
    if not shares:
        own["dataset"]["columns"] = {"context": None}
        own["prompt"] = {"instruction": "Answer the question from the text.\n\n"}
    own["eval"] = {"max_new_tokens": 16, "fit_no_answer_threshold": True}
    tree = {"max_length": 768, "packing": "prefix_tree"}
    return {**own, "train": tree if shares else {"max_length": 512}}


def _questions(setting: Mapping[str, Any], folder: Path, whole: bool) -> dict[str, str]:
    """Write the parts of a setting on questions. whole: the passage is a part of the question."""
    articles = json.loads((SHARED / "data/squad/squad_v2.json").read_text())["data"]
    held_out = {title: part for part, titles in HELD_OUT.items() for title in titles}
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for article in articles:
        parts[held_out.get(article["title"], "train")] += _rows_of(article, whole)
    if setting["part"] == "validation":
        parts["test"] = parts.pop("validation")
    for name, rows in parts.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(folder / f"{name}.jsonl") for name in parts}


def _rows_of(article: Mapping[str, Any], whole: bool) -> Iterator[dict[str, Any]]:
    for paragraph in article["paragraphs"]:
        passage = paragraph["context"]
        for asked in paragraph["qas"]:
            answers = [] if asked["is_impossible"] else asked["answers"]
            question = asked["question"].strip()
            text = f"{question}\n\nText: {passage}\n\n{UNANSWERED}" if whole else question
            yield {
                "id": asked["id"],
                "title": article["title"],
                "context": passage,
                "question": text,
                "answers": {key: [one[key] for one in answers] for key in ("text", "answer_start")},
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
