"""What is said of a piece of work is true, and fits beside a bar."""

import pytest

from llama_peft.system.progress import words
from llama_peft.system.progress.words import Work, beside_bar, line, summary


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """A work of 1,000 steps, of which 200 were done before, and 200 in the last 100 seconds."""
    monkeypatch.setattr(words.time, "monotonic", lambda: 500.0)
    monkeypatch.setattr(words, "peak_memory", lambda: 1_200_000_000)
    facts = {"loss": 0.3141, "validation loss": 0.2718}
    return Work(
        name="training", unit="step", total=1000, start=200, done=400, began=400.0, facts=facts
    )


def test_the_rate_is_that_of_this_process_and_the_rest_is_thought_to_go_as_fast(work: Work) -> None:
    said = line(work)
    assert said.startswith("training: 400 of 1,000 steps (40 %), loss 0.3141, validation loss")
    assert "2.0 steps/s, 5 min 0 s left, peak 1.20 GB" in said


def test_nothing_is_said_that_is_not_known(work: Work) -> None:
    work.done = work.start
    assert "left" not in line(work) and "steps/s" not in line(work)
    work.done = work.total
    assert "left" not in line(work)
    assert summary(work).startswith("training: 1,000 steps (200 were done before) in 1 min 40 s")


def test_a_slow_work_says_seconds_a_unit(work: Work) -> None:
    work.done = 202
    assert "50 s per step" in line(work)


@pytest.mark.parametrize("width", range(34, 120, 4))
def test_what_stands_beside_a_bar_fits(work: Work, width: int) -> None:
    said = beside_bar(work, width)
    assert len(said) <= width and said.startswith("400/1,000 steps, 5 min 0 s left")
    assert "peak" in beside_bar(work, 120) and "loss 0.3141" in beside_bar(work, 50)
