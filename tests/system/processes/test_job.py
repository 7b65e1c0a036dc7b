"""What one process of several says: a mistake that all find is said once, and a fault only if no other one died."""

import time

import pytest
from torch.distributed import DistBackendError

from llama_peft.errors import Died, UserError
from llama_peft.system.processes import job

GLOO = RuntimeError("[/a/gloo/transport/tcp/pair.cc:537] Read error:\nConnection reset by peer")


@pytest.mark.parametrize(
    ("error", "count", "rank", "launched", "held"),
    [
        (GLOO, 2, 0, False, True),
        (DistBackendError("NCCL error"), 2, 1, False, True),
        (DistBackendError("NCCL error"), 1, 0, False, False),
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
    of_others = count > 1 and (error is GLOO or isinstance(error, DistBackendError))
    with pytest.raises(Died if of_others else type(error)) as raised, job.faults_held_back():
        raise error
    assert "\n" not in str(raised.value)
    assert (time.monotonic() - began >= 0.05) == held


def test_a_process_with_work_of_its_own_has_a_launcher_and_no_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not job.has_launcher() and not job.shares_work() and job.sharers() == 1
    monkeypatch.setenv(job.LAUNCHER, "1")
    assert job.has_launcher() and job.shares_work()
    monkeypatch.setenv(job.BESIDE, "3")
    assert job.has_launcher() and not job.shares_work() and job.sharers() == 3
