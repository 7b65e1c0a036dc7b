"""Examples and predictions to numbers, and the two files that hold them: no model, and no torch.

predictions.jsonl has a line an example in id order, results.json what they score. What a harness predicted and what a user
brings as a file come through the same door: ids match one for one, or no number is computed.
"""

import json
import math
import random
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llama_peft import __version__, data
from llama_peft.data import Example, TextExample, broken
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.system.files import sha256, with_sum, write_durably
from llama_peft.system.lock import only_process
from llama_peft.tokens.prompts import parse_answer, without_no_answer

from .job import Job
from .metrics.measure import answer_results, classification_results
from .metrics.names import higher_is_better as is_higher_better
from .metrics.names import is_score
from .metrics.overlap import bleu_signature

Line = dict[str, Any]
PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"
_PACKAGES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "sacrebleu", "rouge_score", "nltk",
    "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a job measures on."""

    dataset: data.Dataset
    parts: dict[str, list[Example]]
    """The measured parts; with a limit, a seeded sample of each."""

    @property
    def labels(self) -> tuple[str, ...]:
        return self.dataset.labels

    @property
    def examples(self) -> list[Example]:
        return [example for part in self.parts.values() for example in part]


def material(job: Job) -> Material:
    """The recipe's data, or with a file of the user's that file as the only part."""
    dataset = _dataset(job)
    measured = list(job.recipe.eval.splits) if job.data_file is None else ["data"]
    parts = {part: _sample(dataset.parts[part], part, job) for part in measured}
    return Material(dataset=dataset, parts=parts)


def _sample(examples: list[Example], part: str, job: Job) -> list[Example]:
    """As many as the limit allows, the same ones whichever other parts are measured."""
    size = job.sample_size
    if size is None:
        return examples
    sampler = random.Random(f"{job.recipe.dataset.seed} {part}")
    return sampler.sample(examples, min(size, len(examples)))


def _dataset(job: Job) -> data.Dataset:
    if job.data_file is None:
        return data.load(job.recipe)
    recipe, labels = job.recipe, data.known_labels(job.recipe)
    if labels:  # so that they are not looked up again
        named = recipe.dataset.model_copy(update={"labels": list(labels)})
        recipe = recipe.model_copy(update={"dataset": named})
    examples = data.load_file(recipe, job.data_file, job.data_split)
    return data.Dataset(labels=labels, parts={"data": examples})


def gold(example: Example, labels: Sequence[str]) -> str | list[str]:
    """What predictions.jsonl holds as the truth: the label's name, or the answers (none if unanswerable)."""
    if isinstance(example, TextExample):
        return labels[example.label]
    return [answer.text for answer in example.answers]


def described(example: Example, labels: Sequence[str]) -> Line:
    """What a line of predictions.jsonl says of its example, beside the id."""
    text = example.text if isinstance(example, TextExample) else example.question
    return {"gold": gold(example, labels), "text": text}


def score(
    lines: Sequence[Line],
    examples: Sequence[Example],
    labels: Sequence[str],
    no_answer: str = "",
) -> dict[str, Any]:
    """Metrics of one part, each with its interval. no_answer: the phrase that stands for it where a model writes.

    Raises ValueError unless predictions match the examples id for id.
    """
    golds = {example.id: gold(example, labels) for example in examples}
    if labels:
        return classification_results(
            {line["id"]: line["prediction"] for line in lines},
            {id_: str(name) for id_, name in golds.items()},
            labels,
        )
    probabilities = {
        line["id"]: line["no_answer_probability"]
        for line in lines
        if line.get("no_answer_probability") is not None
    }
    return answer_results(
        {line["id"]: line["prediction"] for line in lines},
        {id_: list(texts) for id_, texts in golds.items()},
        probabilities or None,
        before={line["id"]: _before(line, no_answer) for line in lines},
    )


def _before(line: Line, no_answer: str) -> str:
    """The answer before a threshold silenced it; a model that wrote the no-answer phrase gave none."""
    raw: str = line.get("raw", "")
    silenced = not line["prediction"] and parse_answer(raw, no_answer)
    return raw if silenced else str(line["prediction"])


def finish(
    job: Job,
    found: Material,
    lines: list[Line],
    *,
    kind: str,
    facts: dict[str, Any],
    started: float,
    threshold: float | None = None,
    peak_memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Score the lines, write predictions.jsonl and results.json into the job's folder, and return the latter.

    started: of `time.monotonic`. threshold: the no-answer probability above which a line's `raw` counts as no answer.
    """
    split_of = {example.id: part for part, its in found.parts.items() for example in its}
    for line in lines:
        line["split"] = split_of[line["id"]]
        if threshold is not None:
            line["prediction"] = "" if line["no_answer_probability"] > threshold else line["raw"]
    lines.sort(key=lambda line: line["id"])
    names = {
        part: job.recipe.name if part in ("test", "data") else f"{job.recipe.name}_{part}"
        for part in found.parts
    }
    scores = {
        names[part]: score(
            [line for line in lines if line["split"] == part],
            its,
            found.labels,
            job.recipe.prompt.no_answer,
        )
        for part, its in found.parts.items()
    }
    samples = {
        names[part]: {"original": len(found.dataset.parts[part]), "effective": len(its)}
        for part, its in found.parts.items()
    }
    results = {
        "results": scores,
        "configs": dict.fromkeys(scores, _settings(job, found.labels, threshold)),
        "versions": {"llama_peft": __version__} | {name: version(name) for name in _PACKAGES},
        "n-samples": samples,
        "higher_is_better": {
            task: {name: is_higher_better(name) for name in its if is_score(name)}
            for task, its in scores.items()
        },
        "config": {"model_kind": kind, "recipe": job.recipe.name, **facts},
        "git_hash": _git_hash(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter_sha256": facts.get("adapter_sha256"),
        "base_revision": facts.get("base_fingerprint"),
        "peak_memory_bytes": peak_memory_bytes,
        "wall_seconds": round(time.monotonic() - started, 3),
    }
    job.output.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_durably(job.output / PREDICTIONS, text)
    results = with_sum(results | {"predictions_sha256": sha256(job.output / PREDICTIONS)})
    write_durably(job.output / RESULTS, json.dumps(results, indent=1, ensure_ascii=False))
    return results


def _settings(job: Job, labels: Sequence[str], threshold: float | None) -> dict[str, Any]:
    recipe = job.recipe
    return {
        "task": recipe.task,
        "dataset": recipe.dataset.model_dump(mode="json"),
        "data_file": job.data_file,
        "data_split": job.data_split,
        "prompt": recipe.prompt.model_dump(),
        "quantization": recipe.quantization.model_dump(),
        "dtype": recipe.model.dtype,
        "max_length": recipe.train.max_length,
        "doc_stride": recipe.train.doc_stride,
        "eval": recipe.eval.model_dump() | {"limit": job.sample_size},
        "labels": list(labels),
        "no_answer_threshold": threshold,
        "bleu_signature": None if labels else bleu_signature(),
    }


def _git_hash() -> str | None:
    """The project's commit, None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def score_file(job: Job, predictions: Path, no_answer_probabilities: Path | None) -> dict[str, Any]:
    """Score predictions that somebody made: a predictions.jsonl, or the official {id: text} with an optional {id: probability}.

    Labels may be names or numbers. Raises UserError where a file cannot be read, or ids do not match one for one.
    """
    started = time.monotonic()
    found = material(job)
    lines = _read_lines(predictions, job.recipe, found.labels)
    if no_answer_probabilities is not None:
        _join(lines, no_answer_probabilities)
    _check_probabilities(lines, predictions)
    examples = {example.id: example for example in found.examples}
    check_ids([line["id"] for line in lines], list(examples), str(predictions))
    lines = [line | described(examples[line["id"]], found.labels) for line in lines]
    facts = {"model": None, "predictions": str(predictions), "adapter_sha256": None}
    with only_process(job.output, "evaluating"):
        return finish(job, found, lines, kind="scored predictions", facts=facts, started=started)


def _check_probabilities(lines: Sequence[Line], source: Path) -> None:
    without = [line["id"] for line in lines if "no_answer_probability" not in line]
    if 0 < len(without) < len(lines):
        raise UserError(
            f"{source}: {len(without)} of {len(lines)} predictions have no no_answer_probability "
            f"(first: {without[0]}): give it with all or with none"
        )


def check_ids(predicted: Sequence[str], asked: Sequence[str], source: str) -> None:
    """Raises UserError unless there is exactly one prediction for each example (law 8)."""
    given = set(predicted)
    counts = {
        "given twice": _twice(predicted),
        "missing": [id_ for id_ in asked if id_ not in given],
        "for no example": sorted(given - set(asked)),
    }
    faults = [f"{len(ids)} {what} (first: {ids[0]})" for what, ids in counts.items() if ids]
    if faults:
        raise UserError(
            f"{source}: {len(predicted)} predictions for {len(asked)} examples: {'; '.join(faults)}"
        )


def _twice(ids: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [id_ for id_ in ids if id_ in seen or seen.add(id_)]  # type: ignore[func-returns-value]


def _read_lines(path: Path, recipe: Recipe, labels: Sequence[str]) -> list[Line]:
    """Every prediction of a file as a line of ours."""
    values = _read_json(path)
    if isinstance(values, dict):
        values = [{"id": id_, "prediction": text} for id_, text in values.items()]
    lines = []
    for number, value in enumerate(values, start=1):
        text = value.get("prediction") if isinstance(value, dict) else None
        if labels:
            text = _label(text, labels)
        if text is None or not isinstance(text, str) or "id" not in value:
            raise UserError(
                f"{path}: prediction {number} is no {{id, prediction}} with "
                + (f"one of the labels {', '.join(labels)}" if labels else "a text")
            )
        if not labels:
            text = without_no_answer(text, recipe.prompt.no_answer)
        line: Line = {"id": str(value["id"]), "prediction": text}
        if isinstance(value.get("raw"), str):
            line["raw"] = value["raw"]
        if broken("".join(line.values())):
            raise UserError(
                f"{path}: prediction {number} holds half a character (a surrogate), which no file takes: write it whole"
            )
        if value.get("no_answer_probability") is not None:
            probability = value["no_answer_probability"]
            if not _is_number(probability):
                raise UserError(
                    f"{path}: no_answer_probability of prediction {number} is {probability!r}, no number"
                )
            line["no_answer_probability"] = float(probability)
        lines.append(line)
    return lines


def _label(value: Any, labels: Sequence[str]) -> Any:
    """A predicted number is the label of that name, or where no label is a number the label in that place."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text in labels or not isinstance(text, str) or not text.isdecimal():
        return text
    named = any(label.isdecimal() for label in labels)
    return value if named or int(text) >= len(labels) else labels[int(text)]


def _join(lines: list[Line], path: Path) -> None:
    """Give each line its no-answer probability."""
    values = _read_json(path)
    if not isinstance(values, dict) or not all(_is_number(value) for value in values.values()):
        raise UserError(f"{path}: is no {{id: probability of no answer}}")
    check_ids(list(values), [line["id"] for line in lines], str(path))
    for line in lines:
        line["no_answer_probability"] = float(values[line["id"]])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys occur once: json would keep the last of two predictions without a word."""
    twice = _twice([key for key, _ in pairs])
    if twice:
        raise ValueError(f"{twice[0]!r} occurs twice")
    return dict(pairs)


def _read_json(path: Path) -> Any:
    """The value of a JSON file, or the list of the values of a JSONL file."""
    try:
        text = path.read_text("utf-8")
        lines = [line for line in text.split("\n") if line.strip()]
        if path.suffix == ".jsonl" or (len(lines) > 1 and _is_whole(lines[0])):
            return [json.loads(line, object_pairs_hook=_unique) for line in lines]
        values = json.loads(text, object_pairs_hook=_unique)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict | list):
        raise UserError(f"{path}: holds neither {{id: prediction}} nor lines of predictions")
    return values


def _is_whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
