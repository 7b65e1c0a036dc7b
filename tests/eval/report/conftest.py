"""Runs with a zero-shot and a tuned evaluation."""

from pathlib import Path

import pytest

from tests.support.evaluations import ANSWERS, EVIL, GOLDS, LABELS, says, trained, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classification run with a zero-shot and a tuned evaluation."""
    run = trained(tmp_path / "runs" / "sst2")
    write(run / "zero-shot", says(range(10)), GOLDS, labels=LABELS)
    training = {"wall_seconds": 7300.0, "peak_memory_bytes": 6_000_000_000}
    facts = {"kind": "head", "parameters": {"trainable": 4096}, "training": training}
    write(run / "tuned", says(range(2, 18)), GOLDS, labels=LABELS, **facts)
    return run


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    run = trained(tmp_path / "runs" / "squad")
    write(run / "zero-shot", {"q1": "Rome", "q2": "a house", "q3": "x", "q4": ""}, ANSWERS)
    write(run / "tuned", {"q1": "paris", "q2": "red", "q3": "", "q4": ""}, ANSWERS, kind="span")
    return run


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Labels, texts and recipe that mean something in HTML, Markdown or LaTeX."""
    labels = ["a_b|c", EVIL]
    golds = {f"<i>{i}": labels[i % 2] for i in range(6)}
    run = trained(tmp_path / "evil")
    texts = dict.fromkeys(golds, EVIL)
    first = dict.fromkeys(golds, labels[0])
    write(run / "zero-shot", first, golds, labels=labels, kind="zero-shot <b>100%</b>", texts=texts)
    write(run / "tuned", golds, golds, labels=labels, kind="a|b", texts=texts)
    (run / "recipe.yaml").write_text("text: </pre><script>alert(2)</script>\n", "utf-8")
    return run
