"""What one process of several says: a mistake that all find is said once, and a fault only if no other one died."""

import time

import pytest

from llama_peft.errors import UserError
from llama_peft.system.processes import job


@pytest.mark.parametrize(
    ("error", "count", "rank", "launched", "held"),
    [
        (UserError("a typo"), 1, 0, False, False),
        (UserError("a typo"), 2, 0, False, False),
        (UserError("a typo"), 2, 1, False, True),
        (UserError("a typo"), 2, 1, True, False),  # its launcher raises it once
        (RuntimeError("connection closed by peer"), 1, 0, False, False),
        (RuntimeError("connection closed by peer"), 2, 0, True, True),
    ],
)
def test_what_is_held_back(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    count: int,
    rank: int,
    launched: bool,
    held: bool,
) -> None:
    monkeypatch.setattr(job, "_HELD_BACK", 0.05)
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("RANK", str(rank))
    if launched:
        monkeypatch.setenv(job.LAUNCHER, "1")
    began = time.monotonic()
    with pytest.raises(type(error)), job.faults_held_back():
        raise error
    assert (time.monotonic() - began >= 0.05) == held
