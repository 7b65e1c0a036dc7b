"""What a server takes and tells, found out before it is asked for predictions.

Servers of one API differ: some take token ids, some text only; some refuse what they do not know; few
tell token ids or the log-probabilities of a prompt. And a server may have another model than the one
whose prompts it is sent. One request each tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, JsonValue

from llama_peft.errors import UserError
from llama_peft.tokens.prompts import PromptEncoder

from .client import KEY, Choice, Client, Completion, Refusal

_PROBE = (
    'In 1,024 naïve cafés of Zürich, "don\'t" costs €3.50;\n\tпривет, 東京のカフェ! x² ≠ 2x -> ¿qué?  '
    "Unbelievably, McDowell-Ørsted's re-examination of 7/11 wasn't antidisestablishmentarian."
)
"""A text that two tokenizers hardly split into equally many tokens."""


class Way(NamedTuple):
    """How prompts are sent."""

    as_ids: bool
    """As token ids; or else as text, which the server encodes."""
    extended: bool
    """With the settings that vLLM and SGLang have beside those of OpenAI."""


WAYS = (Way(True, True), Way(True, False), Way(False, True), Way(False, False))
"""The best first; the first one that a server takes is used."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How one model of one server is asked."""

    model: str
    """What the server calls it."""
    encoder: PromptEncoder
    way: Way
    tells_ids: bool = False
    """Whether the token ids of what was written are told."""
    tells_scores: bool = False
    """Whether the log-probabilities of a prompt's tokens are told."""
    server: str | None = None
    """What the server says of itself."""

    def body(self, ids: Sequence[int], max_tokens: int, **more: JsonValue) -> dict[str, JsonValue]:
        """Return the request that continues a prompt greedily, until what ends an answer."""
        end = str(self.encoder.tokenizer.decode([self.encoder.end_id]))
        stop = ["\n"] if self.encoder.newline_ends else []
        known: dict[str, JsonValue] = {
            "model": self.model,
            "prompt": [*ids] if self.way.as_ids else self._text(ids),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stop": [*stop, end],
        }
        if self.way.extended:
            # A model's own generation_config.json could ask for a penalty.
            known |= {
                "stop_token_ids": [*sorted(self.encoder.end_ids)],
                "repetition_penalty": 1.0,
                "return_token_ids": True,
            }
        return {**known, **more}

    def _text(self, ids: Sequence[int]) -> str:
        """Return a prompt as text without the token of its beginning, which a server puts there."""
        begins = ids[:1] == (self.encoder.tokenizer.bos_token_id,)
        own = list(ids[1:] if begins else ids)
        return str(self.encoder.tokenizer.decode(own, clean_up_tokenization_spaces=False))

    def check_read(self, client: Client, ids: Sequence[int], found: Completion) -> None:
        """Raise UserError unless a server has read the tokens of a prompt, and no others."""
        count = None if found.usage is None else found.usage.prompt_tokens
        if count is None and self.way.as_ids:
            return
        if count != len(ids):
            raise UserError(
                f"{client.base_url}: {self.model} reads {count or 'an untold number of'} tokens, and this "
                f"prompt has {len(ids)}: it cuts prompts, begins them in its own way, or has another "
                "tokenizer; serve the model that --model names, with all of its context"
            )


class _Entry(BaseModel):
    id: str
    owned_by: str | None = None


class _Models(BaseModel):
    data: list[_Entry]


class _Version(BaseModel):
    version: str


def agree(client: Client, encoder: PromptEncoder, name: str) -> Terms:
    """Return how a server is asked for a model. Raises UserError if it has another one, or refuses."""
    try:
        entry = _served(client, name)
        probe = (*_begin(encoder), *encoder.ids(_PROBE))
        terms, choice, found = _first_way(
            client, Terms(model=name, encoder=encoder, way=WAYS[0]), probe
        )
        terms.check_read(client, probe, found)
        _check_tokenizer(client, terms)
        told = [entry.owned_by if entry else None, _version(client), found.system_fingerprint]
        return Terms(
            model=name,
            encoder=encoder,
            way=terms.way,
            tells_ids=choice.token_ids is not None,
            tells_scores=_tells_scores(client, terms, probe),
            server=" ".join(filter(None, told))[:200] or None,
        )
    except Refusal as refusal:
        raise refused(client, refusal) from None


def refused(client: Client, refusal: Refusal) -> UserError:
    """Return the mistake that a server's refusal shows."""
    advice = {
        401: f"; set {KEY} to a key that it knows",
        403: f"; set {KEY} to a key that it knows",
        404: "; its address usually ends in /v1",
    }
    said = f": {refusal}" if str(refusal) else ""
    return UserError(
        f"{client.base_url}: the server refuses with {refusal.status}{said}{advice.get(refusal.status, '')}"
    )


def _served(client: Client, name: str) -> _Entry | None:
    """Return what a server says of a model; None if it lists no models."""
    try:
        found = client.ask("GET", f"{client.base_url}/models", _Models).data
    except Refusal as refusal:
        if refusal.status in (401, 403):
            raise
        return None
    for entry in found:
        if entry.id == name:
            return entry
    listed = ", ".join(entry.id for entry in found[:5]) or "no model"
    raise UserError(
        f"{client.base_url}: the server has {listed}, and not {name}: serve it, or if it is the same model under "
        "another name, say so with --served-model"
    )


def _version(client: Client) -> str | None:
    """Return the version that vLLM tells."""
    try:
        root = client.base_url.removesuffix("/v1")
        return client.ask("GET", f"{root}/version", _Version, tries=1).version
    except (Refusal, UserError):
        return None


def _begin(encoder: PromptEncoder) -> tuple[int, ...]:
    bos = encoder.tokenizer.bos_token_id
    return () if bos is None else (bos,)


def _first_way(
    client: Client, terms: Terms, probe: Sequence[int]
) -> tuple[Terms, Choice, Completion]:
    """Return the first way in which a server takes a prompt, with its answer."""
    first: Refusal | None = None
    for way in WAYS:
        own = Terms(model=terms.model, encoder=terms.encoder, way=way)
        try:
            return (own, *client.complete(own.body(probe, 1)))
        except Refusal as refusal:
            if refusal.status not in (400, 422):
                raise
            first = first or refusal
    assert first is not None
    raise first


def _check_tokenizer(client: Client, terms: Terms) -> None:
    """Raise UserError unless a server splits a text as the tokenizer here does.

    It may put a token of its own before the text.
    """
    ids = terms.encoder.ids(_PROBE)
    asked: Mapping[str, JsonValue] = {**terms.body(ids, 1), "prompt": _PROBE}
    choice, found = client.complete(asked)
    told = choice.prompt_token_ids
    count = None if found.usage is None else found.usage.prompt_tokens
    same = count in (len(ids), len(ids) + 1)
    if told is not None:
        same = tuple(told[-len(ids) :]) == ids and len(told) <= len(ids) + 1
    if not same:
        said = (
            "does not tell how it splits a text"
            if count is None
            else "splits a text into other tokens"
        )
        raise UserError(
            f"{client.base_url}: {terms.model} {said}, so it would read other prompts than the model that "
            "--model names: name the folder or Hub name of what is served there with --model"
        )


def _tells_scores(client: Client, terms: Terms, probe: Sequence[int]) -> bool:
    """Whether a server tells the log-probability of each token of a prompt."""
    if not terms.way.as_ids:
        return False
    try:
        choice, _ = client.complete(terms.body(probe, 1, **SCORED))
    except Refusal:
        return False
    row = choice.scores
    return len(row) in (len(probe), len(probe) + 1) and None not in row[1 : len(probe)]


SCORED: dict[str, JsonValue] = {"echo": True, "logprobs": 1}
"""Asks for the log-probabilities of a prompt."""
