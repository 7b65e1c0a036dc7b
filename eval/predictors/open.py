"""Opens a model: the untouched base (zero-shot), a finished run, a checkpoint that others made, or a
baseline, for which torch is not imported.

Zero-shot means the language model head. An untrained head is never opened here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference.engine import Loaded
from llama_peft.inference.predict import Shots, predict, prompt_text
from llama_peft.model import backbone, lora
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import ModelConfig, TrainingCost
from llama_peft.run_folder.run import Run
from llama_peft.run_folder.weights import TunedModel, attach_adapter, load_tuned
from llama_peft.tasks import LANGUAGE_MODELLING
from llama_peft.tokens.prompts import PromptEncoder

from .baselines import open_baseline
from .lm_head import open_lm_head
from .predictor import Predictor
from .recognise import Adapter, Subject, on_base


def open_predictor(
    subject: Subject,
    recipe: Recipe,
    labels: tuple[str, ...],
    shots: Shots | None = None,
    parts: Mapping[str, Sequence[Example]] | None = None,
) -> Predictor:
    """Load a model. Raises UserError if it does not fit the task.

    labels: the labels of the task, in order. parts: the parts of the recipe's data, which a baseline
    is fitted on.
    """
    if subject.baseline is not None:
        return open_baseline(subject.baseline, recipe, labels, parts or {})
    if subject.run is not None:
        return _open_run(subject.run, recipe, labels)
    if subject.adapter is not None:
        return _open_adapter(subject.adapter, recipe, labels, shots)
    base = on_base(recipe, subject.name)
    if subject.kind in ("classifier", "reader"):
        from .encoders import open_classifier, open_reader

        is_reader = subject.kind == "reader"
        return open_reader(base) if is_reader else open_classifier(base, labels)
    model = backbone.load(base, LANGUAGE_MODELLING)
    counted = lora.count_loaded(model, LANGUAGE_MODELLING)
    config = ModelConfig(
        model_kind="zero-shot",
        recipe=recipe.name,
        model=subject.name,
        parameters={"total": counted.total, "trainable": 0, "base": counted.base},
        base_fingerprint=base_fingerprint(base),
    )
    return open_lm_head(Loaded.of(model, base), base, labels, "", config, shots)


def as_trained(recipe: Recipe, run: Run) -> Recipe:
    """Return the run's own recipe with what an evaluation chooses.

    These are the name, the data, the section `eval` and the batch size.
    """
    size = {"per_device_eval_batch_size": recipe.train.per_device_eval_batch_size}
    return run.written.changed(
        name=recipe.name, dataset=recipe.dataset, eval=recipe.eval, train=size
    )


def _open_run(run: Run, recipe: Recipe, labels: tuple[str, ...]) -> Predictor:
    if run.labels != labels:
        raise UserError(
            f"{run.folder}: this run was trained for the labels {', '.join(run.labels)}, but the "
            f"task's labels are {', '.join(labels)}"
        )
    loaded = load_tuned(run)
    tuned = replace(loaded, recipe=loaded.recipe.changed(eval=recipe.eval))
    opened = _of_tuned(tuned, run_config(run, recipe))
    return _on_states(opened, tuned, run)


def _on_states(opened: Predictor, tuned: TunedModel, run: Run) -> Predictor:
    """Return a predictor from the states beside a run, if it shares them."""
    from llama_peft.features.cache import cache_folder
    from llama_peft.inference.on_states import OnStates, shares_states

    if not shares_states(tuned.recipe, run.folder):
        return opened
    shared = OnStates(tuned, cache_folder(run.folder))
    return replace(opened, predict=shared.predict, prepare=shared.prepare)


def run_config(run: Run, recipe: Recipe) -> ModelConfig:
    """Return what results record about a run. recipe: that of the evaluation."""
    record = run.record
    name = recipe.kind.tuned_name + (" + LoRA" if run.recipe.lora is not None else "")
    return ModelConfig(
        model_kind=name,
        recipe=recipe.name,
        model=run.recipe.model.model_name_or_path,
        run=str(run.folder),
        parameters=record.parameters.model_dump(),
        base_fingerprint=record.base_fingerprint,
        adapter_sha256=record.weights_sha256,
        training=TrainingCost(
            wall_seconds=record.wall_seconds,
            peak_memory_bytes=record.peak_memory_bytes,
            steps=record.steps,
        ),
    )


def _of_tuned(tuned: TunedModel, config: ModelConfig) -> Predictor:
    return Predictor(
        config=config,
        labels=tuned.labels,
        predict=partial(predict, tuned),
        prompt=partial(prompt_text, tuned),
        length=lambda answer: len(tuned.encoder.answer(answer)),
        fits_threshold=tuned.recipe.fits_threshold,
        fits_temperature=tuned.recipe.kind.fits_temperature,
    )


def _open_adapter(
    adapter: Adapter, recipe: Recipe, labels: tuple[str, ...], shots: Shots | None
) -> Predictor:
    """Return the predictor of an adapter's head, or of the LM head if the adapter has none."""
    kind = adapter.kind
    if kind.has_labels and adapter.num_labels != kind.outputs(len(labels)):
        raise UserError(
            f"{adapter.folder}: the head of this adapter has {adapter.num_labels} labels, but "
            f"{_outputs(labels)}"
        )
    base = on_base(recipe, adapter.base, adapter.revision).changed(head=adapter.head)
    if kind.head is not None and adapter.is_librarys:
        from .encoders import open_classifier, open_reader

        is_reader = not kind.has_labels
        return open_reader(base, adapter) if is_reader else open_classifier(base, labels, adapter)
    model = backbone.load(base, kind.name, adapter.num_labels)
    total = model.num_parameters()
    model = attach_adapter(model, adapter.folder).eval()
    config = ModelConfig(
        model_kind=f"adapter, {kind.tuned_name}",
        recipe=recipe.name,
        model=adapter.base,
        adapter=str(adapter.folder),
        parameters={"total": total, "trainable": 0, "base": total},
        base_fingerprint=base_fingerprint(base),
        adapter_sha256=adapter.sha256,
    )
    if kind.head is None:
        return open_lm_head(Loaded.of(model, base), base, labels, "adapter,", config, shots)
    tokenizer = backbone.load_tokenizer(base.model)
    # The adapter's task, because a span head answers a generative task with spans of the passage.
    tuned = TunedModel(
        recipe=base if kind is base.kind else base.changed(task=kind.name),
        labels=labels,
        model=model,
        encoder=PromptEncoder(tokenizer, base.prompt),
    )
    return _of_tuned(tuned, config)


def _outputs(labels: tuple[str, ...]) -> str:
    return f"the task's labels are {', '.join(labels)}" if labels else "the task needs one number"
