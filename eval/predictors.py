"""What can be measured, opened: the untouched base (zero-shot) or a finished run.

Zero-shot means the LM head: a classification task is answered by the verbalizer that the base finds likeliest, a question
by what it writes. An untrained head is never opened here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval import generation
from llama_peft import backbone, checkpoint, predict, preflight
from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.predict import Engine, Prediction
from llama_peft.prompts import PromptEncoder
from llama_peft.recipe import Recipe, UserError

TREE = Engine(generation.greedy, generation.loglikelihoods)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model and how it answers a task's examples."""

    kind: str
    """zero-shot verbalizer, zero-shot generative, classification head, span head or tuned generative."""
    labels: tuple[str, ...]
    predict: Callable[[Sequence[Example]], Iterator[Prediction]]
    facts: dict[str, Any]
    """What results.json records of the model."""


def is_run(model: str) -> bool:
    """Whether a name is a run folder, finished or not."""
    return (Path(model) / "recipe.yaml").is_file()


def open_predictor(model: str, recipe: Recipe, labels: tuple[str, ...]) -> Predictor:
    """Load what `model` names: a run folder of ours, or a base (Hub id, folder, `tiny`) for zero-shot.

    `labels` are the task's, in order. Raises UserError where the model does not fit the task.
    """
    if is_run(model):
        return _open_run(Path(model), recipe, labels)
    return _open_zero_shot(_on_base(recipe, model), labels)


def check_model(model: str, recipe: Recipe) -> None:
    """Refuse in seconds, before data or weights are fetched, a model that cannot be opened."""
    if is_run(model):
        checkpoint.read_facts(Path(model))
    elif (Path(model) / "adapter_config.json").is_file():
        raise UserError(f"{model}: an adapter alone; give the run folder that it belongs to")
    else:
        preflight.check(_on_base(recipe, model), long=True)


def _on_base(recipe: Recipe, model: str) -> Recipe:
    """The recipe with another base."""
    base = recipe.model.model_copy(update={"model_name_or_path": model})
    return recipe.model_copy(update={"model": base})


def _open_run(folder: Path, recipe: Recipe, labels: tuple[str, ...]) -> Predictor:
    run = checkpoint.load_run(folder)
    if run.recipe.task != recipe.task:
        raise UserError(f"{folder}: trained for {run.recipe.task}, and the task is {recipe.task}")
    if run.labels != labels:
        raise UserError(
            f"{folder}: trained for the labels {', '.join(run.labels)}, and the task's are {', '.join(labels)}"
        )
    kinds = {
        "classification": "classification head",
        "extractive_qa": "span head",
        "generative_qa": "tuned generative",
    }
    kind = kinds[recipe.task] + (" + LoRA" if run.recipe.lora is not None else "")
    sums = run.facts["files"]
    facts = {
        "model": run.recipe.model.model_name_or_path,
        "run": str(folder),
        "parameters": run.facts["parameters"],
        "base_fingerprint": run.facts["base_fingerprint"],
        "adapter_sha256": sums.get(
            "adapter/adapter_model.safetensors", sums.get("head.safetensors")
        ),
        "training": {key: run.facts[key] for key in ("wall_seconds", "peak_memory_bytes", "steps")},
    }
    engine = TREE if recipe.eval.decoding == "prefix_tree" else predict.PLAIN
    return Predictor(
        kind=kind, labels=labels, predict=partial(predict.predict, run, engine=engine), facts=facts
    )


def _open_zero_shot(recipe: Recipe, labels: tuple[str, ...]) -> Predictor:
    model = backbone.load(recipe, "generative_qa")
    counted = backbone.count_loaded(model, "generative_qa")
    encoder = PromptEncoder(backbone.load_tokenizer(recipe.model), recipe.prompt)
    engine = TREE if recipe.eval.decoding == "prefix_tree" else predict.PLAIN
    facts = {
        "model": recipe.model.model_name_or_path,
        "parameters": {"total": counted.total, "trainable": 0, "base": counted.base},
        "base_fingerprint": checkpoint.base_fingerprint(recipe),
        "adapter_sha256": None,
    }
    if recipe.task == "classification":
        kind, answer = (
            "zero-shot verbalizer",
            partial(verbalize, model, encoder, labels, recipe, engine),
        )
    else:
        kind, answer = "zero-shot generative", partial(_write, model, encoder, recipe, engine)
    return Predictor(kind=kind, labels=labels, predict=answer, facts=facts)


def _write(
    model: Any,
    encoder: PromptEncoder,
    recipe: Recipe,
    engine: Engine,
    examples: Sequence[Example],
) -> Iterator[Prediction]:
    questions = [example for example in examples if isinstance(example, QuestionExample)]
    return predict.write_answers(model, encoder, questions, recipe, engine)


def verbalize(
    model: Any,
    encoder: PromptEncoder,
    labels: tuple[str, ...],
    recipe: Recipe,
    engine: Engine,
    examples: Sequence[Example],
) -> Iterator[Prediction]:
    """The label whose verbalizer the LM head finds likeliest after the zero-shot prompt.

    A verbalizer of several tokens counts by the sum of their log-probabilities, as lm-evaluation-harness's `acc` does.
    """
    words = [encoder.continuation(word) for word in recipe.prompt.verbalizers or labels]
    texts = [example for example in examples if isinstance(example, TextExample)]
    texts.sort(key=lambda example: -len(example.text))
    size = 4 * recipe.train.per_device_eval_batch_size
    for first in range(0, len(texts), size):
        chunk = texts[first : first + size]
        requests = []
        for example in chunk:
            prompt = encoder.zero_shot(example.text, recipe.train.max_length)
            requests += [(prompt, word) for word in words]
        scores = engine.loglikelihoods(model, requests)
        for i, example in enumerate(chunk):
            row = scores[i * len(words) : (i + 1) * len(words)]
            best = max(range(len(labels)), key=row.__getitem__)
            total = sum(math.exp(score - row[best]) for score in row)
            yield Prediction(
                id=example.id,
                prediction=labels[best],
                probabilities=tuple(math.exp(score - row[best]) / total for score in row),
                raw=(recipe.prompt.verbalizers or labels)[best],
            )
