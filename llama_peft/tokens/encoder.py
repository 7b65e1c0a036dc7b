"""The one place where text becomes token ids.

The ids of a prompt are the ids of its whole text, because many tokenizers join what stands on both
sides of a border: a model is served with the whole text. So no piece is encoded alone, and an
answer is what its text adds to the ids of its prompt.

In a chat template, control tokens are read from the template alone. If text from data holds the
string of one, the text between the template's control tokens is encoded as ordinary text. Control
tokens are the special tokens, and what the template uses although the tokenizer holds it as an
ordinary added token.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from llama_peft.errors import UserError
from llama_peft.system.limits import LimitError, limited

if TYPE_CHECKING:
    from pydantic import JsonValue
    from tokenizers import AddedToken
    from transformers import BatchEncoding, PreTrainedTokenizerBase

# Placeholders for the text of a turn while a chat template is rendered. No template contains these
# private-use characters.
_USER, _ASSISTANT = "\ue000user\ue001", "\ue000assistant\ue001"
# Llama 3's template prints today's date; a fixed date keeps prompts the same every day.
_TEMPLATE_DATE = "01 Jan 2025"
_FRAME_LENGTH = 100_000
"""The most characters that a chat template may write around the system turn and two short ones."""
_ANY_TEXT = "x"

Ids = tuple[int, ...]
Offsets = tuple[tuple[int, int], ...]
"""The (start, end) characters of each token."""


class Frame(NamedTuple):
    """What stands around a prompt and its answer."""

    before: str
    between: str
    """Up to the answer. It does not end in a space, which tokenizers join to the next word."""
    lead: str
    """The spaces before the answer."""
    tail: str
    """The text between the answer and the token that ends it."""
    end_id: int


def frame_of(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> Frame:
    """Return what the chat template writes around a user's turn and its answer.

    Without a chat template, the answer follows the prompt and the end-of-text token ends it. Raises
    UserError if nothing can end an answer.
    """
    if not tokenizer.chat_template:
        return Frame("", "", " ", "", _end_of_text(tokenizer))
    before, between, after = _rendered(tokenizer, system)
    bare = between.rstrip(" ")
    tail, end_id = _ending(tokenizer, after)
    return Frame(before, bare, between[len(bare) :], tail, end_id)


class TextEncoder:
    """Encodes prompts and answers in one frame with one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", frame: Frame) -> None:
        ordinary = _ordinary_controls(tokenizer, frame)
        self._tokenizer = _with_special(tokenizer, ordinary) if ordinary else tokenizer
        self.frame = frame
        self.bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        self._last: tuple[str, Ids] | None = None
        added = self._tokenizer.added_tokens_decoder
        self._controls = {id_ for id_, token in added.items() if token.special}

    def plain(self, text: str) -> Ids:
        """Return the ids of text alone, in which no string is a control token."""
        return tuple(_encoded(self._tokenizer, text, split_special_tokens=True)["input_ids"])

    def plain_with_offsets(self, text: str) -> tuple[Ids, Offsets]:
        """Return the ids of text alone, and the characters of each token."""
        return _with_offsets(self._tokenizer, text, split_special_tokens=True)

    def prompt(self, body: str) -> Ids:
        """Return the ids of a prompt, up to the answer."""
        # What looks for the texts that fit a prompt ends with the prompt that it measured last.
        if self._last is None or self._last[0] != body:
            self._last = (body, next(self._whole([body], [""])))
        return self._last[1]

    def answered(self, bodies: Sequence[str], answers: Sequence[str]) -> Iterator[tuple[Ids, Ids]]:
        """Yield the ids of each prompt, and those of its answer with the end token."""
        written = [self.frame.lead + answer.strip() + self.frame.tail for answer in answers]
        for prompt, added in self._answered(bodies, written):
            yield prompt, (*added, self.frame.end_id)

    def continuation(self, tail: str, answer: str) -> Ids:
        """Return the ids of an answer, without its end token, after every prompt that ends so."""
        return next(self._answered([_ANY_TEXT + tail], [self.frame.lead + answer.strip()]))[1]

    def _answered(self, bodies: Sequence[str], written: Sequence[str]) -> Iterator[tuple[Ids, Ids]]:
        prompts, wholes = self._whole(bodies, [""] * len(bodies)), self._whole(bodies, written)
        for prompt, whole, text in zip(prompts, wholes, written, strict=True):
            # Generation starts after the prompt's own ids. If the answer would change them, it is
            # encoded alone.
            kept = whole[: len(prompt)] == prompt
            yield prompt, whole[len(prompt) :] if kept else self.plain(text)

    def _whole(self, bodies: Sequence[str], written: Sequence[str]) -> Iterator[Ids]:
        """Yield the ids of each body in the frame, with what is written after it.

        They are encoded together, which takes half as long as one by one.
        """
        before, between = self.frame.before, self.frame.between
        chat = bool(self._tokenizer.chat_template)
        texts = [before + one + between + more for one, more in zip(bodies, written, strict=True)]
        encoded = _encoded(self._tokenizer, texts, split_special_tokens=not chat)["input_ids"]
        for ids, body, more in zip(encoded, bodies, written, strict=True):
            if not chat:
                yield (*self.bos, *ids)
            elif [id_ for id_ in ids if id_ in self._controls] == self._frame_controls:
                yield tuple(ids)
            else:
                yield self._apart([*self._before, body, *self._between, more])

    def _apart(self, parts: Sequence[str | int]) -> Ids:
        """Return control tokens, given as numbers, and the ids of the text between them."""
        ids: list[int] = []
        for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
            if is_text:
                ids += self.plain("".join(map(str, group)))
            else:
                ids += map(int, group)
        return tuple(ids)

    @cached_property
    def _before(self) -> list[str | int]:
        return list(self._split(0, len(self.frame.before)))

    @cached_property
    def _between(self) -> list[str | int]:
        start = len(self.frame.before + _ANY_TEXT)
        return list(self._split(start, start + len(self.frame.between)))

    @cached_property
    def _frame_controls(self) -> list[int]:
        return [part for part in (*self._before, *self._between) if isinstance(part, int)]

    def _split(self, start: int, stop: int) -> Iterator[str | int]:
        """Yield the control tokens of a piece of the frame as numbers, and the text between them."""
        text = _sample(self.frame)
        for id_, (first, last) in zip(*_with_offsets(self._tokenizer, text), strict=True):
            if id_ in self._controls and start <= first < stop:
                yield from filter(None, [text[start:first]])
                yield id_
                start = last
        yield from filter(None, [text[start:stop]])


def _sample(frame: Frame) -> str:
    """Return the frame around a short text. Some tokenizers read a token's string only in its place."""
    return frame.before + _ANY_TEXT + frame.between


def _ordinary_controls(
    tokenizer: "PreTrainedTokenizerBase", frame: Frame
) -> "dict[int, AddedToken]":
    """Return the tokens that open a turn or end an answer, and that the tokenizer holds as ordinary
    added tokens: it would read their strings in any text.

    Words and line breaks that are added tokens belong to texts too.
    """
    found = {}
    for id_, token in tokenizer.added_tokens_decoder.items():
        # What is in the tail ends nothing.
        is_used = token.content in _sample(frame) and token.content not in frame.tail
        is_mark = re.search(r"[^\w\s]", token.content) is not None
        if not token.special and is_mark and (is_used or id_ == frame.end_id):
            found[id_] = token
    return found


def _with_special(
    tokenizer: "PreTrainedTokenizerBase", tokens: "Mapping[int, AddedToken]"
) -> "PreTrainedTokenizerBase":
    """Return a copy that holds these tokens as special ones, with the same ids: only such tokens can be
    left unread in a text. All other text has the same ids as before.
    """
    own = deepcopy(tokenizer)
    for token in tokens.values():
        token.special = True
    own.backend_tokenizer.add_special_tokens([*tokens.values()])
    return own


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", text: str | list[str], **options: bool
) -> "BatchEncoding":
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)


def _with_offsets(
    tokenizer: "PreTrainedTokenizerBase", text: str, **options: bool
) -> tuple[Ids, Offsets]:
    encoding = _encoded(tokenizer, text, return_offsets_mapping=True, **options)
    return tuple(encoding["input_ids"]), tuple(map(tuple, encoding["offset_mapping"]))


def _end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token, so an answer could not end; choose a base "
            "whose tokenizer has one"
        )
    return int(tokenizer.eos_token_id)


def _ending(tokenizer: "PreTrainedTokenizerBase", after: str) -> tuple[str, int]:
    """Return the text between an answer and its end token, and this token.

    The end token is the first control token after the answer. Some checkpoints add it as an
    ordinary token. If the template writes none, it is the end-of-text token.
    """
    added = tokenizer.added_tokens_decoder
    places = list(zip(*_with_offsets(tokenizer, after), strict=True))
    for wanted in (
        {id_ for id_, token in added.items() if token.special},
        {id_ for id_, token in added.items() if token.content.strip()},
    ):
        for id_, (start, _) in places:
            if id_ in wanted:
                return after[:start], id_
    return "", _end_of_text(tokenizer)


def _rendered(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> tuple[str, str, str]:
    """Return what the chat template writes before the user's text, before the answer, and after it.

    The template is rendered once, around placeholders. Data never pass through the template, so
    they cannot open a turn. A stranger may have written it, so it is compiled and rendered under
    limits.
    """
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    if system:
        turns.insert(0, {"role": "system", "content": system})

    def render() -> "JsonValue":
        text = tokenizer.apply_chat_template(turns, tokenize=False, date_string=_TEMPLATE_DATE)
        before, rest = text.split(_USER)
        between, after = rest.split(_ASSISTANT)
        if len(text) > _FRAME_LENGTH + len(system or ""):
            raise ValueError(f"it writes more than {_FRAME_LENGTH:,} characters")
        text.encode()  # raises ValueError for what no tokenizer takes: half of a character
        return [before, between, after]

    try:
        rendered = limited(render)
    except LimitError as error:
        advice = "choose another base"
        if system:
            advice += ", or, if the template has no system turn, remove prompt.system"
        raise UserError(
            "the tokenizer's chat template does not write one turn after the other "
            f"({error}); {advice}"
        ) from None
    assert isinstance(rendered, list), "render returns a list"
    before, between, after = map(str, rendered)
    return before, between, after
