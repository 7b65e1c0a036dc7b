"""Predictions that reach a file as they are made, so that an interrupted evaluation resumes.

A file is resumed only if it has the same key: the same model, adapter, prompts, data and settings.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.system.files import append, parse_json, read_text, sum_of, write_text
from llama_peft.system.memory import free_memory, is_out_of_memory

from .job import Job
from .predictors.predictor import Predictor
from .predictors.recognise import Subject
from .scoring import Material, check_ids, gold

log = logging.getLogger(__name__)

_PREDICTION = TypeAdapter(Prediction)


class _Line(NamedTuple):
    """A line of an unfinished file."""

    prediction: Prediction
    more: bool
    """Whether other predictions of its batch follow."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A loaded model with the examples that it is evaluated on."""

    job: Job
    subject: Subject
    found: Material
    predictor: Predictor


def evaluation_key(
    evaluation: Evaluation,
    parts: Mapping[str, Sequence[Example]],
    validation: Sequence[Example] = (),
) -> str:
    """Return a digest of everything that the predictions of some parts depend on.

    validation: the examples that a threshold is fitted on; with them, the digest covers everything
    that the scores depend on. What the model reads stands for its template, its tokenizer and the
    worked examples.
    """
    recipe, predictor = evaluation.job.recipe, evaluation.predictor
    facts, adapter_config = predictor.config, evaluation.subject.adapter_config
    place = torch.device("cpu") if recipe.train.use_cpu else backbone.device()
    settings = {
        "facts": facts.model_dump(include={"model", "base_fingerprint", "adapter_sha256"}),
        "adapter_config": _sum(adapter_config),
        "threshold": threshold_digest(recipe, validation),
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


def _sum(path: Path | None) -> str | None:
    return None if path is None else sum_of(path.parent, path.name)


def threshold_digest(recipe: Recipe, validation: Sequence[Example]) -> str:
    """Return a digest of what a fitted threshold depends on, beside the model."""
    settings = [recipe.eval.n_best_size, recipe.eval.max_answer_length]
    fitted_on = [settings, [example.id for example in validation]]
    return hashlib.sha256(json.dumps(fitted_on).encode()).hexdigest()


def predict(
    predictor: Predictor, examples: Sequence[Example], partial: Path, key: str, batch_size: int = 32
) -> list[Prediction]:
    """Return one prediction for each example. Those in the file `partial` are not computed again.

    If memory runs out, the batch is halved. Raises UserError if even one example does not fit, or
    if there is not exactly one prediction for each example.
    """
    from tqdm import tqdm

    found = _resume(partial, key)
    if found:
        log.info("%d of %d predictions exist already", len(found), len(examples))
    by_id = {example.id: example for example in examples}
    bar = tqdm(
        total=len(examples), initial=len(found), desc=predictor.kind, unit="ex", disable=None
    )
    with append(partial.parent, partial.name) as file, bar:
        while waiting := _without(examples, found):
            try:
                for batch in predictor.predict(waiting, batch_size):
                    for number, prediction in enumerate(batch, start=1):
                        example, more = by_id[prediction.id], number < len(batch)
                        file.write(_signed(_stored(prediction, example, predictor.labels, more)))
                        file.flush()
                        bar.update()
                    found += batch
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_size = _halved(batch_size)
            free_memory()
    check_ids([prediction.id for prediction in found], list(by_id), predictor.kind)
    return found


def _without(examples: Sequence[Example], found: Sequence[Prediction]) -> list[Example]:
    predicted = {prediction.id for prediction in found}
    return [example for example in examples if example.id not in predicted]


def _halved(batch_size: int) -> int:
    if batch_size == 1:
        raise UserError(
            "memory is too small for one example at a time: lower train.max_length or "
            "eval.max_new_tokens, load in 4-bit, or use a smaller base; finished predictions are "
            "kept"
        )
    log.warning("memory ran out; the evaluation goes on with batches of %d", batch_size // 2)
    return batch_size // 2


def _stored(
    prediction: Prediction, example: Example, labels: Sequence[str], more: bool
) -> dict[str, object]:
    """Return the line of an unfinished file for a prediction.

    more: whether other predictions of its batch follow. A batch that is not whole in the file is
    computed again as a whole, because only then are the results the same, bit for bit.
    """
    known = {key: value for key, value in asdict(prediction).items() if value is not None}
    return {**known, "more": more, "gold": gold(example, labels), "text": example.asked[0]}


def _resume(partial: Path, key: str) -> list[Prediction]:
    """Return the finished predictions under the key, and leave only them in the file.

    A file of another key, a damaged line and a batch that is not whole are dropped.
    """
    begin, *texts = _texts(partial)
    beginning, kept = _signed({"key": key}), []
    for text in texts if f"{begin}\n" == beginning else ():
        line = _line(text)
        if line is None:
            break  # what follows a damaged line does not count
        kept.append(line)
    while kept and kept[-1].more:
        kept.pop()
    written = "".join(f"{line.text}\n" for line in kept)
    write_text(partial.parent, partial.name, beginning + written)
    return [line.prediction for line in kept]


def _texts(partial: Path) -> list[str]:
    """Return the lines of an unfinished file; one empty line if there is no file."""
    try:
        return read_text(partial.parent, partial.name, errors="replace").split("\n")
    except FileNotFoundError:
        return [""]
    except ValueError as error:
        raise UserError(f"{partial}: {error}; remove this file") from None


def _line(text: str) -> _Line | None:
    """Return a line as a prediction; None if it was torn or changed."""
    if _checksum(text[9:]) != text[:8]:
        return None
    try:
        values = parse_json(text[9:])
        more = values.get("more", True) if isinstance(values, dict) else True
        return _Line(_PREDICTION.validate_python(values), more is not False, text)
    except ValueError:  # the sum has no key, so a stranger can write any line
        return None


def _signed(line: Mapping[str, object]) -> str:
    """Return a line of an unfinished file: its checksum, and the values as JSON."""
    text = json.dumps(line, ensure_ascii=False)
    return f"{_checksum(text)} {text}\n"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"
