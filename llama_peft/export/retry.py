"""Requests to the Hub that outlast a bad moment, and end at a deadline.

The client retries some requests, five times and without a limit on what a server asks it to wait; creating a repository and
committing it tries once; and it waits for ever on a connection that says nothing. Here all of a push shares one deadline.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")
IDLE = 60.0
"""Seconds without a byte after which a request counts as lost."""
UNREACHABLE = 60.0
"""Seconds that no connection may come about: a name that is not found is mostly a cable, and waiting does not plug it in."""
_LONGEST_WAIT = 30.0
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class OverTime(Exception):
    """The deadline has passed."""


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """The result of `work`, done in a thread that is left behind when the time is over: a hanging request cannot be stopped."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise OverTime(f"no end after {seconds:.0f} s")
    return results[0]


def patiently(request: Callable[[], Result], until: float) -> Result:
    """Try a request again while what fails is the network's or the server's moment, with longer and longer waits."""
    from huggingface_hub.utils import httpx

    wait, reached = 1.0, time.monotonic()
    while True:
        be_impatient()
        try:
            return _unwrapped(request)
        except failures() as error:
            end = until
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                end = min(until, reached + UNREACHABLE)
            else:
                reached = time.monotonic()
            pause = max(wait, _asked_to_wait(error))
            if not _is_transient(error) or time.monotonic() + pause > end:
                raise
            log.info("%s; trying again in %.0f s", reason(error), pause)
        time.sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT)


def _unwrapped(request: Callable[[], Result]) -> Result:
    """The request's result or its own error: the client hides what fails in an upload behind a RuntimeError."""
    try:
        return request()
    except RuntimeError as error:
        if isinstance(error.__cause__, failures()):
            raise error.__cause__ from None
        raise


def failures() -> tuple[type[Exception], ...]:
    """What goes wrong between here and the Hub."""
    from huggingface_hub.utils import httpx

    return (httpx.HTTPError, OSError, ValueError, OverTime)


def be_impatient() -> None:
    """Give the client a limit of silence: it has none of its own, and makes itself anew after connection errors."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import httpx

    get_session().timeout = httpx.Timeout(IDLE)


def _is_transient(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    if isinstance(error, json.JSONDecodeError):
        return True  # a proxy's page where the Hub's answer should be
    return isinstance(
        error, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError
    )


def _asked_to_wait(error: Exception) -> float:
    """Seconds of the answer's Retry-After, 0 without one."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def reason(error: Exception) -> str:
    """An error of the client in a few words."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        says = {
            401: "the Hub does not know your token; log in with `hf auth login`",
            403: "your token may not write there",
            409: "somebody is changing the repository at this moment",
            412: "somebody has changed the repository meanwhile; look at it first",
            413: "the Hub finds it too large",
            429: "the Hub asks for patience (429)",
        }
        return says.get(status, f"the Hub answers {status}")
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
