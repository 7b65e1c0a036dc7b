"""What can be measured, opened: the untouched base (zero-shot), a finished run, or a checkpoint that somebody else made.

Zero-shot means the LM head: a classification task is answered by the verbalizer that the base finds likeliest, a question
by what it writes. An untrained head is never opened here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.errors import UserError
from llama_peft.model import backbone, lora, preflight
from llama_peft.model.fingerprint import base_fingerprint
from llama_peft.prefix_tree import decode as generation
from llama_peft.recipe import Head, Recipe, load_recipe
from llama_peft.run_folder import predict
from llama_peft.run_folder.layout import RECIPE
from llama_peft.run_folder.predict import Engine, Prediction, Shots
from llama_peft.run_folder.run import is_run, open_run
from llama_peft.run_folder.weights import TunedModel, attach_adapter, load_tuned
from llama_peft.tasks import LANGUAGE_MODELLING, TASKS
from llama_peft.tokens.prompts import PromptEncoder

from ..kinds import Kind
from . import foreign

TREE = Engine(generation.greedy, generation.loglikelihoods)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model and how it answers a task's examples."""

    kind: str
    """What the tables call it: zero-shot verbalizer, span head + LoRA, question answering checkpoint, ..."""
    labels: tuple[str, ...]
    predict: Callable[[Sequence[Example], int], Iterator[Prediction]]
    """From examples and the most to take at once."""
    prompt: Callable[[Example], str]
    """What the model reads of an example."""
    facts: dict[str, Any]
    """What results.json records of the model."""
    abstains: bool = False
    """Whether it scores "no answer" against a span, so that a threshold decides."""


def check_model(model: str, recipe: Recipe, kind: Kind | None = None) -> Kind:
    """What `model` is. Refuses in seconds, before data or weights are fetched, what cannot be opened for the task."""
    if kind is None and is_run(model):
        kind = "run"
    if kind == "run":
        open_run(Path(model))
    else:
        preflight.check(on_base(recipe, model), long=True)
        kind = kind or foreign.recognise(model, recipe.model.revision)
    if kind == "adapter":
        folder = foreign.fetch(model, recipe.model.revision)
        adapter = foreign.read_adapter(folder)
        preflight.check(on_base(recipe, adapter.base, adapter.revision), long=True)
    if kind == "run" and recipe.eval.num_fewshot:
        raise UserError(
            "eval.num_fewshot is for untuned models; a run was trained without examples"
        )
    fits = {"classifier": ("classification",), "reader": ("extractive_qa", "generative_qa")}
    if recipe.task not in fits.get(kind, (recipe.task,)):
        raise UserError(f"{model}: a {foreign.NAMES[kind]}, and the task is {recipe.task}")
    return kind


def open_predictor(
    model: str, recipe: Recipe, labels: tuple[str, ...], kind: Kind, shots: Shots | None = None
) -> Predictor:
    """Load what `model` names: a run folder of ours, a base (Hub id, folder, `tiny`) for its LM head, or another's checkpoint.

    `labels` are the task's, in order. Raises UserError where the model does not fit the task.
    """
    if kind == "run":
        return _open_run(Path(model), recipe, labels)
    if kind == "classifier":
        return _foreign(foreign.open_classifier(on_base(recipe, model), labels), labels)
    if kind == "reader":
        return _foreign(foreign.open_reader(on_base(recipe, model)), labels)
    if kind == "adapter":
        return _open_adapter(foreign.fetch(model, recipe.model.revision), recipe, labels, shots)
    base = on_base(recipe, model)
    loaded = backbone.load(base, LANGUAGE_MODELLING, for_training=False)
    counted = lora.count_loaded(loaded, LANGUAGE_MODELLING)
    facts = {
        "model": model,
        "parameters": {"total": counted.total, "trainable": 0, "base": counted.base},
        "base_fingerprint": base_fingerprint(base),
        "adapter_sha256": None,
    }
    way = f"{recipe.eval.num_fewshot}-shot" if shots else "zero-shot"
    return _by_lm_head(loaded, base, labels, way, facts, shots)


def on_base(recipe: Recipe, model: str, revision: str | None = None) -> Recipe:
    """The recipe with another base; revision: of it, where that is not the recipe's."""
    named = {"model_name_or_path": model, "revision": revision or recipe.model.revision}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=named)})


def as_trained(recipe: Recipe, run: Path) -> Recipe:
    """The run's own recipe with what a measurement chooses: its name, data, `eval` and batch size."""
    own = load_recipe(run / RECIPE)
    if own.task != recipe.task:  # refused when it is opened
        return recipe
    size = {"per_device_eval_batch_size": recipe.train.per_device_eval_batch_size}
    chosen = {
        "name": recipe.name,
        "dataset": recipe.dataset,
        "eval": recipe.eval,
        "train": own.train.model_copy(update=size),
    }
    return own.model_copy(update=chosen)


def _engine(recipe: Recipe, model: Any) -> Engine:
    """Bloom, which has no positions, takes distances from a plain mask, so that it cannot read a tree."""
    tree = recipe.eval.decoding == "prefix_tree" and predict.positions(model) is not None
    return TREE if tree else predict.PLAIN


def _foreign(opened: foreign.Opened, labels: tuple[str, ...]) -> Predictor:
    return Predictor(
        kind=opened.kind,
        labels=labels,
        predict=opened.predict,
        prompt=opened.prompt,
        facts=opened.facts,
        abstains=opened.abstains,
    )


def _open_run(folder: Path, recipe: Recipe, labels: tuple[str, ...]) -> Predictor:
    run = open_run(folder)
    if run.recipe.task != recipe.task:
        raise UserError(f"{folder}: trained for {run.recipe.task}, and the task is {recipe.task}")
    if run.labels != labels:
        raise UserError(
            f"{folder}: trained for the labels {', '.join(run.labels)}, and the task's are {', '.join(labels)}"
        )
    loaded = load_tuned(run)
    tuned = replace(loaded, recipe=loaded.recipe.model_copy(update={"eval": recipe.eval}))
    record = run.record
    facts = {
        "model": run.recipe.model.model_name_or_path,
        "run": str(folder),
        "parameters": record.parameters.model_dump(),
        "base_fingerprint": record.base_fingerprint,
        "adapter_sha256": record.weights_sha256,
        "training": record.model_dump(include={"wall_seconds", "peak_memory_bytes", "steps"}),
    }
    return Predictor(
        kind=recipe.kind.tuned_name + (" + LoRA" if run.recipe.lora is not None else ""),
        labels=labels,
        predict=partial(predict.predict, tuned, engine=_engine(recipe, tuned.model)),
        prompt=partial(
            predict.prompt_text, tuned.encoder, tuned.recipe, limit=predict.positions(tuned.model)
        ),
        facts=facts,
        abstains=recipe.kind.fits_threshold,
    )


def _open_adapter(
    folder: Path, recipe: Recipe, labels: tuple[str, ...], shots: Shots | None
) -> Predictor:
    """A PEFT adapter on the base that it names: its head's predictor, or for a causal one that of the LM head."""
    adapter = foreign.read_adapter(folder)
    own = next((place for place in (folder, folder.parent) if is_run(str(place))), None)
    # Plain PEFT's heads read the last token's state behind the last block, whatever the recipe says of its own.
    head = Head() if own is None else load_recipe(own / RECIPE).head
    base = on_base(recipe, adapter.base, adapter.revision).model_copy(update={"head": head})
    questions = {"extractive_qa", "generative_qa"}
    if (
        adapter.task not in (recipe.task, "generative_qa")
        and {adapter.task, recipe.task} != questions
    ):
        raise UserError(f"{folder}: an adapter for {adapter.task}, and the task is {recipe.task}")
    if adapter.task == "classification" and not adapter.num_labels:
        raise UserError(
            f"{folder}: holds no head named score or classifier, and a random one has no score"
        )
    if adapter.task == "classification" and adapter.num_labels != len(labels):
        raise UserError(
            f"{folder}: its head has {adapter.num_labels} labels, and the task's are {', '.join(labels)}"
        )
    if adapter.task == "extractive_qa" and adapter.is_librarys:
        return _foreign(foreign.open_reader(base, adapter), labels)
    if adapter.task == "classification" and adapter.is_librarys:
        return _foreign(foreign.open_classifier(base, labels, adapter), labels)
    model = backbone.load(base, adapter.task, adapter.num_labels, for_training=False)
    total = model.num_parameters()
    model = attach_adapter(model, folder).eval()
    facts = {
        "model": adapter.base,
        "adapter": str(folder),
        "parameters": {"total": total, "trainable": 0, "base": total},
        "base_fingerprint": base_fingerprint(base),
        "adapter_sha256": adapter.sha256,
    }
    if adapter.task == "generative_qa":
        return _by_lm_head(model, base, labels, "adapter,", facts, shots)
    encoder = PromptEncoder(backbone.load_tokenizer(base.model, for_training=False), base.prompt)
    tuned = TunedModel(
        recipe=base.model_copy(
            update={"task": adapter.task}
        ),  # its answers are spans of the passage
        labels=labels,
        model=model,
        encoder=encoder,
    )
    return Predictor(
        kind=f"adapter, {TASKS[adapter.task].tuned_name}",
        labels=labels,
        predict=partial(predict.predict, tuned),
        prompt=partial(predict.prompt_text, encoder, tuned.recipe),
        facts=facts,
        abstains=TASKS[adapter.task].fits_threshold,
    )


def _by_lm_head(
    model: Any,
    recipe: Recipe,
    labels: tuple[str, ...],
    way: str,
    facts: dict[str, Any],
    shots: Shots | None,
) -> Predictor:
    """A causal model as it answers without a head: by verbalizers, or in its own words."""
    encoder = PromptEncoder(
        backbone.load_tokenizer(recipe.model, for_training=False), recipe.prompt
    )
    if shots:
        facts = facts | {"fewshot_from": recipe.eval.fewshot_from}
    if recipe.kind.has_labels:
        kind, answer = "verbalizer", partial(_verbalize, model, encoder, labels, recipe, shots)
    else:
        kind, answer = "generative", partial(_write, model, encoder, recipe, shots)
    prompt = partial(
        predict.prompt_text, encoder, recipe, zero_shot=True, labels=labels, shots=shots,
        limit=predict.positions(model),
    )  # fmt: skip
    return Predictor(
        kind=f"{way} {kind}", labels=labels, predict=answer, prompt=prompt, facts=facts
    )


def _write(
    model: Any,
    encoder: PromptEncoder,
    recipe: Recipe,
    shots: Shots | None,
    examples: Sequence[Example],
    batch_size: int,
) -> Iterator[Prediction]:
    questions = [example for example in examples if isinstance(example, QuestionExample)]
    return predict.write_answers(
        model, encoder, questions, recipe, batch_size, _engine(recipe, model), shots
    )


def _verbalize(
    model: Any,
    encoder: PromptEncoder,
    labels: tuple[str, ...],
    recipe: Recipe,
    shots: Shots | None,
    examples: Sequence[Example],
    batch_size: int,
) -> Iterator[Prediction]:
    """The label whose verbalizer the LM head finds likeliest after the zero-shot prompt.

    A verbalizer of several tokens counts by the sum of their log-probabilities, as lm-evaluation-harness's `acc` does.
    """
    words = recipe.prompt.verbalizers or labels
    continuations = [encoder.continuation(word) for word in words]
    texts = [example for example in examples if isinstance(example, TextExample)]
    texts.sort(key=lambda example: -len(example.text))
    limit, prompts, cut = predict.positions(model), [], 0
    for example in texts:
        ids, whole = predict.verbalizer_prompt(encoder, recipe, example, labels, shots, limit)
        prompts.append(ids)
        cut += not whole
    bounds = f"train.max_length {recipe.train.max_length}"
    bounds += f" and the model's {limit} positions" if limit else ""
    predict.warn_of_cuts(cut, len(texts), "texts", bounds)
    size = 4 * batch_size
    for first in range(0, len(texts), size):
        chunk = texts[first : first + size]
        requests = [
            (prompt, continuation)
            for prompt in prompts[first : first + size]
            for continuation in continuations
        ]
        scores = _engine(recipe, model).loglikelihoods(model, requests)
        for i, example in enumerate(chunk):
            row = scores[i * len(words) : (i + 1) * len(words)]
            best = max(range(len(labels)), key=row.__getitem__)
            total = sum(math.exp(score - row[best]) for score in row)
            yield Prediction(
                id=example.id,
                prediction=labels[best],
                probabilities=tuple(math.exp(score - row[best]) / total for score in row),
                raw=words[best],
                more=i < len(chunk) - 1,
            )
