"""How a causal model answers with its own language model head.

A text gets the label whose verbalizer is likeliest after the zero-shot prompt. If it can have several
labels, the model is asked for each one, and a label is given if "yes" is likelier than "no". A number
is the expected value over the numbers that the verbalizers write. A question gets the answer that the
model writes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

from llama_peft.data import Example, Label, QuestionExample, TextExample
from llama_peft.inference.engine import Engine
from llama_peft.inference.predict import (
    Prediction,
    Shots,
    labels_above,
    question_prompt,
    questions,
    texts,
    warn_of_cuts,
    write_answers,
)
from llama_peft.recipe import Recipe
from llama_peft.run_folder.results import ModelConfig
from llama_peft.tokens.prompts import PromptEncoder

from .predictor import Predictor


def open_lm_head(
    engine: Engine,
    recipe: Recipe,
    labels: tuple[str, ...],
    way: str,
    config: ModelConfig,
    shots: Shots | None,
    instead: bool = False,
) -> Predictor:
    """Return the predictor of a causal model.

    way: the first word of its name in tables; empty for the number of worked examples. config: what
    results record about it; its name and the source of the worked examples are added. instead: as in
    `write_answers`.
    """
    encoder, several = engine.encoder, recipe.kind.side == "label_sets"
    asked = _Asked(
        engine=engine,
        encoders=[encoder.about(label) for label in labels] if several else [encoder],
        recipe=recipe,
        labels=labels,
        shots=shots,
        instead=instead,
    )
    has_labels = recipe.kind.has_labels
    shown = way or (f"{recipe.eval.num_fewshot}-shot" if shots else "zero-shot")
    name = f"{shown} {'verbalizer' if has_labels else 'generative'}"

    def with_shots(wanted: int, chosen: Shots | None) -> Predictor:
        other = recipe.changed(eval={"num_fewshot": wanted})
        return open_lm_head(engine, other, labels, way, config, chosen)

    source = recipe.eval.fewshot_from if shots else None
    return Predictor(
        config=config.model_copy(update={"model_kind": name, "fewshot_from": source}),
        labels=labels,
        predict=partial(_verbalize if has_labels else _write, asked),
        prompt=lambda example: str(encoder.tokenizer.decode(_prompt(asked, example)[0])),
        reads_whole=lambda example: _prompt(asked, example)[1],
        with_shots=with_shots,
        length=lambda answer: len(asked.encoder.answer(answer)),
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A causal model, and all that its prompts depend on."""

    engine: Engine
    encoders: Sequence[PromptEncoder]
    """One for each prompt about a text."""
    recipe: Recipe
    labels: tuple[str, ...]
    """Empty for questions and numbers."""
    shots: Shots | None
    instead: bool

    @property
    def encoder(self) -> PromptEncoder:
        return self.engine.encoder

    @property
    def limit(self) -> int | None:
        return self.engine.positions

    @property
    def words(self) -> Sequence[str]:
        """The verbalizers: in the order of the labels, for no and for yes, or numbers."""
        usual = ("no", "yes") if self.recipe.kind.side == "label_sets" else self.labels
        return self.recipe.prompt.verbalizers or usual

    @cached_property
    def continuations(self) -> list[tuple[int, ...]]:
        """The token ids of the verbalizers."""
        return [self.encoder.verbalizer(word) for word in self.words]


def _write(
    asked: _Asked, examples: Sequence[Example], batch_size: int
) -> Iterator[list[Prediction]]:
    own = questions(examples)
    return write_answers(asked.engine, own, asked.recipe, batch_size, asked.shots, asked.instead)


def _verbalize(
    asked: _Asked, examples: Sequence[Example], batch_size: int
) -> Iterator[list[Prediction]]:
    """Yield what the verbalizers say of each text, long texts first.

    A verbalizer of several tokens counts with the sum of their log-probabilities, as `acc` of
    lm-evaluation-harness does.
    """
    continuations = asked.continuations
    ordered = sorted(texts(examples), key=lambda example: -len(example.text))
    prompts = _verbalizer_prompts(asked, ordered)
    size = max(1, 4 * batch_size // len(asked.encoders))
    for first in range(0, len(ordered), size):
        chunk = prompts[first : first + size]
        requests = [
            (prompt, continuation)
            for own in chunk
            for prompt in own
            for continuation in continuations
        ]
        scores = iter(asked.engine.loglikelihoods(requests) or ())
        yield [
            _of_shares(
                asked, example, [_shares([*islice(scores, len(continuations))]) for _ in own]
            )
            for example, own in zip(ordered[first : first + size], chunk, strict=True)
        ]


def _shares(scores: Sequence[float]) -> list[float]:
    """Return the probability of each verbalizer among them, from their log-probabilities."""
    best = max(scores)
    total = sum(math.exp(score - best) for score in scores)
    return [math.exp(score - best) / total for score in scores]


def _of_shares(asked: _Asked, example: TextExample, rows: Sequence[Sequence[float]]) -> Prediction:
    """Return the prediction from the probabilities of the verbalizers after each prompt."""
    if asked.recipe.kind.side == "label_sets":
        chances = tuple(yes for _, yes in rows)
        given = labels_above(chances, asked.labels)
        return Prediction(id=example.id, prediction=given, probabilities=chances)
    (shares,) = rows
    best = shares.index(max(shares))
    if asked.recipe.kind.side == "numbers":
        mean = sum(share * float(word) for share, word in zip(shares, asked.words, strict=True))
        return Prediction(id=example.id, prediction=mean, raw=asked.words[best])
    label, word = asked.labels[best], asked.words[best]
    return Prediction(id=example.id, prediction=label, probabilities=tuple(shares), raw=word)


def _verbalizer_prompts(
    asked: _Asked, examples: Sequence[TextExample]
) -> list[list[tuple[int, ...]]]:
    """Return the prompts of each text. Logs how many texts are cut."""
    prompts, cut = [], 0
    for example in examples:
        found = [_verbalizer_prompt(asked, example, about) for about in range(len(asked.encoders))]
        prompts.append([ids for ids, _ in found])
        cut += not all(whole for _, whole in found)
    bounds = f"train.max_length {asked.recipe.train.max_length}"
    bounds += f" and the model's {asked.limit} positions" if asked.limit else ""
    warn_of_cuts(cut, len(prompts), "texts", bounds)
    return prompts


def _verbalizer_prompt(
    asked: _Asked, example: TextExample, about: int = 0
) -> tuple[tuple[int, ...], bool]:
    """Return a prompt before a verbalizer, and whether it holds the whole text.

    about: the number of the prompt. It leaves room for the longest verbalizer.
    """
    encoder, words = asked.encoders[about], asked.words
    shots = texts(asked.shots(example)) if asked.shots else []
    worked = [(shot.values, _right_word(words, shot.label, about)) for shot in shots]
    whole = encoder.zero_shot(example.values, shots=worked)
    longest = max(map(len, asked.continuations))
    room = len(whole) if asked.limit is None else asked.limit - longest
    ids = encoder.zero_shot(example.values, asked.recipe.train.max_length, worked, room)
    return ids, ids == whole


def _right_word(words: Sequence[str], label: Label, about: int) -> str:
    """Return the right verbalizer of a worked example; of a number, the nearest one."""
    if isinstance(label, tuple):
        return words[about in label]
    if isinstance(label, float):
        return min(words, key=lambda word: abs(float(word) - label))
    return words[label]


def _prompt(asked: _Asked, example: Example) -> tuple[tuple[int, ...], bool]:
    """Return what the model reads of an example, and whether it holds the whole text or passage."""
    if isinstance(example, QuestionExample):
        return question_prompt(asked.encoder, asked.recipe, example, asked.shots, asked.limit)
    return _verbalizer_prompt(asked, example)
