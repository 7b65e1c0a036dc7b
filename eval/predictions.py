"""Predictions of an evaluation, which resumes if it was interrupted.

It resumes only with the same key: the same model, adapter, prompts, data and settings.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama_peft import __version__
from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.inference.unfinished import ALONE, Share, predictions
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import PREDICTIONS, RESULTS
from llama_peft.run_folder.results import Results, read_results
from llama_peft.system.files import sum_of
from llama_peft.system.processes import job as processes

from .job import Job
from .lines import PredictionLine, Told, read_lines
from .metrics.columns import texts
from .predictors.predictor import Predictor
from .predictors.recognise import Subject
from .scoring import Material

log = logging.getLogger(__name__)


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
    read: str | None = None,
) -> str:
    """Return a digest of everything that the predictions of some parts depend on.

    validation: the examples that a threshold is fitted on; with them, the digest covers everything
    that the scores depend on. read: the `read_sum` of the parts, if it is known.
    """
    recipe, predictor = evaluation.job.recipe, evaluation.predictor
    adapter_config = evaluation.subject.adapter_config
    settings = {
        "facts": _facts(predictor),
        "adapter_config": _sum(adapter_config),
        "threshold": threshold_digest(recipe, validation),
        "kind": predictor.kind,
        "labels": predictor.labels,
        "eval": recipe.eval.model_dump(exclude={"limit", "splits"}),
        **(_of_base(recipe) if evaluation.subject.baseline is None else {}),
        **({} if predictor.fitted_on is None else {"fitted_on": predictor.fitted_on}),
        **({} if predictor.remote is None else {"engine": predictor.remote.identity}),
    }
    return _digest(settings, read or read_sum(predictor, parts))


def shared_key(evaluation: Evaluation, read: str) -> str | None:
    """Return a digest of what the predictions depend on, whatever the recipe trains: recipes of other
    tasks can share those of an untouched base. None if something was trained, or is elsewhere.

    read: the `read_sum` of the parts, from which also follows what is cut off a text.
    """
    recipe, predictor, subject = evaluation.job.recipe, evaluation.predictor, evaluation.subject
    if subject.kind != "causal" or subject.adapter is not None or predictor.remote is not None:
        return None
    base = _of_base(recipe)
    settings = {
        "version": __version__,
        "facts": _facts(predictor),
        "kind": predictor.kind,
        "labels": predictor.labels,
        "eval": recipe.eval.model_dump(exclude={"limit", "splits"}),
        "batch": recipe.train.per_device_eval_batch_size,
        "use_cpu": recipe.train.use_cpu,  # what it cost depends on that
        **{key: base[key] for key in ("quantization", "dtype", "attention", "prompt")},
        # Of several labels, `read` has the prompt about the first, and others may be cut.
        **({"lengths": base["lengths"]} if recipe.kind.side == "label_sets" else {}),
    }
    return _digest(settings, read)


def _facts(predictor: Predictor) -> dict[str, object]:
    return predictor.config.model_dump(include={"model", "base_fingerprint", "adapter_sha256"})


def _digest(settings: Mapping[str, object], read: str) -> str:
    return hashlib.sha256(json.dumps([settings, read], sort_keys=True).encode()).hexdigest()


def read_sum(predictor: Predictor, parts: Mapping[str, Sequence[Example]]) -> str:
    """Return a digest of the examples of some parts and of what a model reads of them, which stands for
    its template, its tokenizer and the worked examples.
    """
    digest = hashlib.sha256()
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


class Lent(NamedTuple):
    """Predictions of another run that depend on the same, in the order of the examples."""

    results: Results
    predictions: Iterator[Prediction]


def lent(lenders: Iterable[Path], key: str | None, examples: Sequence[Example]) -> Lent | None:
    """Return the predictions of this shared key in one of some folders; None if none has them."""
    for folder in lenders if key is not None else ():
        try:
            results = read_results(folder / RESULTS)
            lines = read_lines(folder / PREDICTIONS)
            told = Told.of(lines, ())
        except (OSError, ValueError, UserError):
            continue
        ids = texts(example.id for example in examples)
        order = np.argsort(ids, kind="stable")
        if results.config.shared_key == key and np.array_equal(told.ids, ids[order]):
            log.info("the predictions are those of %s, which depend on the same", folder)
            return Lent(results, map(_prediction, lines.at(np.argsort(order))))
    return None


def _prediction(line: PredictionLine) -> Prediction:
    """Return the prediction of a line that no threshold has changed."""
    said, chances = line.prediction, line.probabilities
    return Prediction(
        id=line.id,
        prediction=tuple(said) if isinstance(said, list) else said,
        probabilities=None if chances is None else tuple(chances),
        no_answer_probability=line.no_answer_probability,
        raw=line.raw or "",
        start=line.start,
    )


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
    batch_size: int,
    name: str | None = None,
) -> Iterator[Prediction]:
    """Yield one prediction for each example, in their order, while only one portion is in memory.

    Those in the file `partial` are not computed again, and several processes of one command share out
    the others. name: what progress calls the work; None takes the kind of the predictor. Raises
    UserError as `unfinished.predictions`.
    """
    named = name or predictor.kind
    share = Share(processes.rank(), processes.count()) if processes.shares_work() else ALONE
    portions = predictions(predictor.predict, examples, partial, key, batch_size, named, share)
    return chain.from_iterable(portions)
