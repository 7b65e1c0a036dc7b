"""Requests to a server of the OpenAI API, which are repeated after temporary failures.

The API key is read from the environment, sent to the server, and written nowhere.
"""

import json
import logging
import os
import random
import threading
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError

from llama_peft.errors import UserError
from llama_peft.run_folder.ladder.rungs import SERVER
from llama_peft.system.numbers import Count, first_fault

log = logging.getLogger(__name__)

KEY, URL = "OPENAI_API_KEY", SERVER
"""The variables of the environment that OpenAI's own client reads."""
TRIES = 8
"""How often a request is sent at most; the pauses between take a minute and a half."""
PAUSE = 1.0
"""Seconds before a request is sent again. Each further pause is twice as long."""
_LONGEST_PAUSE = 30.0
SILENCE = 600.0
"""Seconds without a byte after which a request counts as lost: a busy server lets requests wait."""
_LARGEST = 1 << 26
"""Bytes of an answer that are read at most."""
_TEMPORARY = (408, 425, 429)
"""Status codes below 500 after which the same request may succeed."""
Form = TypeVar("Form", bound=BaseModel)
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _whole(text: str) -> str:
    """Return a text in which half of a character is a replacement character, as in texts of a tokenizer."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Usage(BaseModel):
    """The tokens that a server counted."""

    prompt_tokens: Count
    completion_tokens: Count = 0


class LogProbabilities(BaseModel):
    """The log-probability of each token; the first one of a prompt has none."""

    token_logprobs: list[float | None]


class Choice(BaseModel):
    """What a server wrote after one prompt. The token ids are vLLM's addition to the API."""

    text: Annotated[str, AfterValidator(_whole)]
    token_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None
    logprobs: JsonValue = None

    @property
    def scores(self) -> list[float | None]:
        """The log-probability of each token; empty if they are not told, or in a form of another API."""
        try:
            return LogProbabilities.model_validate(self.logprobs).token_logprobs
        except ValidationError:
            return []


class Completion(BaseModel):
    """The answer of `POST /completions`."""

    choices: list[Choice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class Refusal(Exception):
    """An answer that the same request would get again. Its text is the server's, in one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Failed(Exception):
    """A failure after which the same request may succeed. wait: the seconds that the server asks for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def checked_url(given: str | None) -> str:
    """Return the address of a server, without a slash at its end. Raises UserError unless it is one of
    the web, without a password or a key inside.
    """
    from huggingface_hub.utils import httpx

    text = given or os.environ.get(URL)
    if not text:
        raise UserError(
            f"--engine openai needs the address of a server: give --base-url http://127.0.0.1:8000/v1, or set {URL}"
        )
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(
            "--base-url: this is no web address; write one such as http://127.0.0.1:8000/v1"
        )
    if url.userinfo or url.query or url.fragment:
        raise UserError(
            f"--base-url: the address of {url.host} holds a password, a key or a question mark: leave it out, "
            f"and put the key into {KEY}"
        )
    return str(url).rstrip("/")


def environment_key() -> str | None:
    """Return the API key of the environment; None if there is none."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY}: this key holds a character that no request can carry")
    return key or None


class Client:
    """Sends requests to one server, from any thread. Counts what the answers took."""

    def __init__(self, base_url: str, key: str | None) -> None:
        from huggingface_hub.utils import httpx

        self.base_url, self._told = base_url, set[str]()
        self.requests, self.usage = 0, Usage(prompt_tokens=0)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(SILENCE, connect=10.0),
            limits=httpx.Limits(max_connections=None),
            # A proxy of the environment knows nothing of this machine.
            trust_env=httpx.URL(base_url).host not in ("127.0.0.1", "localhost", "::1"),
        )

    def complete(self, body: Mapping[str, JsonValue]) -> tuple[Choice, Completion]:
        """Return the answer to one prompt, and what stands around it. Raises Refusal."""
        found = self.ask("POST", f"{self.base_url}/completions", Completion, body)
        if len(found.choices) != 1:
            raise self._strange(f"it holds {len(found.choices)} choices for one prompt")
        with self._lock:
            self.requests += 1
            if found.usage is not None:
                self.usage.prompt_tokens += found.usage.prompt_tokens
                self.usage.completion_tokens += found.usage.completion_tokens
        return found.choices[0], found

    def ask(
        self,
        method: Literal["GET", "POST"],
        url: str,
        form: type[Form],
        body: Mapping[str, JsonValue] | None = None,
        tries: int = TRIES,
    ) -> Form:
        """Return an answer as the form that it must have.

        Raises Refusal if the server refuses, and UserError if it gives no such answer.
        """
        pause, number = PAUSE, 1
        while True:
            try:
                return self._formed(form, self._once(method, url, body))
            except _Failed as failure:
                if number == tries or self._closed.is_set():
                    raise UserError(
                        f"{self.base_url}: {failure}, {number} times; finished predictions are kept: the same "
                        "command continues when the server answers again"
                    ) from None
                wait = max(failure.wait, pause * random.uniform(1, 1.5))
                self._tell(f"{self.base_url}: {failure}; the request is sent again")
            self._closed.wait(wait)
            pause, number = min(2 * pause, _LONGEST_PAUSE), number + 1

    def _tell(self, line: str) -> None:
        """Log a line once: at a busy server, many requests fail alike."""
        if line not in self._told:
            self._told.add(line)
            log.info("%s", line)

    def _formed(self, form: type[Form], value: JsonValue) -> Form:
        try:
            return form.model_validate(value)
        except ValidationError as error:
            raise self._strange(first_fault(error, "the whole")) from None

    def _once(self, method: str, url: str, body: Mapping[str, JsonValue] | None) -> JsonValue:
        """Return the answer to a request that is sent once. Raises _Failed, or Refusal."""
        from huggingface_hub.utils import httpx

        try:
            with self._http.stream(method, url, json=body) as response:
                raw = self._read(response.iter_bytes())
        except httpx.RequestError as error:
            raise _Failed(_reason(error)) from None
        except RuntimeError:  # the client was closed while this thread waited
            raise _Failed("the evaluation has ended") from None
        status = response.status_code
        if response.is_success:
            try:
                found: JsonValue = json.loads(raw)
                return found
            except (ValueError, RecursionError):
                raise _Failed("its answer is not JSON") from None
        message = _message(raw)
        if status not in _TEMPORARY and status < 500:
            raise Refusal(status, message)
        asked = response.headers.get("Retry-After", "")
        wait = min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else 0.0
        raise _Failed(f"it answers {status}{message and f' ({message})'}", wait)

    def _read(self, parts: Iterable[bytes]) -> bytes:
        raw = bytearray()
        for part in parts:
            raw += part
            if len(raw) > _LARGEST:
                raise self._strange(f"it is longer than {_LARGEST >> 20} MB")
        return bytes(raw)

    def _strange(self, why: str) -> UserError:
        return UserError(
            f"{self.base_url}: its answer is not one of the completions API of OpenAI ({why})"
        )

    def close(self) -> None:
        """End all connections, and all repetitions."""
        self._closed.set()
        self._http.close()


def _reason(error: Exception) -> str:
    from huggingface_hub.utils import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "no server answers there"
    if isinstance(error, httpx.TimeoutException):
        return "it sent nothing for too long"
    return f"the connection broke ({type(error).__name__})"


def _message(raw: bytes) -> str:
    """Return what a server says about a refusal, in one line; empty if it says nothing."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return " ".join(text.split())[:200]
