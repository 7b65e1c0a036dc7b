"""One evaluation: from a model and examples to predictions.jsonl and results.json."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from llama_peft.data import Example, mark_given, with_fields
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction
from llama_peft.model import backbone
from llama_peft.model.room import check_processes
from llama_peft.run_folder.layout import RESULTS, UNFINISHED, UNFINISHED_PREDICTIONS
from llama_peft.run_folder.ownership import check_evaluation_folder
from llama_peft.run_folder.results import Costs, ModelConfig, Results, read_results
from llama_peft.system.files import remove_file
from llama_peft.system.lock import only_process
from llama_peft.system.memory import peak_memory, reset_peak
from llama_peft.system.processes import job as processes
from llama_peft.system.processes.job import numbered_files
from llama_peft.system.processes.launch import launch
from llama_peft.system.sequences.views import Joined

from . import trained_on
from .fewshot import with_best_number, worked_examples
from .job import Job
from .lines import spooled
from .predictions import Evaluation, Lent, evaluation_key, lent, predict, read_sum, shared_key
from .predictors.costs import Meter
from .predictors.engines.open import open_served
from .predictors.open import as_trained, open_predictor
from .predictors.predictor import Predictor
from .predictors.recognise import Subject, identify
from .scoring import Material, finish, gold, lines_of, material, recipe_parts, too_long
from .threshold import fitted_threshold, validation_examples

log = logging.getLogger(__name__)


def run(
    job: Job,
    show: int = 0,
    again: bool = True,
    subject: Subject | None = None,
    lenders: Iterable[Path] = (),
) -> Results | None:
    """Evaluate a model, write predictions and results into `job.output`, and return the results.

    show: how many prompts to log with the model's outputs. again: whether to evaluate even if
    `job.output` holds the results of the same evaluation. subject: the job's model, if it is
    identified already. lenders: folders of results whose predictions are taken if they depend on the
    same. Of several processes each predicts its share; the first one scores all, and
    the others return None. Raises UserError, before any example is predicted, if model, data and
    task do not fit together, or if `job.output` holds files that are not ours.
    """
    check_evaluation_folder(job.output)
    started = time.monotonic()
    reset_peak()
    subject = subject or identify_job(job)
    job, found = _with_examples(job, subject)
    seen = None
    if subject.run is not None:
        seen = trained_on.check(subject.run, found, job.recipe, strict=job.data_file is None)
    opened = _open(job, subject, found)
    evaluation = Evaluation(job=job, subject=subject, found=found, predictor=opened)
    with closing(opened), only_process(job.output, "evaluating", not processes.shares_work()):
        evaluation = with_best_number(evaluation, again)
        job, predictor = evaluation.job, evaluation.predictor
        validation = validation_examples(evaluation)
        read = read_sum(predictor, found.parts)
        key = evaluation_key(evaluation, found.parts, validation, read)
        if not again and (finished := _finished(job.output, key)):
            log.info("%s: this evaluation is finished already", job.output)
            return finished
        _warn_of_length(evaluation)
        meter = Meter(predictor)
        meter.fit()
        if job.data_file is None:  # of several processes one computes it, for the same bits
            meter.prepare(Joined([found.examples, validation]))
        threshold = fitted_threshold(evaluation, validation)
        shared = shared_key(evaluation, read)
        other = lent(lenders, shared, found.examples)
        predictions = _measured(evaluation, meter, key) if other is None else other.predictions
        if processes.shares_work() and not processes.is_main():
            deque(predictions, maxlen=0)  # they are in its file then
            return None
        first = [*islice(predictions, show)]
        _show(evaluation, found.examples[:show], first)
        lines = lines_of(chain(first, predictions), found, threshold, predictor.prompt)
        with spooled(job.output, lines) as kept:
            peak, costs = _spent(meter, subject, other)
            results = finish(
                job,
                found,
                kept,
                _config(meter, seen, key, shared),
                started=started,
                threshold=threshold,
                peak_memory_bytes=peak,
                costs=costs,
                dtype=_dtype(job, subject),
            )
        if not processes.shares_work():  # else the others may still read it
            remove_unfinished(job.output)
    return results


def run_in(count: int, jobs: Sequence[Job], words: Sequence[str]) -> None:
    """Run the command of some words, which evaluates these jobs, in `count` processes of this machine.

    Each predicts its share. They meet in the files of unfinished predictions, so they need no network.
    Raises what `launch` raises, and UserError if there is no room for them or a server answers.
    """
    for job in jobs:
        if job.engine is not None:
            raise UserError(
                f"--processes {count}: --engine answers in place of processes: leave one of the two "
                "away, and set --concurrency for more requests at a time"
            )
        check_processes(job.recipe, count)
    with ExitStack() as held:
        for job in jobs:
            held.enter_context(only_process(job.output, "evaluating"))
        launch(words, count, __package__)
        for job in jobs:
            remove_unfinished(job.output)


def remove_unfinished(output: Path) -> None:
    """Remove what a finished evaluation needs no longer, by whatever processes it was made."""
    for name in UNFINISHED:
        for path in numbered_files(output / name):
            remove_file(output, path.name)


def identify_job(job: Job) -> Subject:
    """Return what the model of a job is. Raises UserError as `identify`."""
    return identify(job.model, job.recipe, job.kind, job.base, job.engine is not None)


def _with_examples(job: Job, subject: Subject) -> tuple[Job, Material]:
    """Return the job with the recipe that reads its data, and the examples. A run keeps what its
    training fixed.
    """
    recipe = mark_given(job.recipe, job.given or ())
    if subject.run is not None:
        recipe = as_trained(recipe, subject.run)
    found = material(replace(job, recipe=recipe))
    settled = with_fields(recipe, found.dataset)
    if subject.run is not None and settled != recipe:
        raise UserError(
            f"{subject.run.folder}: this run reads one text, but dataset.columns.text names several "
            "columns that the data have: keep one of them"
        )
    return replace(job, recipe=settled), found


def _warn_of_length(evaluation: Evaluation) -> None:
    """Log how many right answers are longer than what the model may answer."""
    predictor, recipe = evaluation.predictor, evaluation.job.recipe
    if predictor.length is None:
        return
    spans = predictor.fits_threshold and not recipe.eval.fit_no_answer_threshold
    if lost := too_long(evaluation.found.examples, predictor.length, recipe, spans):
        log.warning("%s", lost)


def _measured(evaluation: Evaluation, meter: Meter, key: str) -> Iterator[Prediction]:
    """Yield the prediction of each example, measured."""
    job = evaluation.job
    size = job.recipe.train.per_device_eval_batch_size
    partial = job.output / UNFINISHED_PREDICTIONS
    return predict(meter.measured, evaluation.found.examples, partial, key, size)


def _spent(meter: Meter, subject: Subject, other: Lent | None) -> tuple[int | None, Costs]:
    """Return the peak of the memory, and the other costs; those of who has lent its predictions."""
    if other is not None:
        return other.results.peak_memory_bytes, other.results.costs
    here = meter.predictor.remote is None
    peak = peak_memory(of_gpu=subject.baseline is None) if here else None
    return peak, meter.costs(subject)


def _config(meter: Meter, seen: dict[str, int] | None, key: str, shared: str | None) -> ModelConfig:
    """Return what results record about a model that has predicted."""
    predictor, engine = meter.predictor, None
    if predictor.remote is not None:
        counted = {"predictions": meter.predictions}
        engine = predictor.remote.record().model_copy(update=counted)
    known = {"seen_in_training": seen, "key": key, "shared_key": shared, "engine": engine}
    return predictor.config.model_copy(update=known)


def _dtype(job: Job, subject: Subject) -> str | None:
    """Return the type that a model computed in; of vLLM the one that it was told, if any. None if
    there is no model here.
    """
    if subject.baseline is not None or (job.engine and job.engine.name == "openai"):
        return None
    return job.recipe.model.dtype if job.engine else backbone.dtype_name(job.recipe)


def _open(job: Job, subject: Subject, found: Material) -> Predictor:
    """Open the model; a baseline with the parts of the recipe's data, and of a file in their place."""
    if subject.baseline is None:
        shots = worked_examples(job, found)
        if job.engine is not None:
            return open_served(subject, job.recipe, found.labels, job.engine, shots)
        return open_predictor(subject, job.recipe, found.labels, shots)
    parts = recipe_parts(job, found) | found.dataset.parts
    return open_predictor(subject, job.recipe, found.labels, parts=parts)


def _finished(output: Path, key: str) -> Results | None:
    """Return the results of exactly this evaluation, if a folder holds them."""
    try:
        results = read_results(output / RESULTS)
    except (OSError, ValueError, UserError):
        return None
    return results if results.config.key == key else None


def _show(
    evaluation: Evaluation, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> None:
    """Log what the model read, and its output."""
    predicted = {prediction.id: prediction for prediction in predictions}
    for example in examples:
        its = predicted[example.id]
        log.info("--- %s", example.id)
        for line in evaluation.predictor.prompt(example).split("\n"):
            log.info("| %s", line)
        log.info(">>> %s", _said(its, evaluation.found.labels))
        truth = gold(example, evaluation.found.labels)
        log.info("prediction %r, gold %r", its.prediction, truth)


def _said(its: Prediction, labels: Sequence[str]) -> str:
    """Return what a model put out: its words, or if it writes none the probabilities or the number."""
    if its.probabilities is not None:
        chances = zip(labels, its.probabilities, strict=True)
        return ", ".join(f"{label} {chance:.4f}" for label, chance in chances)
    if isinstance(its.prediction, float):
        return f"{its.prediction:.4f}"
    doubt = its.no_answer_probability
    return repr(its.raw) if doubt is None else f"{its.raw!r}, no answer {doubt:.4f}"
