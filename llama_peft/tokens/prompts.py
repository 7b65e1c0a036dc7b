"""All prompt text, and the one place where text becomes token ids and an answer becomes text again.

Pieces are encoded separately and then joined. So training, evaluation and prefix sharing see the
same ids, and no code searches for a boundary. Control tokens are placed by number; in text from
data, the strings of control tokens are encoded as ordinary text.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from llama_peft.data import QuestionExample
from llama_peft.errors import UserError
from llama_peft.recipe import Prompt
from llama_peft.system.limits import LimitError, limited

if TYPE_CHECKING:
    from pydantic import JsonValue
    from transformers import PreTrainedTokenizerBase

# Placeholders for the text of a turn while a chat template is rendered. No template contains these
# private-use characters.
_USER, _ASSISTANT = "\ue000user\ue001", "\ue000assistant\ue001"
# Llama 3's template prints today's date; a fixed date keeps prompts the same every day.
_TEMPLATE_DATE = "01 Jan 2025"
_FRAME_LENGTH = 100_000
"""The most characters that a chat template may write around the system turn and two short ones."""

_NO_LIMIT = sys.maxsize

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


class SpanPieces(NamedTuple):
    """The ids before and after a window of the context."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


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
        self._bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        if tokenizer.chat_template:
            self._before, self._between, self.end_id = self._chat_frame()
            self._lead = ""  # a turn starts with its text
        else:
            if tokenizer.eos_token_id is None:
                raise UserError(
                    "the tokenizer has no end-of-text token, so an answer could not end; choose a "
                    "base whose tokenizer has one"
                )
            self._before, self._between = self._bos, ()
            self.end_id = tokenizer.eos_token_id
            self._lead = " "  # a prompt must not end in a space, so the answer starts with it
        self.newline_ends = not tokenizer.chat_template
        """Whether output is cut at the first line break if the model never learned to stop."""

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """The ids of all tokens whose text contains a line break."""
        size = len(self.tokenizer)
        return frozenset(i for i in range(size) if "\n" in self.tokenizer.decode([i]))

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of text from data, which are never those of control tokens."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return tuple(encoding["input_ids"])

    def head_input(self, text: str, max_length: int) -> tuple[int, ...]:
        """Return the ids that a classification head reads: BOS and the template around the text.

        They are cut at the end to `max_length` tokens.
        """
        return (self._bos + self.ids(self.prompt.template.format(text=text)))[:max_length]

    def zero_shot(
        self,
        text: str,
        max_length: int = _NO_LIMIT,
        shots: Sequence[tuple[str, str]] = (),
        room: int = _NO_LIMIT,
    ) -> tuple[int, ...]:
        """Return the prompt after which the verbalizers are scored.

        A text that is too long loses its end. `shots` are pairs of text and verbalizer, which come
        before it as worked examples. `max_length` is the limit without them, `room` the limit with
        them. Raises UserError if they leave no room.
        """
        worked: tuple[int, ...] = ()
        for shot, verbalizer in shots:
            worked += self.ids(self.prompt.zero_shot.format(text=shot)) + self._worked(verbalizer)
        limit = min(max_length, room - len(worked))
        ids = self._cut_zero_shot(text, limit - len(self._before) - len(self._between))
        if ids is None and limit == max_length:
            raise UserError(
                f"train.max_length {max_length} has no room for prompt.zero_shot; raise it or "
                "shorten the prompt"
            )
        if ids is None:
            raise UserError(
                f"the worked examples take {len(worked)} tokens, which leaves no room for a text: "
                f"the model has room for {room}; lower eval.num_fewshot"
            )
        return self._before + worked + ids + self._between

    def _cut_zero_shot(self, text: str, space: int) -> tuple[int, ...] | None:
        """Return at most `space` ids of the template and the text; None if no text fits."""
        ids = self.ids(self.prompt.zero_shot.format(text=text))
        while len(ids) > space:
            _, offsets = self.offsets(text)
            kept = len(offsets) - (len(ids) - space)
            if kept <= 0:
                return None
            text = text[: offsets[kept - 1][1]]
            ids = self.ids(self.prompt.zero_shot.format(text=text))
        return ids

    def continuation(self, text: str) -> tuple[int, ...]:
        """Return the ids of an answer or a verbalizer after a prompt, without the end token."""
        return self.ids(self._lead + text.strip())

    def _worked(self, answer: str) -> tuple[int, ...]:
        """Return the ids of the answer of a worked example in the prompt.

        They end in a blank line, where pieces encode separately as they would together.
        """
        return self.ids(f" {answer.strip()}\n\n")

    def question(
        self,
        example: QuestionExample,
        room: int | None = None,
        shots: Sequence[QuestionExample] = (),
    ) -> tuple[int, ...]:
        """Return the generative prompt: the instruction, the context and the question.

        Examples of one context share all but the question. `room` is the largest number of tokens:
        a context that is too long loses its end. `shots` are questions with their answers, which
        come before it; neighbours on one context share it. Raises UserError if the prompt without
        the context takes more than `room`.
        """
        before, context, after = self._question_pieces(example, shots)
        if room is None:
            return before + context + after
        space = room - len(before) - len(after)
        if space < 0:
            raise UserError(
                f"question {example.id}: its prompt takes {len(before) + len(after)} tokens "
                f"without the passage, and the model has room for {room}; lower eval.num_fewshot"
            )
        return before + context[:space] + after

    def _question_pieces(
        self, example: QuestionExample, shots: Sequence[QuestionExample]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return the ids before the last context, those of this context, and those after it.

        Each piece ends in a blank line, where pieces encode separately as they would together.
        """
        before = self._before + self.ids(self.prompt.instruction)
        context: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
        last = None
        for one in (*shots, example):
            if one.context != last:
                before += context + after
                context, after = self.ids(self.prompt.context.format(context=one.context)), ()
                last = one.context
            after += self.ids(self.prompt.question.format(question=one.question))
            if one is not example:
                after += self._worked(answer_text(one, self.prompt.no_answer))
        return before, context, after + self._between

    def completion(self, example: QuestionExample) -> tuple[int, ...]:
        """Return the ids that the model learns to write: the answer and the end token."""
        return (*self.continuation(answer_text(example, self.prompt.no_answer)), self.end_id)

    def encode(self, example: QuestionExample, training: bool) -> Encoded:
        """Return the prompt of a question and, in training, the completion."""
        return Encoded(
            example.id, self.question(example), self.completion(example) if training else ()
        )

    def span_pieces(self, example: QuestionExample) -> SpanPieces:
        """Return the ids around the context in the prompt of a span head."""
        question = SPAN_PREFIX.format(question=example.question)
        return SpanPieces(self._bos + self.ids(question), self.ids(SPAN_SUFFIX))

    def offsets(self, context: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Return the ids of a context, and the (start, end) of each token without white space."""
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
        """Return the text of generated ids, without control tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _chat_frame(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Return the ids before the user's text and before the answer, and the id that ends it.

        The template is rendered once, around placeholders. Data never pass through the template, so
        they cannot open a turn. A stranger may have written it, so it is compiled and rendered under
        limits.
        """
        turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
        if self.prompt.system:
            turns.insert(0, {"role": "system", "content": self.prompt.system})

        def render() -> "JsonValue":
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, date_string=_TEMPLATE_DATE
            )
            before, rest = text.split(_USER)
            between, after = rest.split(_ASSISTANT)
            if len(text) > _FRAME_LENGTH + len(self.prompt.system or ""):
                raise ValueError(f"it writes more than {_FRAME_LENGTH:,} characters")
            text.encode()  # raises ValueError for what no tokenizer takes: half of a character
            return [before, between, after]

        try:
            rendered = limited(render)
            assert isinstance(rendered, list), "render returns a list"
        except LimitError as error:
            advice = "choose another base"
            if self.prompt.system:
                advice += ", or, if the template has no system turn, remove prompt.system"
            raise UserError(
                "the tokenizer's chat template does not write one turn after the other "
                f"({error}); {advice}"
            ) from None
        pieces = [
            tuple(self.tokenizer(piece, add_special_tokens=False)["input_ids"])
            for piece in rendered
        ]
        if not pieces[2]:
            raise UserError(
                "the tokenizer's chat template writes nothing after an answer, so an answer could "
                "not end; choose another base"
            )
        return pieces[0], pieces[1], pieces[2][0]


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of a piece of text without the white space at its edges."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
