"""A model with a head or an adapter, and examples, to predictions: the same code for one text and for a test set.

Every function yields in the order that it computes (longest first, so that a batch which does not fit fails at once), one
prediction an example, and returns nothing for no example.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_peft.data import Example, QuestionExample, TextExample
from llama_peft.recipe import Recipe
from llama_peft.tokens import spans
from llama_peft.tokens.batches import batches, grouped, pad
from llama_peft.tokens.prompts import Encoded, PromptEncoder, parse_answer

if TYPE_CHECKING:
    from llama_peft.run_folder.weights import TunedModel

log = logging.getLogger(__name__)

Shots = Callable[[Example], Sequence[Any]]
"""The worked examples that stand before an example in a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model says of one example. `prediction` is a label's name or an answer, "" for no answer."""

    id: str
    prediction: str
    probabilities: tuple[float, ...] | None = None
    """Of each label, in the labels' order (classification)."""
    no_answer_probability: float | None = None
    raw: str = ""
    """The model's output before it was parsed."""
    more: bool = False
    """Whether predictions of the same batch follow: what is cut off there is computed again with its batch, bit for bit."""


def predict(
    run: "TunedModel",
    examples: Sequence[Example],
    batch_size: int | None = None,
    engine: "Engine | None" = None,
) -> Iterator[Prediction]:
    """Predictions of a finished run; `engine` is how a generative one decodes."""
    recipe = run.recipe
    size = batch_size or recipe.train.per_device_eval_batch_size
    if recipe.task == "classification":
        texts = [example for example in examples if isinstance(example, TextExample)]
        return classify(run.model, run.encoder, texts, run.labels, recipe, size)
    questions = [example for example in examples if isinstance(example, QuestionExample)]
    if recipe.task == "extractive_qa":
        return read_spans(run.model, run.encoder, questions, recipe, size)
    return write_answers(run.model, run.encoder, questions, recipe, size, engine)


def classify(
    model: Any,
    encoder: PromptEncoder,
    examples: Sequence[TextExample],
    labels: Sequence[str],
    recipe: Recipe,
    batch_size: int,
) -> Iterator[Prediction]:
    """The classification head's label of each text."""
    import torch

    max_length = recipe.train.max_length
    rows = [(example.id, encoder.head_input(example.text, max_length)) for example in examples]
    for batch in batches(rows, batch_size):
        input_ids, mask = pad([ids for _, ids in batch], encoder.tokenizer.pad_token_id)
        with torch.inference_mode():
            logits = model(
                input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)
            ).logits
        for (id_, _), row in zip(batch, logits.float().softmax(-1).tolist(), strict=True):
            best = max(range(len(labels)), key=row.__getitem__)
            yield Prediction(
                id=id_,
                prediction=labels[best],
                probabilities=tuple(row),
                more=id_ != batch[-1][0],
            )


def read_spans(
    model: Any,
    encoder: PromptEncoder,
    examples: Sequence[QuestionExample],
    recipe: Recipe,
    batch_size: int,
) -> Iterator[Prediction]:
    """The span head's best answer over all windows of each question; "" where "no answer" scores higher."""
    import torch

    train = recipe.train
    rows = [
        (example, list(spans.windows(encoder, example, train.max_length, train.doc_stride)))
        for example in examples
    ]
    rows.sort(key=lambda row: -sum(len(window.input_ids) for window in row[1]))
    for group in grouped(rows, batch_size):
        windows = [window for _, its in group for window in its]
        starts: list[list[float]] = []
        ends: list[list[float]] = []
        for first in range(0, len(windows), batch_size):
            part = windows[first : first + batch_size]
            input_ids, mask = pad([w.input_ids for w in part], encoder.tokenizer.pad_token_id)
            allowed, _ = pad([w.span_mask() for w in part], 0)
            with torch.inference_mode():
                output = model(
                    input_ids=input_ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    span_mask=allowed.to(model.device),
                )
            starts += output.start_logits.float().tolist()
            ends += output.end_logits.float().tolist()
        first = 0
        for example, its in group:
            best = spans.best_span(
                its,
                starts[first : first + len(its)],
                ends[first : first + len(its)],
                example.context,
                recipe.eval.n_best_size,
                recipe.eval.max_answer_length,
            )
            first += len(its)
            yield Prediction(
                id=example.id,
                prediction=best.text if best.no_answer_probability <= 0.5 else "",
                no_answer_probability=best.no_answer_probability,
                raw=best.text,
                more=example.id != group[-1][0].id,
            )


def write_answers(
    model: Any,
    encoder: PromptEncoder,
    examples: Sequence[QuestionExample],
    recipe: Recipe,
    batch_size: int,
    engine: "Engine | None" = None,
    shots: "Shots | None" = None,
) -> Iterator[Prediction]:
    """The answers that a causal model writes, greedily; `shots` gives a question's worked examples.

    `no_answer_probability` is what the model gives to the no-answer phrase as the whole answer. Questions of one context
    stay together, so that an engine that shares prefixes can.
    """
    engine = engine or PLAIN
    stop = {encoder.end_id, encoder.tokenizer.eos_token_id}
    if encoder.newline_ends:  # `parse_answer` reads nothing beyond the first line
        stop |= encoder.newline_ids
    no_answer = (*encoder.continuation(recipe.prompt.no_answer), encoder.end_id)
    ordered = sorted(examples, key=lambda example: (-len(example.context), example.context))
    limit = positions(model)
    every, cut = [], 0
    for example in ordered:
        ids, whole = _fitted(encoder, recipe, example, shots, limit)
        every.append(Encoded(example.id, ids))
        cut += not whole
    warn_of_cuts(cut, len(every), "passages", f"the model's {limit} positions")
    size = 4 * batch_size
    for first in range(0, len(every), size):
        prompts = every[first : first + size]
        written = dict(
            engine.greedy(
                model, prompts, stop_token_ids=stop, max_new_tokens=recipe.eval.max_new_tokens
            )
        )
        scores = engine.loglikelihoods(model, [(p.prompt, no_answer) for p in prompts])
        for prompt, score in zip(prompts, scores, strict=True):
            raw = encoder.text(list(written[prompt.id]))
            yield Prediction(
                id=prompt.id,
                prediction=parse_answer(raw, recipe.prompt.no_answer),
                no_answer_probability=math.exp(score),
                raw=raw,
                more=prompt.id != prompts[-1].id,
            )


def positions(model: Any) -> int | None:
    """The most tokens that a model reads; None where its config sets no bound (Bloom has none, XLNet says -1)."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if found is not None and found > 0 else None


def warn_of_cuts(cut: int, total: int, what: str, limit: str) -> None:
    """Say in one line how many texts lose their end: a score on them is of less than the data."""
    if cut:
        log.warning("%d of %d %s are cut to %s", cut, total, what, limit)


def _fitted(
    encoder: PromptEncoder,
    recipe: Recipe,
    example: QuestionExample,
    shots: "Shots | None",
    limit: int | None,
) -> tuple[tuple[int, ...], bool]:
    """The generative prompt with room for the answer behind it, and whether it holds its whole passage."""
    worked = shots(example) if shots else ()
    ids = encoder.question(example, shots=worked)
    if limit is None or len(ids) <= limit - recipe.eval.max_new_tokens:
        return ids, True
    return encoder.question(example, limit - recipe.eval.max_new_tokens, worked), False


def verbalizer_prompt(
    encoder: PromptEncoder,
    recipe: Recipe,
    example: TextExample,
    labels: Sequence[str],
    shots: "Shots | None",
    limit: int | None,
) -> tuple[tuple[int, ...], bool]:
    """The prompt that the LM head continues with a verbalizer, with room for the longest, and whether it holds its whole text."""
    words = recipe.prompt.verbalizers or labels
    worked = [(shot.text, words[shot.label]) for shot in (shots(example) if shots else ())]
    longest = max(len(encoder.continuation(word)) for word in words)
    whole = encoder.zero_shot(example.text, shots=worked)
    room = len(whole) if limit is None else limit - longest
    ids = encoder.zero_shot(example.text, recipe.train.max_length, worked, room)
    return ids, ids == whole


def prompt_text(
    encoder: PromptEncoder,
    recipe: Recipe,
    example: Example,
    zero_shot: bool = False,
    labels: Sequence[str] = (),
    shots: "Shots | None" = None,
    limit: int | None = None,
) -> str:
    """What the model reads of an example, as text with its control tokens; zero_shot: for the LM head, limit: its positions."""
    if isinstance(example, QuestionExample):
        if recipe.task == "extractive_qa" and not zero_shot:
            first = next(
                spans.windows(encoder, example, recipe.train.max_length, recipe.train.doc_stride)
            )
            ids = first.input_ids
        else:
            ids, _ = _fitted(encoder, recipe, example, shots, limit)
    elif zero_shot:
        ids, _ = verbalizer_prompt(encoder, recipe, example, labels, shots, limit)
    else:
        ids = encoder.head_input(example.text, recipe.train.max_length)
    return str(encoder.tokenizer.decode(ids))


class Engine(NamedTuple):
    """How a causal model writes and scores continuations: one by one here, or with shared prefixes in `eval.generation`."""

    greedy: Callable[..., Iterator[tuple[str, tuple[int, ...]]]]
    loglikelihoods: Callable[..., list[float]]


def greedy_plain(
    model: Any,
    prompts: Sequence[Encoded],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int = 1,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(id, generated ids) by `model.generate`, on left-padded batches of like length; ends with the first stop id.

    A token may hold a line break and the text before it (".\\n"), so the one that stops belongs to the answer.
    """
    import torch
    from transformers import GenerationConfig

    stop = sorted(stop_token_ids)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=stop[0]
    )
    for batch in batches([(prompt.id, prompt.prompt) for prompt in prompts], batch_size):
        input_ids, mask = pad([ids for _, ids in batch], stop[0], left=True)
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
            )
        written = output[:, input_ids.shape[1] :].tolist()
        for (id_, _), ids in zip(batch, written, strict=True):
            last = next((i for i, token in enumerate(ids) if token in stop_token_ids), len(ids))
            yield id_, tuple(ids[: last + 1])


def loglikelihoods_plain(
    model: Any, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """log p(continuation | prompt) of each (prompt, continuation), one a forward pass."""
    import torch

    scores = []
    for prompt, continuation in requests:
        ids = torch.tensor([[*prompt, *continuation]], device=model.device)
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            each = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
        scores.append(each.sum().item())
    return scores


PLAIN = Engine(greedy_plain, loglikelihoods_plain)
