"""What faults of data share: rows, files of them, and runs on the same rows as a plain file."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_peft.recipe import strict_yaml
from tests.faults.shop import Done, Fault, Seen, Shop

Row = Mapping[str, Any]
Rows = Sequence[Row]

TEXTS: Rows = [
    {"text": f"A {word}, “{'very ' * (n % 3)}” café film of {n}", "label": n % 2}
    for n, word in enumerate(["dull", "warm", "bad"] * 4)
]
PAIRS: Rows = [
    {"premise": row["text"], "hypothesis": f"It is number {n // 2}", "label": row["label"]}
    for n, row in enumerate(TEXTS)
]
_PASSAGE = "Ada wrote {n} books. Ada King lived in Rome, and Ada slept in Oslo."
QUESTIONS: Rows = [
    {
        "id": f"q{n}",
        "question": f"Who lived in Rome in {n}?",
        "context": _PASSAGE.format(n=n),
        "answers": {"text": ["Ada"], "answer_start": [_PASSAGE.format(n=n).index("Ada K")]}
        if n % 3
        else {"text": [], "answer_start": []},
    }
    for n in range(6)
]
ALONE: Rows = [{"question": f"What is {n} and {n}?", "answers": [f"{n + n}"]} for n in range(6)]
FREE: Rows = [
    {"question": row["question"], "context": row["context"], "answers": ["Yes, she did.", "yes"]}
    for row in QUESTIONS
]


@dataclass(frozen=True)
class Shape:
    """Rows of one kind, and how a plain file of them is read."""

    kind: str
    rows: Rows
    dataset: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)


PAIR = {"columns": {"text": ["premise", "hypothesis"]}}
SHAPES = {
    "texts": Shape("classification head", TEXTS),
    "pairs": Shape("classification head", PAIRS, PAIR),
    "questions": Shape("span + LoRA", QUESTIONS),
    "free": Shape("generative + LoRA", FREE),
    "alone": Shape("generative + LoRA", ALONE, {"columns": {"context": None}}, {"instruction": ""}),
}


@dataclass(frozen=True)
class Given:
    """A file to train on, one to test on, and the keys of the recipe about them."""

    shape: str
    file: str
    raw: bytes
    test: tuple[str, bytes] | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)


def plain(shape: str, rows: Rows | None = None) -> Given:
    """The rows of a shape in a JSON file."""
    its = SHAPES[shape]
    raw = as_json(its.rows if rows is None else rows)
    return Given(shape, "plain.json", raw, dataset=its.dataset)


def _tested(row: Row) -> Row:
    """The row as it is in the test part: ids are unique over all parts."""
    return {**row, "id": f"tested {row['id']}"} if "id" in row else row


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def as_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: Rows, between: str = ",", encoding: str = "utf-8", end: str = "\n") -> bytes:
    """Lists and objects are written as JSON, as most programs do."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], delimiter=between, lineterminator=end)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
        )
    return text.getvalue().encode(encoding)


def squad(answers: Any, **extra: Any) -> bytes:
    """A file in SQuAD's form with one question."""
    question = {"id": "q", "question": "Who did?", "answers": answers} | extra
    paragraph = {"context": "Ada Lovelace did.", "qas": [question]}
    return json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}).encode()


def words_of(shop: Shop, folder: Path, given: Given) -> list[str]:
    """The command that trains on all of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[given.shape]
    recipe = shop.recipe(shape.kind, folder, train={"max_steps": 2})
    values = recipe.model_dump(exclude={"dataset"}, exclude_none=True)
    (folder / given.file).write_bytes(given.raw)
    test, raw = given.test or ("test.json", as_json([_tested(row) for row in shape.rows]))
    (folder / test).write_bytes(raw)
    parts = {"train": str(folder / given.file), "test": str(folder / test)}
    values["dataset"] = {"parts": parts, "validation_size": 0, **given.dataset}
    values["prompt"] |= {**shape.prompt, **given.prompt}
    (folder / "recipe.yaml").write_text(strict_yaml.dump(values))
    return ["train", str(folder / "recipe.yaml")]


def refuses(name: str, given: Given, says: str, cheap: bool = True) -> Fault:
    """A file that is refused before anything is made of it, in a line that matches a pattern."""

    def inflict(shop: Shop, folder: Path) -> Seen:
        return says_so(shop.refused(shop.run(words_of(shop, folder, given)), folder), says)

    return Fault("data", f"{given.file}: {name}", inflict, cheap)


def says_so(seen: Seen, says: str) -> Seen:
    """The same, and wrong if the line does not match a pattern."""
    if seen.verdict == "right" and not re.search(says, seen.message):
        return Seen("wrong", f"unclear (it does not say {says!r}): {seen.message}")
    return seen


def reads(name: str, given: Given, like: Given | None = None, cheap: bool = False) -> Fault:
    """A file that gives the weights of a plain file, by default that of its shape.

    With test rows of its own, it also gives the same scores on them.
    """

    def inflict(shop: Shop, folder: Path) -> Seen:
        done, found = outcome(shop, folder, given)
        if done.code != 0:
            verdict = "traceback" if "Traceback" in done.text else "wrong"
            return Seen(verdict, f"refused: {done.last_line}")
        wanted = clean(shop, like or plain(given.shape), given.test is not None)
        differ = [key for key, value in wanted.items() if found.get(key) != value]
        return Seen("wrong" if differ else "right", f"{', '.join(differ) or 'the same weights'}")

    return Fault("data", f"{given.file}: {name}", inflict, cheap)


def outcome(shop: Shop, folder: Path, given: Given, scored: bool = False) -> tuple[Done, Row]:
    """The weights of a run on a file and, if it has test rows, what it makes of them."""
    done = shop.run(words_of(shop, folder, given))
    run = folder / "runs/run"
    if done.code != 0:
        return done, {}
    files = [*run.glob("adapter/*.safetensors"), *run.glob("head.safetensors")]
    found: dict[str, object] = {"weights": [file.read_bytes() for file in files]}
    if scored or given.test is not None:
        done = shop.run(["run", "--model", str(run), "--output", str(folder / "out")], "eval")
        if done.code != 0:
            return done, found
        lines = map(json.loads, (folder / "out/predictions.jsonl").open(encoding="utf-8"))
        found["scores"] = sorted(
            (line.get("probabilities", line["prediction"]), line["prediction"] == line["gold"])
            for line in lines
        )
    return done, found


_CLEAN: dict[tuple[Path, bytes, bool], Row] = {}


def clean(shop: Shop, given: Given, scored: bool) -> Row:
    """The outcome of a plain file, which is computed once."""
    key = (shop.root, given.raw, scored)
    if key not in _CLEAN:
        done, found = outcome(shop, shop.root / f"clean-{len(_CLEAN)}", given, scored)
        assert done.code == 0, done.text
        _CLEAN[key] = found
    return _CLEAN[key]
