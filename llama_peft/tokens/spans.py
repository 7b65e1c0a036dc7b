"""Characters become token labels, and token scores become text: each is the inverse of the other.

If the context of a question is longer than a row, it is read in overlapping windows. Each window is

    BOS Question: ... \\n\\n Passage: \\n  | context tokens ... |  \\n\\n Answer:
    prefix                              offsets[0] ...         suffix; its last token: "no answer"

A label is a pair of positions in the window: the first and the last token that the answer touches,
or twice the last token of the window. If an answer begins or ends inside a token, the label is the
smallest span of whole tokens that covers it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llama_peft.data import Answer, QuestionExample
from llama_peft.errors import UserError
from llama_peft.tokens.prompts import PromptEncoder


@dataclass(frozen=True, slots=True)
class Window:
    """One row of a span model: its ids, and the place and the characters of the context in it."""

    id: str
    input_ids: tuple[int, ...]
    context_start: int
    offsets: tuple[tuple[int, int], ...]
    """The (start, end) characters in the whole context of each context token in this window."""

    @property
    def null(self) -> int:
        """The position that carries "no answer"."""
        return len(self.input_ids) - 1

    def span_mask(self) -> list[int]:
        """Return 1 for each position where an answer may start or end, and 0 for the others."""
        end = self.context_start + len(self.offsets)
        allowed = [int(self.context_start <= i < end) for i in range(len(self.input_ids))]
        allowed[self.null] = 1
        return allowed


class Span(NamedTuple):
    """The best answer over all windows of a question."""

    text: str
    start: int
    """First character in the context; -1 if no span is possible."""
    no_answer_probability: float
    """sigmoid(null score - best span score): 0.5 if both scores are equal."""


def windows(
    encoder: PromptEncoder, example: QuestionExample, max_length: int, doc_stride: int
) -> Iterator[Window]:
    """Yield rows of at most `max_length` tokens that cover the context.

    Neighbours share `doc_stride` tokens of the context. Raises UserError if the question leaves no
    room for more than these.
    """
    prefix, ids, offsets, suffix, break_off = encoder.span_text(example)
    room = max_length - len(prefix) - max(len(suffix), len(break_off))
    if len(prefix) + len(ids) + len(suffix) <= max_length:
        room = len(ids)
    if room <= doc_stride and room < len(ids):
        raise UserError(
            f"question {example.id}: its question takes {len(prefix)} tokens and leaves {room} of "
            f"train.max_length {max_length} for the context, which is not more than "
            f"train.doc_stride {doc_stride}; raise train.max_length or lower train.doc_stride"
        )
    first = 0
    while True:
        last = min(first + room, len(ids))
        ending = suffix if last == len(ids) else break_off
        yield Window(
            example.id, prefix + ids[first:last] + ending, len(prefix), offsets[first:last]
        )
        if last == len(ids):
            return
        first += room - doc_stride


def label(window: Window, answer: Answer | None) -> tuple[int, int]:
    """Return the (start, end) positions of an answer in the window.

    Both are `window.null` if there is no answer, or if a part of it is outside this window.
    """
    if answer is None:
        return window.null, window.null
    begin, end = answer.start, answer.start + len(answer.text)
    # White space at the edges of an answer does not belong to any token.
    begin += len(answer.text) - len(answer.text.lstrip())
    end -= len(answer.text) - len(answer.text.rstrip())
    touched = [i for i, (start, stop) in enumerate(window.offsets) if start < end and stop > begin]
    if not touched:
        return window.null, window.null
    first, last = touched[0], touched[-1]
    if window.offsets[first][0] > begin or window.offsets[last][1] < end:
        return window.null, window.null  # a part of it is in another window only
    return window.context_start + first, window.context_start + last


def text(window: Window, start: int, end: int, context: str) -> str:
    """Return the characters of a span of positions; "" for the null position."""
    if start == window.null or end == window.null:
        return ""
    first, last = start - window.context_start, end - window.context_start
    return context[window.offsets[first][0] : window.offsets[last][1]]


def best_span(
    rows: Sequence[Window],
    start_scores: Sequence[Sequence[float]],
    end_scores: Sequence[Sequence[float]],
    context: str,
    n_best_size: int,
    max_answer_length: int,
) -> Span:
    """Return the span with the highest start + end score, compared with the null score.

    A span is at most `max_answer_length` tokens long. Only the `n_best_size` best starts and ends
    of a window are paired. The null score is the lowest of all windows, because each window without
    the answer is right to say "no answer".
    """
    best_score, best_text, best_start = -math.inf, "", -1
    null_score = math.inf
    for window, starts, ends in zip(rows, start_scores, end_scores, strict=True):
        null_score = min(null_score, starts[window.null] + ends[window.null])
        context_range = range(window.context_start, window.context_start + len(window.offsets))
        best_starts = sorted(context_range, key=lambda i: -starts[i])[:n_best_size]
        best_ends = sorted(context_range, key=lambda i: -ends[i])[:n_best_size]
        for i in best_starts:
            for j in best_ends:
                score = starts[i] + ends[j]
                if i <= j < i + max_answer_length and score > best_score:
                    best_score = score
                    best_text = text(window, i, j, context)
                    best_start = window.offsets[i - window.context_start][0]
    # 0.5 * (1 + tanh(x / 2)) is the logistic function without overflow.
    probability = 0.5 * (1 + math.tanh((null_score - best_score) / 2))
    return Span(best_text, best_start, probability)
