"""Questions of SQuAD v2's dev set: their parts, the recipe of a setting, and what a run scores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from eval.metrics.squad_v2 import squad_scores
from llama_peft import data
from llama_peft.data import QuestionExample
from llama_peft.inference.predict import Prediction, predict
from llama_peft.recipe import Recipe
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import load_tuned

from ..material import SHARED

UNANSWERED = "If the text does not answer the question, say unanswerable."
HELD_OUT = {
    "validation": ("Normans", "1973_oil_crisis"),
    "test": ("Harvard_University", "Imperialism"),
}
"""Articles of SQuAD v2's dev set; the other seven are trained on."""


def recipe_keys(setting: Mapping[str, Any], folder: Path) -> dict[str, Any]:
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
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for part, article in articles():
        parts[part] += _rows_of(article, whole)
    validation = parts.pop("validation")
    if setting["part"] == "validation":
        parts["test"] = validation
    for name, rows in parts.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(folder / f"{name}.jsonl") for name in parts}


def articles() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each article with the part that it belongs to."""
    held_out = {title: part for part, titles in HELD_OUT.items() for title in titles}
    for article in json.loads((SHARED / "data/squad/squad_v2.json").read_text())["data"]:
        yield held_out.get(article["title"], "train"), article


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


def scores_of(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Return what the model scores as it decides itself, if it always answers, and how well its
    no-answer probability tells the questions without an answer (AUC; 0.5 is chance).
    """
    parts, tuned = data.load(recipe).parts, load_tuned(open_run(run))
    found = [one for batch in predict(tuned, parts["test"]) for one in batch]
    return {"questions": len(parts["train"]), **answer_scores(found, _golds(parts["test"]))}


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
