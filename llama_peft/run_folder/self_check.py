"""The scores of a few fixed inputs: two copies of a run must give the same ones."""

import math
from itertools import cycle

from llama_peft.data import Example, FieldsExample, QuestionExample, TextExample
from llama_peft.recipe import Recipe
from llama_peft.run_folder.weights import TunedModel
from llama_peft.tokens import spans
from llama_peft.tokens.prompts import PromptEncoder

TEXT = "A warm and funny film."
QUESTION = "What does the shop sell?"
CONTEXT = "The shop on the corner sells bread. It opens at seven."
_TEXTS = (TEXT, "Not worth the time.", "It begins well, and then nothing follows.")
_QUESTIONS = (QUESTION, "When does it open?", "Who owns the shop?")

Scores = list[list[float]]
"""One row of scores for each input."""


def samples(recipe: Recipe) -> list[Example]:
    """A few made-up inputs of the recipe's task. The first one stands in the card."""
    if fields := recipe.prompt.fields:
        turned = [_TEXTS[i:] + _TEXTS[:i] for i in range(len(_TEXTS))]  # fields differ
        return [
            FieldsExample.of(dict(zip(fields, cycle(texts))), id=str(i), label=0)
            for i, texts in enumerate(turned)
        ]
    if recipe.kind.has_labels:
        return [TextExample(id=str(i), text=text, label=0) for i, text in enumerate(_TEXTS)]
    context = CONTEXT if recipe.dataset.columns.context else ""
    return [
        QuestionExample(id=str(i), context=context, question=question, answers=())
        for i, question in enumerate(_QUESTIONS)
    ]


def input_ids(encoder: PromptEncoder, recipe: Recipe, example: Example) -> tuple[int, ...]:
    """The token ids that a tuned model reads for an example; of a long passage, its first window."""
    train = recipe.train
    if isinstance(example, TextExample):
        return encoder.head_input(example.values, train.max_length)
    if recipe.kind.head is not None:
        return next(spans.windows(encoder, example, train.max_length, train.doc_stride)).input_ids
    return encoder.question(example)


def passage_tokens(encoder: PromptEncoder, recipe: Recipe) -> range:
    """The positions of the passage in the first sample that a span head reads; none for other tasks."""
    example = samples(recipe)[0]
    if isinstance(example, TextExample) or recipe.kind.head is None:
        return range(0)
    train = recipe.train
    window = next(spans.windows(encoder, example, train.max_length, train.doc_stride))
    return range(window.context_start, window.context_start + len(window.offsets))


def sample_scores(tuned: TunedModel) -> Scores:
    """For each sample: the scores of its labels, of its starts and ends, or of the next token."""
    import torch

    kind, model = tuned.recipe.kind, tuned.model
    rows: Scores = []
    for example in samples(tuned.recipe):
        ids = torch.tensor([input_ids(tuned.encoder, tuned.recipe, example)], device=model.device)
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if kind.has_labels:
            scores = output.logits[0]
        elif kind.head is not None:
            scores = torch.cat([output.start_logits[0], output.end_logits[0]])
        else:
            scores = output.logits[0, -1]
        rows.append(scores.float().tolist())
    return rows


def largest_difference(found: Scores, expected: Scores) -> float:
    """The largest difference of two scores; infinite if one of them is NaN, or if the numbers of
    scores differ.
    """
    if [len(row) for row in found] != [len(row) for row in expected]:
        return math.inf
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    if any(math.isnan(score) for pair in pairs for score in pair):
        return math.inf
    return max((abs(a - b) for a, b in pairs if a != b), default=0.0)
