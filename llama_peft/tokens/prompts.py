"""All prompt text, and an answer as text again."""

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Prompt, templates
from llama_peft.tokens.cut import Texts, cut
from llama_peft.tokens.encoder import Ids, Offsets, TextEncoder, frame_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LIMIT = sys.maxsize
_TOGETHER = 256
"""Questions that are encoded together."""

# The span head's prompt. The question is first, because the context states of a causal model must
# have seen it. The last token of the suffix carries the score of "no answer", because no other
# token has seen everything.
SPAN_PREFIX = "Question: {question}\n\nPassage:\n"
SPAN_SUFFIX = "\n\nAnswer:"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token ids. `completion` ends in the end token; at inference it is empty."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()

    def __reduce__(self) -> "tuple[object, ...]":  # five times as fast as the usual way
        return Encoded, (self.id, self.prompt, self.completion)


class SpanText(NamedTuple):
    """A question with its whole context as token ids, in three parts."""

    prefix: Ids
    context: Ids
    offsets: Offsets
    """The characters of each token of the context, without white space. A token that joins the end
    of the context to the suffix belongs to the context.
    """
    suffix: Ids
    break_off: Ids
    """The suffix after a window that ends before the context does."""


def answer_text(example: QuestionExample, no_answer: str) -> str:
    """Return the text that a model learns to write: the first gold answer, or `no_answer`."""
    return " ".join(example.answers[0].text.split()) if example.answers else no_answer


def parse_answer(text: str, no_answer: str) -> str:
    """Return the answer in a model's output: its first line, or "" if this line is `no_answer`."""
    line = text.strip().split("\n")[0]  # other separators occur inside answers
    return without_no_answer(" ".join(line.split()), no_answer)


def without_no_answer(text: str, no_answer: str) -> str:
    """Return the text, or "" if it is the no-answer phrase.

    This is the one place where "no answer" becomes the empty string. The case and the punctuation
    of the phrase do not matter, so that every way in which a model writes it counts as abstaining.
    """
    return "" if _bare(text) == _bare(no_answer) else text


def _bare(text: str) -> str:
    return text.casefold().strip(" .!\"'")


class PromptEncoder:
    """Encodes the prompts of one recipe with one tokenizer.

    If the tokenizer has a chat template (an Instruct model), prompts are turns of a chat. If not,
    they are BOS and the text, with EOS after the answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self._text = TextEncoder(tokenizer, frame_of(tokenizer, prompt.system))
        self.end_id = self._text.frame.end_id
        self.newline_ends = not tokenizer.chat_template
        """Whether output is cut at the first line break if the model never learned to stop."""
        self._label: str | None = None

    @property
    def around(self) -> tuple[str, str]:
        """The text before a prompt, and the text between it and its answer."""
        return self._text.frame.before, self._text.frame.between

    def about(self, label: str) -> "PromptEncoder":
        """Return the encoder whose zero-shot prompt asks whether a text has this label."""
        own = copy(self)
        own._label = label
        return own

    @property
    def _zero_shot(self) -> str:
        one = self._label is None
        return self.prompt.zero_shot if one else self.prompt.zero_shot_label

    def _asked(self, texts: Texts) -> str:
        """Return the zero-shot prompt with texts in it."""
        named = texts if self._label is None else {**texts, templates.LABEL: self._label}
        return templates.filled(self._zero_shot, named)

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """The ids of all tokens whose text contains a line break."""
        size = len(self.tokenizer)
        # The same as `self.tokenizer.decode`, which takes four times as long.
        decode = self.tokenizer.backend_tokenizer.decode
        return frozenset(i for i in range(size) if "\n" in decode([i], skip_special_tokens=False))

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids of the tokens that end an answer by themselves."""
        return frozenset({self.end_id, self.tokenizer.eos_token_id} - {None})

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids of the tokens after which nothing of an answer is read: `parse_answer` reads one line."""
        return self.end_ids | (self.newline_ids if self.newline_ends else frozenset())

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of text from data, which are never those of control tokens."""
        return self._text.plain(text)

    def head_input(self, texts: str | Texts, max_length: int = _NO_LIMIT) -> tuple[int, ...]:
        """Return the ids that a classification head reads: BOS and the template around the text.

        They are cut at the end to `max_length` tokens. Of several texts, the longest loses its end
        first. Raises UserError if there is no room for each of them.
        """

        def around(texts: Texts) -> tuple[int, ...]:
            return self._text.bos + self.ids(templates.filled(self.prompt.template, texts))

        texts = _named(texts)
        whole = around(texts)
        if len(whole) <= max_length or len(texts) == 1:
            return whole[:max_length]
        kept = cut(texts, max_length, lambda texts: len(around(texts)), self._starts)
        if kept is None:
            raise UserError(
                f"train.max_length {max_length} has no room for prompt.template and all texts in "
                "it; raise it or shorten the template"
            )
        return around(kept)

    def zero_shot(
        self,
        texts: str | Texts,
        max_length: int = _NO_LIMIT,
        shots: Sequence[tuple[str | Texts, str]] = (),
        room: int = _NO_LIMIT,
    ) -> tuple[int, ...]:
        """Return the prompt after which the verbalizers are scored.

        A text that is too long loses its end; of several texts, the longest first. `shots` are
        pairs of texts and verbalizer, which come before it as worked examples. `max_length` is the
        limit without them, `room` the limit with them. Raises UserError if they leave no room.
        """
        worked = "".join(self._asked(_named(shot)) + _worked(word) for shot, word in shots)
        kept = self._cut(_named(texts), max_length, self._asked)
        if kept is None:
            raise UserError(
                f"train.max_length {max_length} has no room for prompt.zero_shot; raise it or "
                "shorten the prompt"
            )
        kept = self._cut(kept, room, lambda texts: worked + self._asked(texts))
        if kept is None:
            raise UserError(
                f"the worked examples take {len(self._text.prompt(worked))} tokens, which leaves "
                f"no room for a text: the model has room for {room}; lower eval.num_fewshot"
            )
        return self._text.prompt(worked + self._asked(kept))

    def _cut(self, texts: Texts, room: int, around: Callable[[Texts], str]) -> Texts | None:
        """Return as much of the texts as a prompt of `room` tokens holds; None if it holds none.

        around: returns the prompt with texts in it.
        """
        return cut(texts, room, lambda texts: len(self._text.prompt(around(texts))), self._starts)

    def _starts(self, text: str) -> list[int]:
        return [start for start, _ in self._text.plain_with_offsets(text)[1]]

    def verbalizer(self, word: str) -> tuple[int, ...]:
        """Return the ids of a verbalizer after the zero-shot prompt, without the end token."""
        return self._text.continuation(_tail(self._zero_shot), word)

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the ids of an answer after a question, without the end token."""
        return self._text.continuation(_tail(self.prompt.question), text)

    @cached_property
    def no_answer(self) -> tuple[int, ...]:
        """The ids of the no-answer phrase as the whole answer, with the end token."""
        body = [_tail(self.prompt.question)]
        return next(self._text.answered(body, [self.prompt.no_answer]))[1]

    def question(
        self,
        example: QuestionExample,
        room: int = _NO_LIMIT,
        shots: Sequence[QuestionExample] = (),
    ) -> tuple[int, ...]:
        """Return the generative prompt: the instruction, the context and the question.

        Examples of one context share all but the question. `room` is the largest number of tokens:
        a context that is too long loses its end. `shots` are questions with their answers, which
        come before it; neighbours on one context share it. Raises UserError if the prompt without
        the context takes more than `room`.
        """
        before, after = self._around_context(example, shots)

        def around(texts: Texts) -> str:
            return before + self._passage(texts["context"]) + after

        kept = self._cut({"context": example.context}, room, around)
        if kept is None and len(bare := self._text.prompt(around({"context": ""}))) > room:
            raise UserError(
                f"question {example.id}: its prompt takes {len(bare)} tokens without the passage, "
                f"and the model has room for {room}; lower eval.num_fewshot"
            )
        return self._text.prompt(around(kept or {"context": ""}))

    def _around_context(
        self, example: QuestionExample, shots: Sequence[QuestionExample]
    ) -> tuple[str, str]:
        """Return the text before the last context of a prompt, and the text after it."""
        before, after, last = self.prompt.instruction, "", None
        for one in (*shots, example):
            if one.context != last:
                if last is not None:
                    before += self._passage(last) + after
                after, last = "", one.context
            after += self.prompt.question.format(question=one.question)
            if one is not example:
                after += _worked(answer_text(one, self.prompt.no_answer))
        return before, after

    def encode(self, examples: Sequence[QuestionExample]) -> Iterator[Encoded]:
        """Yield the prompt of each question with its completion.

        The completion is what the model learns to write: the answer and the end token.
        """
        for first in range(0, len(examples), _TOGETHER):
            group = examples[first : first + _TOGETHER]
            bodies = [self._body(example) for example in group]
            answers = [answer_text(example, self.prompt.no_answer) for example in group]
            for example, ids in zip(group, self._text.answered(bodies, answers), strict=True):
                yield Encoded(example.id, *ids)

    def _body(self, example: QuestionExample) -> str:
        before, after = self._around_context(example, ())
        return before + self._passage(example.context) + after

    def _passage(self, context: str) -> str:
        """Return the text of a passage in the prompt; "" if there is none."""
        return self.prompt.context.format(context=context) if context else ""

    def span_text(self, example: QuestionExample) -> SpanText:
        """Return the prompt of a span head, encoded as a whole."""
        prefix = SPAN_PREFIX.format(question=example.question)
        ids, offsets = self._text.plain_with_offsets(prefix + example.context + SPAN_SUFFIX)
        start, stop = len(prefix), len(prefix) + len(example.context)
        first = sum(end <= start for _, end in offsets)
        last = max(first, len(offsets) - sum(begin >= stop for begin, _ in offsets))
        inside = (
            (max(begin, start) - start, min(end, stop) - start)
            for begin, end in offsets[first:last]
        )
        return SpanText(
            self._text.bos + ids[:first],
            ids[first:last],
            tuple(trim(example.context, *place) for place in inside),
            ids[last:],
            self.ids(SPAN_SUFFIX),
        )

    def text(self, ids: list[int]) -> str:
        """Return the text of generated ids, without control tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def _named(texts: str | Texts) -> Texts:
    return {templates.ONE_TEXT: texts} if isinstance(texts, str) else texts


def _worked(answer: str) -> str:
    """Return the answer of a worked example in a prompt."""
    return f" {answer.strip()}\n\n"


def _tail(template: str) -> str:
    """Return what stands after the last value in a template."""
    return template.rpartition("}")[2]


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of a piece of text without the white space at its edges."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
