"""Predictions of an evaluation, which resumes if it was interrupted.

It resumes only with the same key: the same model, adapter, prompts, data and settings.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from llama_peft.data import Example
from llama_peft.inference.predict import Prediction
from llama_peft.inference.unfinished import ALONE, Share, predictions
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.system.files import sum_of
from llama_peft.system.processes import job as processes

from .job import Job
from .metrics.columns import texts
from .predictors.predictor import Predictor
from .predictors.recognise import Subject
from .scoring import Material


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
    settings = {
        "facts": facts.model_dump(include={"model", "base_fingerprint", "adapter_sha256"}),
        "adapter_config": _sum(adapter_config),
        "threshold": threshold_digest(recipe, validation),
        "kind": predictor.kind,
        "labels": predictor.labels,
        "eval": recipe.eval.model_dump(exclude={"limit", "splits"}),
        **(_of_base(recipe) if evaluation.subject.baseline is None else {}),
        **({} if predictor.fitted_on is None else {"fitted_on": predictor.fitted_on}),
        **({} if predictor.remote is None else {"engine": predictor.remote.identity}),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in sorted(parts):
        ids = texts(example.id for example in parts[part])
        for place in np.argsort(ids, kind="stable").tolist():
            example = parts[part][place]
            read = [part, asdict(example), predictor.prompt(example)]
            digest.update(json.dumps(read, sort_keys=True).encode())
    return digest.hexdigest()


def _of_base(recipe: Recipe) -> dict[str, object]:
    """Return the settings of the base, and of the text that it reads."""
    return {
        "quantization": recipe.quantization.model_dump(),
        "dtype": backbone.dtype_name(recipe),
        "attention": recipe.model.attn_implementation,
        "head": recipe.head.model_dump(),
        "prompt": recipe.prompt.model_dump(),
        "lengths": [recipe.train.max_length, recipe.train.doc_stride],
    }


def _sum(path: Path | None) -> str | None:
    return None if path is None else sum_of(path.parent, path.name)


def threshold_digest(recipe: Recipe, validation: Sequence[Example]) -> str:
    """Return a digest of what a fitted threshold depends on, beside the model."""
    settings = [recipe.eval.n_best_size, recipe.eval.max_answer_length]
    if recipe.eval.fit_no_answer_threshold:
        settings.append(recipe.eval.max_new_tokens)
    fitted_on = [settings, [example.id for example in validation]]
    return hashlib.sha256(json.dumps(fitted_on).encode()).hexdigest()


def predict(
    predictor: Predictor,
    examples: Sequence[Example],
    partial: Path,
    key: str,
    batch_size: int = 32,
    name: str | None = None,
) -> list[Prediction]:
    """Return one prediction for each example, in their order. Those in the file `partial` are not
    computed again, and several processes of one command share out the others. name: what progress
    calls the work; None takes the kind of the predictor. Raises UserError as `unfinished.predictions`.
    """
    return [*predicted(predictor, examples, partial, key, batch_size, name)]


def predicted(
    predictor: Predictor,
    examples: Sequence[Example],
    partial: Path,
    key: str,
    batch_size: int = 32,
    name: str | None = None,
) -> Iterator[Prediction]:
    """Yield what `predict` returns, while only one portion is in memory."""
    named = name or predictor.kind
    share = Share(processes.rank(), processes.count()) if processes.is_launched() else ALONE
    portions = predictions(predictor.predict, examples, partial, key, batch_size, named, share)
    return chain.from_iterable(portions)
