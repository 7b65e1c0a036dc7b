"""Which failures are waited out, how long, and what is said of them."""

import socket
import time

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from llama_peft import patience


def test_a_hub_that_cannot_be_reached_is_not_waited_for_until_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "UNREACHABLE", 2.0)
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(httpx.ConnectError):
            patience.patiently(lambda: httpx.get(address), started + 8)
    assert 0.9 < time.monotonic() - started < 4


def status(code: int) -> HfHubHTTPError:
    request = httpx.Request("PUT", "http://127.0.0.1/lfs/0")
    return HfHubHTTPError("said", response=httpx.Response(code, request=request))


@pytest.mark.parametrize(
    ("cause", "says", "tries"),
    [
        (status(403), "your token may not write there", 1),
        (status(503), "the Hub answers 503", 2),
        (httpx.ReadError("cut"), "cut", 2),
        (ValueError("no such file"), "no such file", 1),
    ],
)
def test_what_the_client_wraps_counts_as_its_cause(cause: Exception, says: str, tries: int) -> None:
    tried = 0

    def upload() -> None:
        nonlocal tried
        tried += 1
        raise RuntimeError("Error while uploading") from cause

    with pytest.raises(patience.failures()) as said:
        patience.patiently(upload, time.monotonic() + 1.5)
    assert patience.reason(said.value) == says and tried == tries


def test_a_fault_of_our_own_is_shown_as_it_is() -> None:
    def fault() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        patience.patiently(fault, time.monotonic() + 9)
