"""From examples to predictions.jsonl to results.json.

Predictions reach a file as they are made, so that a run that is cut off goes on where it stopped, and scores can be computed
again without the model. A file of predictions continues only what has the same key: model, adapter, prompts, data and settings.
"""

import hashlib
import json
import logging
import math
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import torch

from llama_peft import data
from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.model import backbone
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder import weights as checkpoint
from llama_peft.run_folder.predict import Prediction
from llama_peft.run_folder.weights import THRESHOLD, no_answer_threshold
from llama_peft.system.files import check_sum, sha256, with_sum, write_durably
from llama_peft.system.lock import only_process
from llama_peft.system.memory import free_memory, is_out_of_memory, peak_memory, reset_peak

from . import trained_on
from .job import Job
from .metrics.squad_v2 import fit_threshold
from .predictors.open import Predictor, Shots, as_trained, check_model, is_run, open_predictor
from .scoring import RESULTS, Line, Material, check_ids, described, finish, material

log = logging.getLogger(__name__)

PARTIAL = "predictions.partial.jsonl"


def run(job: Job, show: int = 0, again: bool = True) -> dict[str, Any]:
    """Predict, score, and write `output`/predictions.jsonl and results.json; returns the latter.

    show: log so many prompts with what the model made of them. again: also where `output` holds the same measurement's
    results already. Raises UserError where model, data and task do not fit, before any example is predicted.
    """
    started = time.monotonic()
    reset_peak()
    kind = check_model(job.model, job.recipe, job.kind)
    if kind == "run":
        job = replace(job, recipe=as_trained(job.recipe, Path(job.model)))
    found = material(job)
    facts: dict[str, Any] = {}
    if kind == "run":
        strict = job.data_file is None
        facts["seen_in_training"] = trained_on.check(Path(job.model), found, job.recipe, strict)
    predictor = open_predictor(job.model, job.recipe, found.labels, kind, _shots(job, found))
    with only_process(job.output, "evaluating"):
        validation = _validation(job, predictor, found)
        key = _key(job, predictor, found.parts, validation)
        if not again and (done := _complete(job.output, key)):
            log.info("%s: measured already", job.output)
            return done
        threshold = _threshold(job, predictor, validation)
        size = job.recipe.train.per_device_eval_batch_size
        partial = job.output / PARTIAL
        lines = predict(predictor, found.examples, partial, key, size)
        _show(predictor, found.examples[:show], lines)
        results = finish(
            job,
            found,
            lines,
            kind=predictor.kind,
            facts=predictor.facts | facts | {"key": key},
            started=started,
            threshold=threshold,
            peak_memory_bytes=peak_memory(),
        )
        partial.unlink(missing_ok=True)
    return results


def _complete(output: Path, key: str) -> dict[str, Any] | None:
    """The results of exactly this measurement, where they are there; they are written last."""
    try:
        results: dict[str, Any] = json.loads((output / RESULTS).read_text("utf-8"))
        check_sum(results)
        same = results["config"]["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return results if same else None


def predict(
    predictor: Predictor, examples: Sequence[Example], partial: Path, key: str, batch_size: int = 32
) -> list[Line]:
    """One line an example. What `partial` already holds under the same key is not predicted again.

    Where memory runs out the batch is halved, and what is predicted stays. Raises UserError when a batch of one does not
    fit, or when there is not exactly one prediction an example.
    """
    from tqdm import tqdm

    lines = _resume(partial, key)
    if lines:
        log.info("%d of %d predictions are there already", len(lines), len(examples))
    by_id = {example.id: example for example in examples}
    bar = tqdm(
        total=len(examples), initial=len(lines), desc=predictor.kind, unit="ex", disable=None
    )
    with partial.open("a", encoding="utf-8") as file, bar:
        while todo := _unanswered(lines, examples):
            try:
                for prediction in predictor.predict(todo, batch_size):
                    _check_numbers(prediction)
                    line = {
                        k: value for k, value in asdict(prediction).items() if value is not None
                    }
                    line |= described(by_id[prediction.id], predictor.labels)
                    file.write(_signed(line))
                    del line["more"]
                    lines.append(line)
                    file.flush()
                    bar.update()
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_size = _halved(batch_size)
            free_memory()
    check_ids([line["id"] for line in lines], list(by_id), predictor.kind)
    return lines


def _check_numbers(prediction: Prediction) -> None:
    """A score that is no number makes some label or answer win, and says nothing."""
    scores = [*(prediction.probabilities or ()), prediction.no_answer_probability or 0.0]
    if not all(map(math.isfinite, scores)):
        raise UserError(
            f"{prediction.id}: the model's scores are no numbers, so it has no prediction; its weights are damaged, "
            "or model.dtype is too narrow for them"
        )


def _unanswered(lines: Sequence[Line], examples: Sequence[Example]) -> list[Example]:
    done = {line["id"] for line in lines}
    return [example for example in examples if example.id not in done]


def _halved(batch_size: int) -> int:
    if batch_size == 1:
        raise UserError(
            "memory runs out with one example at a time: lower train.max_length or eval.max_new_tokens, "
            "load in 4-bit, or take a smaller base; what is predicted is kept"
        )
    log.warning("memory ran out: going on with %d examples at a time", batch_size // 2)
    return batch_size // 2


def _resume(partial: Path, key: str) -> list[Line]:
    """The finished lines under the key; a file of another key, a torn line and a batch that was cut off are dropped."""
    lines: list[Line] = []
    if partial.is_file():
        for text in partial.read_text("utf-8", errors="replace").split("\n"):
            if _signed_by(text[9:]) != text[:8]:
                break  # a kill tore this line, or the disk changed it; nothing behind it counts
            lines.append(json.loads(text[9:]))
    kept = lines[1:] if lines and lines[0] == {"key": key} else []
    while kept and kept[-1].get("more", True):
        kept.pop()
    write_durably(partial, "".join(map(_signed, [{"key": key}, *kept])))
    for line in kept:
        del line["more"]
    return kept


def _signed(line: Line) -> str:
    """A line of the partial file: its checksum, and the line as JSON."""
    text = json.dumps(line, ensure_ascii=False)
    return f"{_signed_by(text)} {text}\n"


def _signed_by(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"


def _show(predictor: Predictor, examples: Sequence[Example], lines: Sequence[Line]) -> None:
    """Say what the model read, and what it made of it."""
    by_id = {line["id"]: line for line in lines}
    for example in examples:
        line = by_id[example.id]
        log.info(
            "--- %s\n%s\n>>> %r\nprediction %r, gold %r",
            *(example.id, predictor.prompt(example), line["raw"], line["prediction"], line["gold"]),
        )


def _shots(job: Job, found: Material) -> Shots | None:
    """How an example's worked examples are chosen (eval.num_fewshot), None for none."""
    wanted, source = job.recipe.eval.num_fewshot, job.recipe.eval.fewshot_from
    if not wanted:
        return None
    if source == "passage":
        earlier = _earlier(found.dataset, wanted)
        return lambda example: earlier[example.id]
    whole = found.dataset if job.data_file is None else data.load(job.recipe)
    turns = _in_turns(whole.parts["train"], job.recipe.dataset.seed)

    def chosen(example: Example) -> list[Example]:
        """The first ones, but for those that ask the same: where train is measured they hold the answer."""
        return list(islice((shot for shot in turns if shot.asked != example.asked), wanted))

    return chosen


def _earlier(dataset: data.Dataset, wanted: int) -> dict[str, list[Example]]:
    """For each question those before it on the same passage, in the order of the data."""
    found: dict[str, list[Example]] = {}
    passages: dict[str, list[Example]] = {}
    for example in (example for part in dataset.parts.values() for example in part):
        if not isinstance(example, QuestionExample):
            raise UserError("eval.fewshot_from: passage is for questions on passages")
        before = passages.setdefault(example.context, [])
        found[example.id] = [shot for shot in before if shot.asked != example.asked][-wanted:]
        before.append(example)
    return found


def _in_turns(train: Sequence[Example], seed: int) -> list[Example]:
    """Train in a seeded order that takes labels, or answerable and not, in turn."""
    kinds: dict[object, list[Example]] = {}
    for example in random.Random(seed).sample(train, len(train)):
        kind = example.label if isinstance(example, TextExample) else bool(example.answers)
        kinds.setdefault(kind, []).append(example)
    turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [example for example in turns if example is not None]


def _validation(job: Job, predictor: Predictor, found: Material) -> list[Example]:
    """What a no-answer threshold is fitted on; of a run that is measured on a file, its recipe's own validation part."""
    if not predictor.abstains:
        return []
    dataset = found.dataset
    if job.data_file is not None and is_run(job.model):
        try:
            dataset = data.load(job.recipe)
        except UserError as error:
            log.warning("the recipe's data, to fit a no-answer threshold on: %s", error)
    return dataset.parts.get("validation", [])


def _fitted_for(recipe: Recipe, validation: Sequence[Example]) -> str:
    """A digest of what a fitted threshold depends on, beside the model."""
    settings = [recipe.eval.n_best_size, recipe.eval.max_answer_length]
    what = [settings, [example.id for example in validation]]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _threshold(job: Job, predictor: Predictor, validation: list[Example]) -> float | None:
    """The no-answer probability above which a span model abstains: fitted on validation, else 0.5.

    A run keeps what was fitted on the whole validation part of its own recipe.
    """
    if not predictor.abstains:
        return None
    run = Path(job.model) if is_run(job.model) else None
    fitted_for = _fitted_for(job.recipe, validation)
    if run is not None and (run / THRESHOLD).is_file():
        try:
            kept = no_answer_threshold(run)
            its = json.loads((run / THRESHOLD).read_text("utf-8")).get("fitted_for")
            if its == fitted_for or not validation:
                return kept
        except UserError as error:
            if not validation:
                raise
            log.warning("%s: doing so", error)
    if not validation:
        log.warning("no validation examples: no answer is given above a probability of 0.5")
        return 0.5
    key = _key(job, predictor, {"validation": validation})
    partial = job.output / "validation.partial.jsonl"
    size = job.recipe.train.per_device_eval_batch_size
    lines = predict(predictor, validation, partial, key, size)
    threshold = fit_threshold(
        {line["id"]: line["raw"] for line in lines},
        {line["id"]: line["gold"] for line in lines},
        {line["id"]: line["no_answer_probability"] for line in lines},
    )
    if run is not None and not job.fetched and _is_own(run, job.recipe, validation):
        record = {
            "no_answer_threshold": threshold,
            "fitted_on": len(lines),
            "metric": "f1",
            "fitted_for": fitted_for,
            "adapter_sha256": predictor.facts["adapter_sha256"],
        }
        try:
            write_durably(run / THRESHOLD, json.dumps(with_sum(record)))
        except OSError as error:  # somebody else's run: it is fitted again each time
            log.warning("%s: the fitted threshold is not kept (%s)", run, error.strerror)
    partial.unlink(missing_ok=True)
    return threshold


def _is_own(run: Path, recipe: Recipe, validation: Sequence[Example]) -> bool:
    """Whether a run's own recipe would fit its threshold on the same, in the same way."""
    own = load_recipe(run / "recipe.yaml")
    same_settings = _fitted_for(own, validation) == _fitted_for(recipe, validation)
    return own.dataset == recipe.dataset and same_settings


def _key(
    job: Job,
    predictor: Predictor,
    parts: dict[str, list[Example]],
    validation: Sequence[Example] = (),
) -> str:
    """A digest of all that predictions depend on, and with the examples that a threshold is fitted on all that scores do.

    What the model reads stands for its template, its tokenizer and the worked examples.
    """
    recipe, facts = job.recipe, predictor.facts
    place = torch.device("cpu") if recipe.train.use_cpu else backbone.device()
    settings = {
        "facts": {name: facts[name] for name in ("model", "base_fingerprint", "adapter_sha256")},
        "adapter_config": _adapter_config(job, predictor),
        "threshold": _fitted_for(recipe, validation),
        "kind": predictor.kind,
        "labels": predictor.labels,
        "quantization": recipe.quantization.model_dump(),
        "dtype": recipe.model.dtype or str(backbone.fast_dtype(place)),
        "attention": recipe.model.attn_implementation,
        "head": recipe.head.model_dump(),
        "prompt": recipe.prompt.model_dump(),
        "eval": recipe.eval.model_dump(exclude={"limit", "splits"}),
        "lengths": [recipe.train.max_length, recipe.train.doc_stride],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in sorted(parts):
        for example in sorted(parts[part], key=lambda example: example.id):
            read = [part, asdict(example), predictor.prompt(example)]
            digest.update(json.dumps(read, sort_keys=True).encode())
    return digest.hexdigest()


def _adapter_config(job: Job, predictor: Predictor) -> str | None:
    """The sum of an adapter's settings: its scale is not in its weights."""
    run = checkpoint.adapter_folder(Path(job.model)) if is_run(job.model) else None
    folder = predictor.facts.get("adapter", run)
    path = None if folder is None else Path(folder) / "adapter_config.json"
    return sha256(path) if path is not None and path.is_file() else None
