"""Data with right answers, and the predictions of two systems, of any number of rows.

The rows are drawn as they are written, so a large file needs no memory. A system is right more often
than not, and is surer where it is right, as a trained model is.
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

LABELS = ("negative", "positive")
_PER_PASSAGE = 20
"""Questions on one passage."""
_SKILLS = (0.7, 0.75)
"""How often each of the two systems is right."""
Line = Mapping[str, object]


class Material(NamedTuple):
    """The files of a measurement."""

    recipe: Path
    truth: Path
    predictions: tuple[Path, ...]
    """One file for each system."""


def write(kind: str, rows: int, folder: Path) -> Material:
    """Write the files of a kind of task, and return where they are."""
    make = _reviews if kind == "classification" else _questions
    found = Material(
        folder / "recipe.yaml",
        folder / "truth.jsonl",
        tuple(folder / f"system-{number}.jsonl" for number in range(len(_SKILLS))),
    )
    settings = {
        "task": kind,
        "model": {"model_name_or_path": "tiny"},
        "lora": {"r": 4},
        "dataset": {"parts": {"train": str(found.truth)}},
    }
    if kind == "classification":
        settings["dataset"]["labels"] = [*LABELS]
    found.recipe.write_text(json.dumps(settings), "utf-8")
    with found.truth.open("w", encoding="utf-8") as truth:
        files = [path.open("w", encoding="utf-8") for path in found.predictions]
        for row, *said in make(rows):
            for file, line in zip((truth, *files), (row, *said), strict=True):
                file.write(json.dumps(line) + "\n")
        for file in files:
            file.close()
    return found


def _words(drawn: random.Random, count: int) -> str:
    return " ".join(f"word{drawn.randrange(5000)}" for _ in range(count))


def _reviews(rows: int) -> Iterator[tuple[Line, ...]]:
    drawn = random.Random(0)
    for number in range(rows):
        id_, label = f"review-{number:07}", drawn.randrange(2)
        yield (
            {"id": id_, "text": _words(drawn, drawn.randint(6, 20)), "label": LABELS[label]},
            *({"id": id_, **_labelled(drawn, label, skill)} for skill in _SKILLS),
        )


def _labelled(drawn: random.Random, label: int, skill: float) -> Line:
    is_right = drawn.random() < skill
    said = label if is_right else 1 - label
    chance = 0.5 + 0.5 * drawn.betavariate(3 if is_right else 1.5, 2)
    chances = [chance, 1 - chance] if said == 0 else [1 - chance, chance]
    return {"prediction": LABELS[said], "probabilities": chances}


def _questions(rows: int) -> Iterator[tuple[Line, ...]]:
    drawn, passage = random.Random(0), ""
    for number in range(rows):
        if number % _PER_PASSAGE == 0:
            passage = _words(drawn, drawn.randint(60, 120))
        id_, words = f"question-{number:07}", passage.split()
        start, length = drawn.randrange(len(words) - 6), drawn.randint(1, 5)
        text = " ".join(words[start : start + length]) if drawn.random() < 0.6 else ""
        right = {"text": [text], "answer_start": [len(" ".join([*words[:start], ""]))]}
        yield (
            {
                "id": id_,
                "context": passage,
                "question": f"What is word {_words(drawn, drawn.randint(4, 12))}?",
                "answers": right if text else {"text": [], "answer_start": []},
            },
            *({"id": id_, **_answered(drawn, text, words, skill)} for skill in _SKILLS),
        )


def _answered(drawn: random.Random, text: str, words: list[str], skill: float) -> Line:
    said = text
    if drawn.random() >= skill:
        start = drawn.randrange(len(words) - 6)
        said = "" if text and drawn.random() < 0.4 else " ".join(words[start : start + 3])
    chance = drawn.betavariate(1.5, 3) if said else drawn.betavariate(3, 1.5)
    return {"prediction": said, "no_answer_probability": chance}
