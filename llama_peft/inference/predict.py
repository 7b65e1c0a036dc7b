"""From a model and examples to predictions: the same code for one text and for a test set.

Every function yields lists of predictions, one list for the examples that were computed together.
The longest examples come first, so that a batch that does not fit in memory fails at once.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.inference.engine import Engine, Loaded, Written
from llama_peft.recipe import Eval, Recipe
from llama_peft.run_folder.self_check import input_ids
from llama_peft.run_folder.threshold import UNFITTED, Threshold
from llama_peft.run_folder.weights import TunedModel
from llama_peft.system.numbers import check_scores
from llama_peft.tasks import Side
from llama_peft.tokens import generate, spans
from llama_peft.tokens.batches import batches, grouped, pad
from llama_peft.tokens.prompts import Encoded, PromptEncoder, parse_answer
from llama_peft.tokens.spans import Window

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Output = str | float | tuple[str, ...]
"""A label, an answer ("" means no answer), a number, or the labels of a text that can have several."""
Shots = Callable[[Example], Sequence[Example]]
"""Returns the worked examples that come before an example in a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A model's output for one example."""

    id: str
    prediction: Output
    probabilities: tuple[float, ...] | None = None
    """The probability of each label, in the order of the labels (classification)."""
    no_answer_probability: float | None = None
    raw: str = ""
    """The model's output before it was parsed."""
    start: int | None = None
    """The first character of `raw` in the passage, if it is a piece of the passage."""

    def __post_init__(self) -> None:
        """Raise UserError unless the scores are numbers."""
        number = self.prediction if isinstance(self.prediction, float) else 0.0
        scores = [*(self.probabilities or ()), self.no_answer_probability or 0.0, number]
        check_scores(scores, self.id)


class HasIds(Protocol):
    """A part of a question's passage that a model reads at once."""

    @property
    def input_ids(self) -> tuple[int, ...]: ...


Piece = TypeVar("Piece", bound=HasIds)


class ScoredWindow(NamedTuple):
    """A window, and the scores of its tokens as the start and as the end of an answer."""

    window: Window
    starts: list[float]
    ends: list[float]


def predict(
    tuned: TunedModel, examples: Sequence[Example], batch_size: int | None = None
) -> Iterator[list[Prediction]]:
    """Yield the predictions of a finished run."""
    recipe, kind = tuned.recipe, tuned.recipe.kind
    size = batch_size or recipe.train.per_device_eval_batch_size
    if kind.has_labels:
        return classify(tuned, texts(examples), size)
    if kind.head is not None:
        return read_spans(tuned, questions(examples), size)
    instead = recipe.fits_threshold
    engine = Loaded(model=tuned.model, encoder=tuned.encoder, decoding=recipe.eval.decoding)
    asked = questions(examples)
    return write_answers(engine, asked, recipe, size, instead=instead)


def texts(examples: Sequence[Example]) -> list[TextExample]:
    """Return the examples that are texts."""
    return [example for example in examples if isinstance(example, TextExample)]


def questions(examples: Sequence[Example]) -> list[QuestionExample]:
    """Return the examples that are questions."""
    return [example for example in examples if isinstance(example, QuestionExample)]


def classify(
    tuned: TunedModel, examples: Sequence[TextExample], batch_size: int
) -> Iterator[list[Prediction]]:
    """Yield what the head says of each text: a label, several, or a number."""
    rows = head_rows(tuned, examples)
    order = range(tuned.recipe.kind.outputs(len(tuned.labels)))
    pad_id, side = tuned.encoder.tokenizer.pad_token_id, tuned.recipe.kind.side
    return classify_rows(tuned.model, rows, tuned.labels, order, pad_id, batch_size, side)


def head_rows(
    tuned: TunedModel, examples: Sequence[TextExample], warns: bool = True
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the ids of texts, each with the token ids that a head reads. warns: log how many are cut."""
    encoder, max_length, limit = tuned.encoder, tuned.recipe.train.max_length, _limit(tuned)
    whole = [encoder.head_input(example.values, max_length) for example in examples]
    cut = sum(len(ids) > limit for ids in whole)
    warn_of_cuts(cut if warns else 0, len(whole), "texts", f"the model's {limit} positions")
    return [
        (example.id, ids if len(ids) <= limit else encoder.head_input(example.values, limit))
        for example, ids in zip(examples, whole, strict=True)
    ]


def _limit(tuned: TunedModel) -> int:
    """Return the most tokens of a row: `train.max_length`, and never more than the model reads."""
    limit, most = tuned.recipe.train.max_length, generate.positions(tuned.model)
    return limit if most is None else min(limit, most)


def classify_rows(
    model: "PreTrainedModel",
    rows: Sequence[tuple[str, Sequence[int]]],
    labels: Sequence[str],
    order: Sequence[int],
    pad_id: int,
    batch_size: int,
    side: Side,
) -> Iterator[list[Prediction]]:
    """Yield what the model says of each row of token ids.

    order: the number of the model's output for each of the labels; of its only one for a number.
    side: what it predicts.
    """
    import torch

    for batch in batches(rows, batch_size):
        ids, mask = pad([ids for _, ids in batch], pad_id)
        with torch.inference_mode():
            output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        yield of_logits([id_ for id_, _ in batch], output.logits[:, list(order)], labels, side)


def of_logits(
    ids: Sequence[str], logits_NC: "Tensor", labels: Sequence[str], side: Side
) -> list[Prediction]:
    """Return the predictions of a head's outputs for some texts."""
    logits = logits_NC.float()
    scores = logits
    if side != "numbers":
        scores = logits.softmax(-1) if side == "labels" else logits.sigmoid()
    # A logit of minus infinity would leave shares that look well.
    found = scores.where(logits.isfinite(), math.nan).tolist()
    return [_of_scores(id_, row, labels, side) for id_, row in zip(ids, found, strict=True)]


def _of_scores(id_: str, row: Sequence[float], labels: Sequence[str], side: Side) -> Prediction:
    """Return the prediction of a row of probabilities, or of one number."""
    if side == "numbers":
        return Prediction(id=id_, prediction=row[0])
    if side == "label_sets":
        return Prediction(id=id_, prediction=labels_above(row, labels), probabilities=tuple(row))
    return Prediction(id=id_, prediction=labels[row.index(max(row))], probabilities=tuple(row))


def labels_above(
    probabilities: Sequence[float], labels: Sequence[str], limits: Sequence[float] = ()
) -> tuple[str, ...]:
    """Return the labels whose probability is above their threshold. limits: 0.5 each if empty."""
    limits = limits or [UNFITTED] * len(labels)
    rows = zip(labels, probabilities, limits, strict=True)
    return tuple(label for label, probability, limit in rows if probability > limit)


def tempered(probabilities: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Return the softmax of the logits divided by a temperature, from the softmax of the logits.

    The order of the labels by probability stays. The reciprocal temperature gives the given ones
    back. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 9.
    """
    logs = [math.log(max(one, sys.float_info.min)) / temperature for one in probabilities]
    powers = [math.exp(log - max(logs)) for log in logs]
    total = sum(powers)
    return tuple(power / total for power in powers)


def tempered_each(probabilities: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Return the sigmoids of the logits divided by a temperature, from the sigmoids of the logits."""
    return tuple(tempered((one, 1 - one), temperature)[0] for one in probabilities)


def honest(one: Prediction, threshold: Threshold | None) -> tuple[float, ...] | None:
    """Return the probability of each label, with the temperature if one was fitted."""
    if one.probabilities is None or threshold is None or threshold.temperature is None:
        return one.probabilities
    several = threshold.label_thresholds is not None
    return (tempered_each if several else tempered)(one.probabilities, threshold.temperature)


def decided(one: Prediction, threshold: Threshold | None, labels: Sequence[str]) -> Output:
    """Return what a model says with fitted thresholds. None: it has none, or needs none."""
    if threshold is None:
        return one.prediction
    if threshold.label_thresholds is not None:
        return labels_above(honest(one, threshold) or (), labels, threshold.label_thresholds)
    if threshold.no_answer_threshold is None:
        return one.prediction
    return "" if (one.no_answer_probability or 0.0) > threshold.no_answer_threshold else one.raw


def read_spans(
    tuned: TunedModel, examples: Sequence[QuestionExample], batch_size: int
) -> Iterator[list[Prediction]]:
    """Yield the best answer of the span head for each question."""
    import torch

    model, pad_id = tuned.model, tuned.encoder.tokenizer.pad_token_id

    def score(windows: Sequence[Window]) -> Iterator[ScoredWindow]:
        ids, mask = pad([w.input_ids for w in windows], pad_id)
        allowed, _ = pad([w.span_mask() for w in windows], 0)
        with torch.inference_mode():
            output = model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                span_mask=allowed.to(model.device),
            )
        starts = output.start_logits.float().tolist()
        ends = output.end_logits.float().tolist()
        return map(ScoredWindow, windows, starts, ends)

    return best_answers(span_windows(tuned, examples), score, tuned.recipe.eval, batch_size)


def span_windows(
    tuned: TunedModel, examples: Sequence[QuestionExample]
) -> list[tuple[QuestionExample, list[Window]]]:
    """Return questions with the windows of their passage that a span head reads."""
    limit, stride = _limit(tuned), tuned.recipe.train.doc_stride
    return [
        (example, list(spans.windows(tuned.encoder, example, limit, stride)))
        for example in examples
    ]


def best_answers(
    rows: Sequence[tuple[QuestionExample, list[Piece]]],
    score: Callable[[Sequence[Piece]], Iterable[ScoredWindow]],
    settings: Eval,
    batch_size: int,
) -> Iterator[list[Prediction]]:
    """Yield the best answer over all windows of each question; "" if "no answer" scores higher.

    rows: questions with their windows. score: computes at most `batch_size` windows at once.
    """
    ordered = sorted(rows, key=lambda row: -sum(len(piece.input_ids) for piece in row[1]))
    for group in grouped(ordered, batch_size):
        pieces = [piece for _, its in group for piece in its]
        parts = (pieces[i : i + batch_size] for i in range(0, len(pieces), batch_size))
        scored = iter([window for part in parts for window in score(part)])
        yield [
            _best_answer(example, list(islice(scored, len(its))), settings)
            for example, its in group
        ]


def _best_answer(
    example: QuestionExample, scored: Sequence[ScoredWindow], settings: Eval
) -> Prediction:
    for window, starts, ends in scored:
        first, last = window.context_start, window.context_start + len(window.offsets)
        for row in (starts, ends):
            check_scores([*row[first:last], row[window.null]], example.id)
    best = spans.best_span(
        [one.window for one in scored],
        [one.starts for one in scored],
        [one.ends for one in scored],
        example.context,
        settings.n_best_size,
        settings.max_answer_length,
    )
    return Prediction(
        id=example.id,
        prediction=best.text if best.no_answer_probability <= 0.5 else "",
        no_answer_probability=best.no_answer_probability,
        raw=best.text,
        start=best.start if best.text else None,
    )


def write_answers(
    engine: Engine,
    examples: Sequence[QuestionExample],
    recipe: Recipe,
    batch_size: int,
    shots: Shots | None = None,
    instead: bool = False,
) -> Iterator[list[Prediction]]:
    """Yield the answers that a causal model writes greedily.

    `no_answer_probability` is the probability of the no-answer phrase as the whole answer.
    instead: also find what the model answers if it may not begin as this phrase, for `raw`: a
    threshold then decides between the two.
    Questions on one context stay together, so that what they share can be computed once.
    """
    every, encoder = _prompts(engine, examples, recipe, shots), engine.encoder
    size, most = 4 * batch_size, recipe.eval.max_new_tokens
    for first in range(0, len(every), size):
        prompts = every[first : first + size]
        written = engine.write(prompts, most)
        requests = [(prompt.prompt, encoder.no_answer) for prompt in prompts]
        scores: Sequence[float | None] | None = engine.loglikelihoods(requests)
        said = _parsed(written, recipe)
        raws = {id_: one.text for id_, one in written.items()}
        if instead:
            begins = encoder.no_answer[0]
            silent = [prompt for prompt in prompts if written[prompt.id].ids[:1] == (begins,)]
            raws = said | _parsed(engine.write(silent, most, not_first=begins), recipe)
        yield [
            Prediction(
                id=prompt.id,
                prediction=said[prompt.id],
                no_answer_probability=None if score is None else math.exp(score),
                raw=raws[prompt.id],
            )
            for prompt, score in zip(prompts, scores or [None] * len(prompts), strict=True)
        ]


def _parsed(written: Mapping[str, Written], recipe: Recipe) -> dict[str, str]:
    return {id_: parse_answer(one.text, recipe.prompt.no_answer) for id_, one in written.items()}


def _prompts(
    engine: Engine,
    examples: Sequence[QuestionExample],
    recipe: Recipe,
    shots: Shots | None,
) -> list[Encoded]:
    """Return the prompts of questions, long contexts first. Logs how many are cut."""
    limit = engine.positions
    prompts, cut = [], 0
    for example in sorted(examples, key=lambda example: (-len(example.context), example.context)):
        ids, whole = question_prompt(engine.encoder, recipe, example, shots, limit)
        prompts.append(Encoded(example.id, ids))
        cut += not whole
    warn_of_cuts(cut, len(prompts), "passages", f"the model's {limit} positions")
    return prompts


def warn_of_cuts(cut: int, total: int, what: str, limit: str) -> None:
    """Log in one line how many texts lose their end, because the model cannot read them whole."""
    if cut:
        log.warning("%d of %d %s are cut to %s", cut, total, what, limit)


def question_prompt(
    encoder: PromptEncoder,
    recipe: Recipe,
    example: QuestionExample,
    shots: Shots | None,
    limit: int | None,
) -> tuple[tuple[int, ...], bool]:
    """Return the generative prompt of a question, and whether it holds the whole passage.

    limit: the model's positions. They leave room for the answer.
    """
    worked = questions(shots(example)) if shots else []
    ids = encoder.question(example, shots=worked)
    if limit is None or len(ids) <= limit - recipe.eval.max_new_tokens:
        return ids, True
    return encoder.question(example, limit - recipe.eval.max_new_tokens, worked), False


def prompt_text(tuned: TunedModel, example: Example) -> str:
    """Return what a tuned model reads of an example, as text with its control tokens."""
    encoder, recipe = tuned.encoder, tuned.recipe
    if isinstance(example, QuestionExample) and recipe.kind.head is None:
        limit = generate.positions(tuned.model)
        ids, _ = question_prompt(encoder, recipe, example, None, limit)
    else:
        ids = input_ids(encoder, recipe, example)
    return str(encoder.tokenizer.decode(ids))
