"""All prompt text, and the one place where text becomes token ids and an answer becomes text again.

Pieces are encoded apart and then joined, so that training, evaluation and prefix sharing see the same ids and nobody ever
searches for a boundary. Control tokens are placed by number; text from data is encoded with control strings as plain text.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for a turn's text while a chat template is rendered; the private-use characters occur in no template.
_USER, _ASSISTANT = "\ue000user\ue001", "\ue000assistant\ue001"
# Llama 3's template prints today's date; a fixed one keeps prompts the same from day to day.
_TEMPLATE_DATE = "01 Jan 2025"

_NO_LIMIT = sys.maxsize

# The span head's prompt: the question first, because a causal model's context states must have seen it; the last token
# of the suffix carries the score of "no answer", because it alone has seen everything.
SPAN_PREFIX = "Question: {question}\n\nPassage:\n"
SPAN_SUFFIX = "\n\nAnswer:"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token ids; `completion` ends in the end-of-text id, or is empty at inference."""

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()


class SpanPieces(NamedTuple):
    """What stands before and after a window of the context, as ids."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def answer_text(example: QuestionExample, no_answer: str) -> str:
    """The text that a generative model learns to write: the first gold answer, or the no-answer phrase."""
    return " ".join(example.answers[0].text.split()) if example.answers else no_answer


def parse_answer(text: str, no_answer: str) -> str:
    """The answer in a model's output: its first line, "" where that says that there is none."""
    line = text.strip().split("\n")[0]  # other separators occur inside answers
    return without_no_answer(" ".join(line.split()), no_answer)


def without_no_answer(text: str, no_answer: str) -> str:
    """The text, or "" where it is the no-answer phrase: the one place where "no answer" becomes the empty string.

    Case and closing punctuation of the phrase do not matter, so that every wording a model gives it counts as abstaining.
    """
    return "" if _bare(text) == _bare(no_answer) else text


def _bare(text: str) -> str:
    return text.casefold().strip(" .!\"'")


class PromptEncoder:
    """Encodes one recipe's prompts with one tokenizer.

    A tokenizer with a chat template (an Instruct model) gets its turns; any other gets BOS, the text, and EOS after the answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self._bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        if tokenizer.chat_template:
            self._before, self._between, self.end_id = self._chat_frame()
            self._lead = ""  # a turn starts with its text
        else:
            if tokenizer.eos_token_id is None:
                raise UserError("the tokenizer has no end-of-text token, so no answer could end")
            self._before, self._between = self._bos, ()
            self.end_id = tokenizer.eos_token_id
            self._lead = (
                " "  # trap: a prompt must not end in the space, so the answer starts with it
            )
        self.newline_ends = not tokenizer.chat_template
        """Whether a model that never learned to stop is cut at the first line break."""

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """Every token whose text holds a line break."""
        size = len(self.tokenizer)
        return frozenset(i for i in range(size) if "\n" in self.tokenizer.decode([i]))

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of text from data: no control token, whatever the text says."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return tuple(encoding["input_ids"])

    def head_input(self, text: str, max_length: int) -> tuple[int, ...]:
        """What a classification head reads: BOS and the template, cut to `max_length` tokens at the end."""
        return (self._bos + self.ids(self.prompt.template.format(text=text)))[:max_length]

    def zero_shot(
        self,
        text: str,
        max_length: int = _NO_LIMIT,
        shots: Sequence[tuple[str, str]] = (),
        room: int = _NO_LIMIT,
    ) -> tuple[int, ...]:
        """The prompt whose continuations are the verbalizers; a text that is too long loses its end, never the question.

        shots: (text, verbalizer) pairs that stand before it, worked; `max_length` is without them, `room` with them. Raises
        UserError where no text fits.
        """
        worked: tuple[int, ...] = ()
        for shot, verbalizer in shots:
            worked += self.ids(self.prompt.zero_shot.format(text=shot)) + self._worked(verbalizer)
        limit = min(max_length, room - len(worked))
        space = limit - len(self._before) - len(self._between)
        ids = self.ids(self.prompt.zero_shot.format(text=text))
        while len(ids) > space:
            _, offsets = self.offsets(text)
            kept = len(offsets) - (len(ids) - space)
            if kept <= 0 and limit == max_length:
                raise UserError(f"train.max_length {max_length} has no room for prompt.zero_shot")
            if kept <= 0:
                raise UserError(
                    f"the worked examples take {len(worked)} tokens and leave no text, and the model has room for {room}; "
                    "lower eval.num_fewshot"
                )
            text = text[: offsets[kept - 1][1]]
            ids = self.ids(self.prompt.zero_shot.format(text=text))
        return self._before + worked + ids + self._between

    def continuation(self, text: str) -> tuple[int, ...]:
        """An answer's ids after a prompt, without the end token: a verbalizer, or an answer."""
        return self.ids(self._lead + text.strip())

    def _worked(self, answer: str) -> tuple[int, ...]:
        """The answer of an example in the prompt; cut where pieces encode as they would jointly."""
        return self.ids(f" {answer.strip()}\n\n")

    def question(
        self,
        example: QuestionExample,
        room: int | None = None,
        shots: Sequence[QuestionExample] = (),
    ) -> tuple[int, ...]:
        """The generative prompt: instruction, context, question. Examples of one context share all but the question.

        `room` is the most tokens that it may take: a context that is too long loses its end, never the question. `shots`
        are questions that stand before it with their answers; neighbours on one context share it. Raises UserError where
        the shots and the question alone take more than `room`.
        """
        # The cut falls after each piece's closing blank line, where pieces encode as they would jointly.
        before = self._before + self.ids(self.prompt.instruction)
        context: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
        told = None
        for one in (*shots, example):
            if one.context != told:
                before += context + after
                context, after = self.ids(self.prompt.context.format(context=one.context)), ()
                told = one.context
            after += self.ids(self.prompt.question.format(question=one.question))
            if one is not example:
                after += self._worked(answer_text(one, self.prompt.no_answer))
        after += self._between
        if room is not None and len(before) + len(context) + len(after) > room:
            if len(before) + len(after) > room:
                raise UserError(
                    f"question {example.id}: its prompt takes {len(before) + len(after)} tokens without the passage, and "
                    f"the model has room for {room}; lower eval.num_fewshot"
                )
            context = context[: room - len(before) - len(after)]
        return before + context + after

    def completion(self, example: QuestionExample) -> tuple[int, ...]:
        """What the model learns to write after `question`: the answer and the end token."""
        return (*self.continuation(answer_text(example, self.prompt.no_answer)), self.end_id)

    def encode(self, example: QuestionExample, training: bool) -> Encoded:
        return Encoded(
            example.id, self.question(example), self.completion(example) if training else ()
        )

    def span_pieces(self, example: QuestionExample) -> SpanPieces:
        question = SPAN_PREFIX.format(question=example.question)
        return SpanPieces(self._bos + self.ids(question), self.ids(SPAN_SUFFIX))

    def offsets(self, context: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Ids of a context and the characters of each token, without the white space that a token may start with."""
        encoding = self.tokenizer(
            context,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        trimmed = tuple(trim(context, start, end) for start, end in encoding["offset_mapping"])
        return tuple(encoding["input_ids"]), trimmed

    def text(self, ids: list[int]) -> str:
        """The text of generated ids, control tokens left out."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _chat_frame(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Ids before the user's text, between it and the answer, and the id that ends the answer.

        The template is rendered once, around place-holders; data never pass through it, so they cannot open a turn.
        """
        turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
        if self.prompt.system:
            turns.insert(0, {"role": "system", "content": self.prompt.system})
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, date_string=_TEMPLATE_DATE
            )
            before, rest = rendered.split(_USER)
            between, after = rest.split(_ASSISTANT)
        except (TemplateError, ValueError, TypeError) as error:
            hint = "; it may take no prompt.system" if self.prompt.system else ""
            raise UserError(
                f"the tokenizer's chat template does not write one turn after the other ({error}){hint}"
            ) from None
        pieces = [
            tuple(self.tokenizer(piece, add_special_tokens=False)["input_ids"])
            for piece in (before, between, after)
        ]
        if not pieces[2]:
            raise UserError("the chat template writes nothing after an answer, so none could end")
        return pieces[0], pieces[1], pieces[2][0]


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The bounds of a piece of text without the white space at its edges."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
