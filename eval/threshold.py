"""The thresholds of a model: on "no answer", or on each label of a text that can have several; and the
temperature of the probabilities of labels.

They are fitted on validation examples, and kept with the run.
"""

import logging
from collections.abc import Sequence

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference.predict import Prediction, tempered_each
from llama_peft.recipe import Recipe
from llama_peft.run_folder.layout import THRESHOLD, UNFINISHED_VALIDATION
from llama_peft.run_folder.ownership import is_our_file
from llama_peft.run_folder.run import Run
from llama_peft.run_folder.threshold import UNFITTED, Threshold, run_threshold, write_threshold
from llama_peft.system.processes.job import is_main

from .metrics.confidence import confidence_evidence, decision_evidence, fit_temperature
from .metrics.measure import texts_of
from .metrics.sets_and_numbers import fit_label_thresholds
from .metrics.squad_v2 import fit_threshold
from .predictions import Evaluation, evaluation_key, predict, threshold_digest
from .predictors.predictor import Predictor
from .scoring import gold, recipe_parts

log = logging.getLogger(__name__)

FEW = 50
"""On fewer validation examples a threshold is uncertain, and no temperature is fitted."""


def validation_examples(evaluation: Evaluation) -> Sequence[Example]:
    """Return the examples that a threshold or a temperature is fitted on; none if the model needs none.

    If a run is evaluated on a file, they are the validation part of the recipe's data.
    """
    if not (evaluation.predictor.fits_threshold or evaluation.predictor.fits_temperature):
        return []
    job, parts = evaluation.job, evaluation.found.dataset.parts
    if evaluation.subject.run is not None or evaluation.subject.baseline is not None:
        try:
            parts = recipe_parts(job, evaluation.found)
        except UserError as error:
            log.warning("no threshold can be fitted on the recipe's own data: %s", error)
    found = parts.get("validation", [])
    if evaluation.predictor.fits_temperature and len(found) < FEW:
        log.info(
            "%d validation examples are fewer than %d, so no temperature is fitted to the probabilities",
            *(len(found), FEW),
        )
        return found if evaluation.predictor.fits_threshold else []
    return found


def fitted_threshold(evaluation: Evaluation, validation: Sequence[Example]) -> Threshold | None:
    """Return above which no-answer probability a model gives no answer, or above which
    probability a model gives each label, or the temperature of a model that gives one label.

    It is fitted on the validation examples. If there are none, a threshold is 0.5, and there is no
    temperature. A run keeps what was fitted on the whole validation part of its own recipe. None:
    the model needs none.
    """
    found = _fitted(evaluation, validation)
    if found is not None and validation and len(validation) < FEW:
        log.warning(
            "the threshold is fitted on %d validation examples only, so it is uncertain: give %d or more",
            *(len(validation), FEW),
        )
    return found


def _fitted(evaluation: Evaluation, validation: Sequence[Example]) -> Threshold | None:
    is_needed = evaluation.predictor.fits_threshold
    if not is_needed and not evaluation.predictor.fits_temperature:
        return None
    kept = _kept(evaluation, validation)
    if kept is not None or not (validation or is_needed):
        return kept
    if not validation:
        labels = evaluation.predictor.labels
        what = "each label" if labels else "no answer"
        log.warning(
            "there are no validation examples, so %s is given above a probability of 0.5", what
        )
        if labels:
            return Threshold(label_thresholds=[UNFITTED] * len(labels))
        return Threshold(no_answer_threshold=UNFITTED)
    job, predictor = evaluation.job, evaluation.predictor
    key = evaluation_key(evaluation, {"validation": validation})
    partial = job.output / UNFINISHED_VALIDATION
    size = job.recipe.train.per_device_eval_batch_size
    name = f"{predictor.kind}, validation"
    found = predict(predictor, validation, partial, key, size, name)
    threshold = _fit([*found], validation, predictor)
    run = evaluation.subject.run
    if run is not None and is_main() and not job.fetched and job.engine is None:
        _keep(run, job.recipe, validation, threshold)
    return threshold


def _kept(evaluation: Evaluation, validation: Sequence[Example]) -> Threshold | None:
    """Return the threshold that a run keeps, if it was fitted on the same examples."""
    run = evaluation.subject.run
    if run is None:
        return None
    try:
        kept = run_threshold(run)
    except UserError as error:
        if not validation:
            raise
        log.warning("%s; it is fitted again now", error)
        return None
    digest = threshold_digest(evaluation.job.recipe, validation)
    fits = kept is not None and (kept.fitted_for == digest or not validation)
    return kept if fits else None


def _fit(
    predictions: Sequence[Prediction], validation: Sequence[Example], predictor: Predictor
) -> Threshold:
    labels = predictor.labels
    chances = {one.id: one.probabilities or () for one in predictions}
    if predictor.fits_temperature and not predictor.fits_threshold:
        names = {example.id: str(gold(example, labels)) for example in validation}
        fitted = fit_temperature(confidence_evidence(chances, names, labels))
        return Threshold(temperature=fitted, metric="log_loss")
    golds = {example.id: texts_of(gold(example, labels)) for example in validation}
    if labels:
        temperature = None
        if len(validation) >= FEW:
            temperature = fit_temperature(decision_evidence(chances, golds, labels))
            chances = {id_: tempered_each(own, temperature) for id_, own in chances.items()}
        limits = fit_label_thresholds(chances, golds, labels)
        return Threshold(label_thresholds=limits, temperature=temperature)
    limit = fit_threshold(
        {one.id: one.raw for one in predictions},
        golds,
        {one.id: one.no_answer_probability or 0.0 for one in predictions},
    )
    return Threshold(no_answer_threshold=limit)


def _keep(run: Run, recipe: Recipe, validation: Sequence[Example], threshold: Threshold) -> None:
    """Write a threshold into its run, if the run's own recipe would give the same one."""
    digest = threshold_digest(recipe, validation)
    own = run.written
    same = {"labels": own.dataset.labels, "label_positions": own.dataset.label_positions}
    if (
        own.dataset != recipe.dataset.model_copy(update=same)
        or threshold_digest(own, validation) != digest
    ):
        return
    record = threshold.model_copy(
        update={
            "fitted_on": len(validation),
            "fitted_for": digest,
            "adapter_sha256": run.record.weights_sha256,
        }
    )
    if not is_our_file(run.folder, THRESHOLD):
        log.warning(
            "%s: llama-eval did not write this file, so the fitted threshold is not kept",
            run.folder / THRESHOLD,
        )
        return
    try:
        write_threshold(run.folder, record)
    except OSError as error:  # a run of somebody else: its threshold is fitted each time
        log.warning("%s: the fitted threshold is not kept (%s)", run.folder, error.strerror)
