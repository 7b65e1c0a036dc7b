"""From examples to predictions.jsonl to results.json.

Predictions reach a file as they are made, so that a run that is cut off goes on where it stopped, and scores can be computed
again without the model. A file of predictions continues only what has the same key: model, adapter, prompts, data and settings.
"""

import hashlib
import json
import logging
import random
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval.job import Job
from eval.metrics.measure import answer_results, classification_results
from eval.metrics.names import higher_is_better as is_higher_better
from eval.metrics.names import is_score
from eval.metrics.overlap import bleu_signature
from eval.metrics.squad_v2 import fit_threshold
from eval.predictors import Predictor, check_model, is_run, open_predictor
from llama_peft import __version__, data
from llama_peft.backbone import peak_memory
from llama_peft.checkpoint import THRESHOLD, no_answer_threshold, write_durably
from llama_peft.data import Example, TextExample
from llama_peft.recipe import UserError

log = logging.getLogger(__name__)

Line = dict[str, Any]
PREDICTIONS, PARTIAL, RESULTS = "predictions.jsonl", "predictions.partial.jsonl", "results.json"
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


def run(job: Job) -> dict[str, Any]:
    """Predict, score, and write `output`/predictions.jsonl and results.json; returns the latter.

    Raises UserError where model, data and task do not fit, before any example is predicted.
    """
    started = time.monotonic()
    check_model(job.model, job.recipe)
    dataset = _dataset(job)
    parts = _sampled(job, {part: dataset.parts[part] for part in _measured(job)})
    if is_run(job.model):
        _check_split(Path(job.model), parts, strict=job.data_file is None)
    predictor = open_predictor(job.model, job.recipe, dataset.labels)
    job.output.mkdir(parents=True, exist_ok=True)
    threshold = _threshold(job, predictor, dataset)
    key = _key(job, predictor, parts)
    split_of = {example.id: part for part, examples in parts.items() for example in examples}
    lines = predict(
        predictor, [e for examples in parts.values() for e in examples], job.output / PARTIAL, key
    )
    for line in lines:
        line["split"] = split_of[line["id"]]
        if threshold is not None:
            line["prediction"] = "" if line["no_answer_probability"] > threshold else line["raw"]
    lines.sort(key=lambda line: line["id"])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_durably(job.output / PREDICTIONS, text)
    names = {part: _task_name(job, part) for part in parts}
    scores = {
        names[part]: score(
            [line for line in lines if line["split"] == part],
            parts[part],
            dataset.labels,
            threshold,
        )
        for part in parts
    }
    results = _results(job, predictor, scores, threshold)
    results["n-samples"] = {
        names[part]: {"original": len(dataset.parts[part]), "effective": len(examples)}
        for part, examples in parts.items()
    }
    results["wall_seconds"] = round(time.monotonic() - started, 3)
    write_durably(job.output / RESULTS, json.dumps(results, indent=1, ensure_ascii=False))
    (job.output / PARTIAL).unlink(missing_ok=True)
    return results


def predict(
    predictor: Predictor, examples: Sequence[Example], partial: Path, key: str
) -> list[Line]:
    """One line an example. What `partial` already holds under the same key is not predicted again."""
    from tqdm import tqdm

    lines = _resume(partial, key)
    done = {line["id"] for line in lines}
    todo = [example for example in examples if example.id not in done]
    if done:
        log.info("%d of %d predictions are there already", len(done), len(examples))
    by_id = {example.id: example for example in examples}
    with partial.open("a", encoding="utf-8") as file:
        bar = tqdm(
            total=len(examples), initial=len(done), desc=predictor.kind, unit="ex", disable=None
        )
        for prediction in predictor.predict(todo):
            line = {name: value for name, value in asdict(prediction).items() if value is not None}
            example = by_id[prediction.id]
            line["gold"] = gold(example, predictor.labels)
            line["text"] = example.text if isinstance(example, TextExample) else example.question
            lines.append(line)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()
        bar.close()
    _check_complete(lines, by_id)
    return lines


def shown(job: Job, count: int) -> list[str]:
    """The first predictions of a finished job as text: what went in is in the data, what came out is here."""
    lines = (job.output / PREDICTIONS).read_text("utf-8").split("\n")[:-1][:count]
    return [json.dumps(json.loads(line), indent=1, ensure_ascii=False) for line in lines]


def _resume(partial: Path, key: str) -> list[Line]:
    """The finished lines under the key; a file of another key, or the torn last line, is dropped."""
    lines: list[Line] = []
    if partial.is_file():
        for text in partial.read_text("utf-8", errors="replace").split("\n"):
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # a kill tore this line; nothing follows it
    kept = lines[1:] if lines and lines[0] == {"key": key} else []
    texts = [json.dumps(line, ensure_ascii=False) for line in [{"key": key}, *kept]]
    write_durably(partial, "\n".join(texts) + "\n")
    return kept


def _check_complete(lines: Iterable[Line], examples: Mapping[str, Example]) -> None:
    """Refuse to score anything but exactly one prediction an example."""
    ids = [line["id"] for line in lines]
    if len(set(ids)) < len(ids) or set(ids) != set(examples):
        raise UserError(
            f"{len(ids)} predictions ({len(set(ids))} distinct) for {len(examples)} examples: "
            "remove the output folder and evaluate again"
        )


def gold(example: Example, labels: Sequence[str]) -> str | list[str]:
    """What predictions.jsonl holds as the truth: the label's name, or the answers (none if unanswerable)."""
    if isinstance(example, TextExample):
        return labels[example.label]
    return [answer.text for answer in example.answers]


def score(
    lines: Sequence[Line],
    examples: Sequence[Example],
    labels: Sequence[str],
    threshold: float | None = None,
) -> dict[str, Any]:
    """Metrics of one part, each with its interval. Raises ValueError unless predictions match the examples id for id."""
    golds = {example.id: gold(example, labels) for example in examples}
    if labels:
        return classification_results(
            {line["id"]: line["prediction"] for line in lines},
            {id_: str(name) for id_, name in golds.items()},
            labels,
        )
    text = "prediction" if threshold is None else "raw"
    return answer_results(
        {line["id"]: line[text] for line in lines},
        {id_: list(texts) for id_, texts in golds.items()},
        {line["id"]: line["no_answer_probability"] for line in lines},
        threshold=threshold,
    )


def _dataset(job: Job) -> data.Dataset:
    """The recipe's data; with a file of the user's, that file as the only part."""
    labels = tuple(job.recipe.dataset.labels or ())
    if job.data_file is None:
        return data.load(job.recipe)
    examples = data.load_file(job.recipe, job.data_file)
    if job.recipe.task == "classification" and not labels:
        raise UserError("--data needs dataset.labels in the recipe, or a run that knows its labels")
    return data.Dataset(labels=labels, parts={"data": examples})


def _measured(job: Job) -> list[str]:
    return list(job.recipe.eval.splits) if job.data_file is None else ["data"]


def _sampled(job: Job, parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """The parts, or with a limit a seeded sample of each."""
    limit = job.limit or job.recipe.eval.limit
    if limit is None:
        return parts
    sampler = random.Random(job.recipe.dataset.seed)
    return {
        part: sampler.sample(examples, min(limit, len(examples)))
        for part, examples in parts.items()
    }


def _task_name(job: Job, part: str) -> str:
    return job.recipe.name if part in ("test", "data") else f"{job.recipe.name}_{part}"


def _check_split(folder: Path, parts: dict[str, list[Example]], strict: bool) -> None:
    """Refuse to measure a run on what it was trained on; of another file, whose ids may coincide by chance, only say so."""
    try:
        split = json.loads((folder / "split.json").read_text("utf-8"))
        seen = {*split["train"], *split.get("validation", ())}
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder / 'split.json'}: missing or damaged, so a leak cannot be ruled out"
        ) from None
    measured = [example.id for part in parts.keys() - {"validation"} for example in parts[part]]
    leaked = [id_ for id_ in measured if id_ in seen]
    message = f"{folder}: {len(leaked)} of {len(measured)} examples have ids that it was trained on"
    if leaked and strict:
        raise UserError(f"{message}, first {leaked[0]}; measure on its own recipe's split")
    if leaked:
        log.warning("%s, first %s", message, leaked[0])


def _threshold(job: Job, predictor: Predictor, dataset: data.Dataset) -> float | None:
    """The no-answer threshold of a span head: fitted on its validation part once, then kept with the run."""
    validation = dataset.parts.get("validation")
    if not predictor.kind.startswith("span head"):
        return None
    path = Path(job.model) / THRESHOLD
    if path.is_file() or not validation:
        return no_answer_threshold(Path(job.model))
    key = _key(job, predictor, {"validation": validation})
    partial = job.output / "validation.partial.jsonl"
    lines = predict(predictor, validation, partial, key)
    threshold = fit_threshold(
        {line["id"]: line["raw"] for line in lines},
        {line["id"]: line["gold"] for line in lines},
        {line["id"]: line["no_answer_probability"] for line in lines},
    )
    found = {"no_answer_threshold": threshold, "fitted_on": len(lines), "metric": "f1"}
    write_durably(path, json.dumps(found))
    partial.unlink()
    return threshold


def _key(job: Job, predictor: Predictor, parts: dict[str, list[Example]]) -> str:
    """A digest of all that predictions depend on."""
    recipe = job.recipe
    settings = {
        "facts": {
            name: predictor.facts[name] for name in ("model", "base_fingerprint", "adapter_sha256")
        },
        "kind": predictor.kind,
        "labels": predictor.labels,
        "quantization": recipe.quantization.model_dump(),
        "dtype": recipe.model.dtype,
        "prompt": recipe.prompt.model_dump(),
        "eval": recipe.eval.model_dump(exclude={"limit", "splits"}),
        "lengths": [recipe.train.max_length, recipe.train.doc_stride],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in sorted(parts):
        for example in sorted(parts[part], key=lambda example: example.id):
            digest.update(json.dumps([part, asdict(example)], sort_keys=True).encode())
    return digest.hexdigest()


def _results(
    job: Job, predictor: Predictor, scores: dict[str, dict[str, Any]], threshold: float | None
) -> dict[str, Any]:
    recipe = job.recipe
    settings = {
        "task": recipe.task,
        "dataset": recipe.dataset.model_dump(mode="json"),
        "data_file": job.data_file,
        "prompt": recipe.prompt.model_dump(),
        "eval": recipe.eval.model_dump(),
        "labels": list(predictor.labels),
        "no_answer_threshold": threshold,
        "bleu_signature": None if predictor.labels else bleu_signature(),
    }
    return {
        "results": scores,
        "configs": dict.fromkeys(scores, settings),
        "versions": {"llama_peft": __version__} | {name: version(name) for name in _PACKAGES},
        "higher_is_better": {
            task: {name: is_higher_better(name) for name in its if is_score(name)}
            for task, its in scores.items()
        },
        "config": {"model_kind": predictor.kind, "recipe": recipe.name, **predictor.facts},
        "git_hash": _git_hash(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter_sha256": predictor.facts["adapter_sha256"],
        "base_revision": predictor.facts["base_fingerprint"],
        "peak_memory_bytes": peak_memory(),
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
