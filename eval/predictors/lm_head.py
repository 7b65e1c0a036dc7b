"""How a causal model answers with its own language model head.

A text gets the label whose verbalizer is likeliest after the zero-shot prompt. A question gets the
answer that the model writes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from transformers import PreTrainedModel

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.inference.predict import (
    Prediction,
    Shots,
    question_prompt,
    questions,
    texts,
    warn_of_cuts,
    write_answers,
)
from llama_peft.model import backbone
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import ModelConfig
from llama_peft.tokens import generate
from llama_peft.tokens.prompts import PromptEncoder

from .predictor import Predictor


def open_lm_head(
    model: PreTrainedModel,
    recipe: Recipe,
    labels: tuple[str, ...],
    way: str,
    config: ModelConfig,
    shots: Shots | None,
) -> Predictor:
    """Return the predictor of a loaded causal model.

    way: the first word of its name in tables. config: what results record about it; its name and
    the source of the worked examples are added.
    """
    tokenizer = backbone.load_tokenizer(recipe.model, for_training=False)
    asked = _Asked(
        model=model,
        encoder=PromptEncoder(tokenizer, recipe.prompt),
        recipe=recipe,
        labels=labels,
        shots=shots,
    )
    name = f"{way} {'verbalizer' if labels else 'generative'}"
    source = recipe.eval.fewshot_from if shots else None
    return Predictor(
        config=config.model_copy(update={"model_kind": name, "fewshot_from": source}),
        labels=labels,
        predict=partial(_verbalize if labels else _write, asked),
        prompt=partial(_prompt_text, asked),
        length=lambda answer: len(asked.encoder.answer(answer)),
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A causal model, and all that its prompts depend on."""

    model: PreTrainedModel
    encoder: PromptEncoder
    recipe: Recipe
    labels: tuple[str, ...]
    """Empty for questions."""
    shots: Shots | None

    @property
    def limit(self) -> int | None:
        return generate.positions(self.model)

    @property
    def words(self) -> Sequence[str]:
        """The verbalizers, in the order of the labels."""
        return self.recipe.prompt.verbalizers or self.labels

    @cached_property
    def continuations(self) -> list[tuple[int, ...]]:
        """The token ids of the verbalizers."""
        return [self.encoder.verbalizer(word) for word in self.words]


def _write(
    asked: _Asked, examples: Sequence[Example], batch_size: int
) -> Iterator[list[Prediction]]:
    return write_answers(
        asked.model, asked.encoder, questions(examples), asked.recipe, batch_size, asked.shots
    )


def _verbalize(
    asked: _Asked, examples: Sequence[Example], batch_size: int
) -> Iterator[list[Prediction]]:
    """Yield the label of each text, long texts first.

    A verbalizer of several tokens counts with the sum of their log-probabilities, as `acc` of
    lm-evaluation-harness does.
    """
    continuations = asked.continuations
    ordered = sorted(texts(examples), key=lambda example: -len(example.text))
    prompts = _verbalizer_prompts(asked, ordered)
    size = 4 * batch_size
    for first in range(0, len(ordered), size):
        chunk = ordered[first : first + size]
        requests = [
            (prompt, continuation)
            for prompt in prompts[first : first + size]
            for continuation in continuations
        ]
        decoding = asked.recipe.eval.decoding
        scores = generate.loglikelihoods(asked.model, requests, decoding=decoding)
        count = len(continuations)
        yield [
            _likeliest(asked, example, scores[i * count : (i + 1) * count])
            for i, example in enumerate(chunk)
        ]


def _likeliest(asked: _Asked, example: TextExample, scores: Sequence[float]) -> Prediction:
    """Return the label with the highest score. The scores are log-probabilities of verbalizers."""
    best = max(range(len(asked.labels)), key=scores.__getitem__)
    total = sum(math.exp(score - scores[best]) for score in scores)
    return Prediction(
        id=example.id,
        prediction=asked.labels[best],
        probabilities=tuple(math.exp(score - scores[best]) / total for score in scores),
        raw=asked.words[best],
    )


def _verbalizer_prompts(asked: _Asked, examples: Sequence[TextExample]) -> list[tuple[int, ...]]:
    """Return the prompt of each text. Logs how many texts are cut."""
    prompts, cut = [], 0
    for example in examples:
        ids, whole = _verbalizer_prompt(asked, example)
        prompts.append(ids)
        cut += not whole
    bounds = f"train.max_length {asked.recipe.train.max_length}"
    bounds += f" and the model's {asked.limit} positions" if asked.limit else ""
    warn_of_cuts(cut, len(prompts), "texts", bounds)
    return prompts


def _verbalizer_prompt(asked: _Asked, example: TextExample) -> tuple[tuple[int, ...], bool]:
    """Return the prompt before a verbalizer, and whether it holds the whole text.

    It leaves room for the longest verbalizer.
    """
    encoder, words = asked.encoder, asked.words
    shots = texts(asked.shots(example)) if asked.shots else []
    worked = [(shot.values, words[shot.label]) for shot in shots]
    whole = encoder.zero_shot(example.values, shots=worked)
    longest = max(map(len, asked.continuations))
    room = len(whole) if asked.limit is None else asked.limit - longest
    ids = encoder.zero_shot(example.values, asked.recipe.train.max_length, worked, room)
    return ids, ids == whole


def _prompt_text(asked: _Asked, example: Example) -> str:
    """Return what the model reads of an example, as text with its control tokens."""
    if isinstance(example, QuestionExample):
        ids, _ = question_prompt(asked.encoder, asked.recipe, example, asked.shots, asked.limit)
    else:
        ids, _ = _verbalizer_prompt(asked, example)
    return str(asked.encoder.tokenizer.decode(ids))
