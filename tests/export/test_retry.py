"""Which requests are repeated after a failure, for how long, and which reason is given."""

import socket

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from llama_peft.export import retry


class Clock:
    """A clock that moves only when somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(retry, "time", found)
    return found


def test_a_hub_that_cannot_be_reached_is_not_waited_for_until_the_deadline(
    clock: Clock,
) -> None:
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(httpx.ConnectError):
            retry.with_retries(lambda: httpx.get(address), 900)
    assert clock.now == 1 + 2 + 4 + 8 + 16 and clock.now + 30 > retry.UNREACHABLE


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
def test_what_the_client_wraps_counts_as_its_cause(
    clock: Clock, cause: Exception, says: str, tries: int
) -> None:
    tried = 0

    def upload() -> None:
        nonlocal tried
        tried += 1
        raise RuntimeError("Error while uploading") from cause

    with pytest.raises(retry.failures()) as said:
        retry.with_retries(upload, 1.5)
    assert retry.reason(said.value) == says and tried == tries


def test_a_fault_of_our_own_is_shown_as_it_is(clock: Clock) -> None:
    def fault() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        retry.with_retries(fault, 9)
