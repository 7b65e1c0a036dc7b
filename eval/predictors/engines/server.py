"""A model behind a server, as an engine: the same prompts and the same ends of answers as here.

An answer is cut after its first stop token, as here. If a server tells no token ids, its text is used,
which ends before the line break that stops it; the answer is the first line in both cases.
"""

import json
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from pydantic import JsonValue

from llama_peft.errors import UserError
from llama_peft.inference.engine import Written
from llama_peft.run_folder.results import EngineRecord
from llama_peft.tokens.generate import Request
from llama_peft.tokens.prompts import Encoded, PromptEncoder

from ..kinds import EngineChoice
from .client import Choice, Client, Refusal
from .terms import SCORED, Terms, agree, refused

_MILLION = 1_000_000
Item = TypeVar("Item")
Result = TypeVar("Result")


class Place(NamedTuple):
    """Where a server is."""

    base_url: str
    key: str | None


class Server:
    """Continues prompts by asking a server, which is not asked before the first prompt."""

    def __init__(
        self,
        choice: EngineChoice,
        name: str,
        encoder: PromptEncoder,
        positions: int | None,
        open: Callable[[], Place],
        *,
        needs_scores: str = "",
        needs_ids: str = "",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """name: of the model at the server. open: starts the server, or only returns where it is.
        needs_scores, needs_ids: what needs log-probabilities of prompts, or token ids, in the words of
        a message; empty if nothing does.
        """
        self.choice, self.name, self.encoder, self.positions = choice, name, encoder, positions
        self._open, self._close, self._stop = open, close, encoder.stop_ids
        self._needs = {"the log-probabilities of a prompt": needs_scores, "token ids": needs_ids}
        self._client: Client | None = None

    @property
    def _url(self) -> str | None:
        """The address of a server that was not started here."""
        return self._open().base_url if self.choice.name == "openai" else None

    @property
    def identity(self) -> str:
        return json.dumps([self.choice.name, self._url, self.name])

    @cached_property
    def _asked(self) -> tuple[Client, Terms]:
        place = self._open()
        self._client = client = Client(place.base_url, place.key)
        terms = agree(client, self.encoder, self.name)
        told = [terms.tells_scores, terms.tells_ids]
        for (what, need), tells in zip(self._needs.items(), told, strict=True):
            if need and not tells:
                raise UserError(
                    f"{client.base_url}: this server does not tell {what}, which {need}"
                )
        return client, terms

    def write(
        self, prompts: Sequence[Encoded], max_new_tokens: int, not_first: int | None = None
    ) -> dict[str, Written]:
        write = partial(self._written, max_new_tokens, not_first)
        found = self._each(write, prompts)
        return {prompt.id: one for prompt, one in zip(prompts, found, strict=True)}

    def loglikelihoods(self, requests: Sequence[Request]) -> list[float] | None:
        _, terms = self._asked
        return self._each(self._score, requests) if terms.tells_scores else None

    def _written(self, most: int, not_first: int | None, prompt: Encoded) -> Written:
        if not_first is None:
            return self._continued(prompt.prompt, most)
        # A token is banned in a whole answer, so the first one is asked for alone.
        banned: dict[str, JsonValue] = {str(not_first): -100}
        ids = self._continued(prompt.prompt, 1, logit_bias=banned).ids
        if ids and most > 1 and ids[-1] not in self._stop:
            ids += self._continued((*prompt.prompt, *ids), most - 1).ids
        return Written(self.encoder.text(list(ids)), ids)

    def _continued(self, ids: Sequence[int], most: int, **more: JsonValue) -> Written:
        told = self._choice(ids, most, **more)
        if told.token_ids is None:
            return Written(told.text, ())
        written = told.token_ids
        last = next((i for i, token in enumerate(written) if token in self._stop), len(written))
        kept = tuple(written[: last + 1])
        return Written(self.encoder.text(list(kept)), kept)

    def _score(self, request: Request) -> float:
        prompt, continuation = request
        told = self._choice((*prompt, *continuation), 1, **SCORED)
        own = told.scores[len(prompt) : len(prompt) + len(continuation)]
        scores = [one for one in own if one is not None and math.isfinite(one)]
        return sum(scores) if len(scores) == len(continuation) else math.nan

    def _choice(self, ids: Sequence[int], most: int, **more: JsonValue) -> Choice:
        client, terms = self._asked
        try:
            choice, found = client.complete(terms.body(ids, most, **more))
        except Refusal as refusal:
            raise refused(client, refusal) from None
        terms.check_read(client, ids, found)
        return choice

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return what the work makes of each item, several at the same time."""
        _ = self._asked  # before the threads, which would all begin with it
        return each(work, items, self.choice.concurrency)

    def record(self) -> EngineRecord:
        found = EngineRecord(name=self.choice.name, base_url=self._url, served_model=self.name)
        if "_asked" not in vars(self):
            return found  # every prediction was made before
        client, terms = self._asked
        read, written = client.usage.prompt_tokens, client.usage.completion_tokens
        prices = self.choice.prices
        cost = None
        if prices is not None:
            cost = round((read * prices[0] + written * prices[1]) / _MILLION, 6)
        return found.model_copy(
            update={
                "server": terms.server,
                "prompts": "token ids" if terms.way.as_ids else "text",
                "requests": client.requests,
                "prompt_tokens": read,
                "completion_tokens": written,
                "cost": cost,
            }
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._close()


def each(work: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> list[Result]:
    """Return the result of each item, in their order. After an error no further item is begun.

    The threads of an executor would have to end before the process can: these are left behind, so
    that Ctrl-C does not wait for a slow server.
    """
    found = [Future[Result]() for _ in items]
    waiting = deque(zip(found, items, strict=True))

    def run() -> None:
        while waiting:
            try:
                future, item = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                future.set_result(work(item))
            except BaseException as error:
                waiting.clear()
                future.set_exception(error)

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        return [future.result() for future in found]
    finally:
        waiting.clear()
