"""Requests to the Hub that are repeated after a temporary failure, and that end at a deadline.

The client repeats some requests five times, and waits as long as a server asks. It tries to create a repository and to commit
only once, and it waits forever for a connection that sends nothing. Here all requests of a push share one deadline.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")
SILENCE = 60.0
"""Seconds without a byte after which a request counts as lost."""
UNREACHABLE = 60.0
"""Seconds to go on if no connection can be made: the usual cause is a cable or a name, and waiting repairs neither."""
_LONGEST_PAUSE = 30.0
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
"""Status codes after which the same request may succeed."""


class DeadlinePassed(Exception):
    """The work did not end in time."""


def within(seconds: float, work: Callable[[float], Result]) -> Result:
    """The result of `work(until)`, where `until` is the deadline on the clock of `time.monotonic`.

    The work is done in a thread, which is left behind at the deadline, because a request that hangs cannot be stopped.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    until = time.monotonic() + seconds

    def run() -> None:
        try:
            results.append(work(until))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise DeadlinePassed(f"it did not end within {seconds:.0f} s")
    return results[0]


def with_retries(request: Callable[[], Result], until: float) -> Result:
    """The result of a request, which is repeated after temporary failures, with longer and longer pauses."""
    from huggingface_hub.utils import httpx

    pause, reached = 1.0, time.monotonic()
    while True:
        limit_silence()
        try:
            return _unwrapped(request)
        except failures() as error:
            end = until
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                end = min(until, reached + UNREACHABLE)
            else:
                reached = time.monotonic()
            wait = max(pause, _asked_pause(error))
            if not _is_temporary(error) or time.monotonic() + wait > end:
                raise
            log.info("%s; trying again in %.0f s", reason(error), wait)
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _unwrapped(request: Callable[[], Result]) -> Result:
    """The result of a request. The client raises a RuntimeError if an upload fails; this raises the cause instead."""
    try:
        return request()
    except RuntimeError as error:
        if isinstance(error.__cause__, failures()):
            raise error.__cause__ from None
        raise


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of a request that fails between this machine and the Hub."""
    from huggingface_hub.utils import httpx

    return (httpx.HTTPError, OSError, ValueError, DeadlinePassed)


def limit_silence() -> None:
    """Set how long the client waits for a byte. It has no limit, and it forgets ours after connection errors."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import httpx

    get_session().timeout = httpx.Timeout(SILENCE)


def _is_temporary(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TEMPORARY
    if isinstance(error, json.JSONDecodeError):
        return True  # a proxy sent a page instead of the Hub's answer
    return isinstance(
        error, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError
    )


def _asked_pause(error: Exception) -> float:
    """The seconds of the answer's Retry-After header; 0 if there is none."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def reason(error: Exception) -> str:
    """A few words on why a request failed, for a message."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        known = {
            401: "the Hub does not know your token; log in with `hf auth login`",
            403: "your token may not write there",
            409: "somebody else is changing the repository at this moment",
            412: "somebody else has changed the repository since the push began; look at it first",
            413: "the Hub refuses files of this size",
            429: "the Hub gets too many requests (429)",
        }
        return known.get(status, f"the Hub answers {status}")
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
