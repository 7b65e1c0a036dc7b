"""Characters to token labels, and token scores back to text: each the other's inverse.

A question whose context is longer than a row is read in overlapping windows. Each window is

    BOS Question: ... \\n\\n Passage: \\n  | context tokens ... |  \\n\\n Answer:
    prefix                              offsets[0] ...         suffix; its last token carries "no answer"

and a label is a pair of positions in the window: the first and last token that the answer touches, or the last token twice.
An answer that begins or ends inside a token is covered by the smallest span of whole tokens.
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
    """One row of a span model: ids, where the context stands in it, and the characters of its tokens."""

    id: str
    input_ids: tuple[int, ...]
    context_start: int
    offsets: tuple[tuple[int, int], ...]
    """(start, end) characters in the whole context, of each context token of this window."""

    @property
    def null(self) -> int:
        """The position that carries "no answer"."""
        return len(self.input_ids) - 1

    def span_mask(self) -> list[int]:
        """1 where an answer may start or end."""
        end = self.context_start + len(self.offsets)
        allowed = [int(self.context_start <= i < end) for i in range(len(self.input_ids))]
        allowed[self.null] = 1
        return allowed


class Span(NamedTuple):
    """The best answer over all windows of a question."""

    text: str
    start: int
    """First character in the context; -1 where no span is possible."""
    no_answer_probability: float
    """sigmoid(null score - best span score): 0.5 where both score the same."""


def windows(
    encoder: PromptEncoder, example: QuestionExample, max_length: int, doc_stride: int
) -> Iterator[Window]:
    """Rows of at most `max_length` tokens that cover the context; neighbours share `doc_stride` context tokens.

    Raises UserError where the question leaves less room than two strides' progress, naming the example.
    """
    prefix, suffix = encoder.span_pieces(example)
    ids, offsets = encoder.offsets(example.context)
    room = max_length - len(prefix) - len(suffix)
    if room <= doc_stride and room < len(ids):
        raise UserError(
            f"question {example.id}: {len(prefix)} tokens of question leave {room} of train.max_length {max_length} "
            f"for the context, not more than train.doc_stride {doc_stride}; raise max_length or lower doc_stride"
        )
    first = 0
    while True:
        last = min(first + room, len(ids))
        yield Window(
            example.id, prefix + ids[first:last] + suffix, len(prefix), offsets[first:last]
        )
        if last == len(ids):
            return
        first += room - doc_stride


def label(window: Window, answer: Answer | None) -> tuple[int, int]:
    """(start, end) positions of an answer, both `window.null` where there is none or it is not wholly in this window."""
    if answer is None:
        return window.null, window.null
    begin, end = answer.start, answer.start + len(answer.text)
    # White space at an answer's edge belongs to no token.
    begin += len(answer.text) - len(answer.text.lstrip())
    end -= len(answer.text) - len(answer.text.rstrip())
    touched = [i for i, (start, stop) in enumerate(window.offsets) if start < end and stop > begin]
    if not touched:
        return window.null, window.null
    first, last = touched[0], touched[-1]
    if window.offsets[first][0] > begin or window.offsets[last][1] < end:
        return window.null, window.null  # a part of it lies in another window only
    return window.context_start + first, window.context_start + last


def text(window: Window, start: int, end: int, context: str) -> str:
    """The characters of a span of positions; "" for the null position."""
    if start == window.null or end == window.null:
        return ""
    return context[
        window.offsets[start - window.context_start][0] : window.offsets[
            end - window.context_start
        ][1]
    ]


def best_span(
    rows: Sequence[Window],
    start_scores: Sequence[Sequence[float]],
    end_scores: Sequence[Sequence[float]],
    context: str,
    n_best_size: int,
    max_answer_length: int,
) -> Span:
    """The highest start + end over all windows, at most `max_answer_length` tokens long, against the null score.

    Only the `n_best_size` best starts and ends of a window are paired. The null score is the lowest of the windows',
    because each window without the answer says "no answer" rightly.
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
