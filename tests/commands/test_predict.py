"""`predict` takes many texts at once, lines and files, and says what its numbers are."""

import io
import sys
from pathlib import Path

import pytest

from llama_peft import cli
from llama_peft.__main__ import app
from llama_peft.inference.ask import load_run
from tests.support.paths import RUNS_0_1_0

CLASSIFIER, SPAN = RUNS_0_1_0 / "classifier", RUNS_0_1_0 / "span"
TEXTS = ["A warm film.", "The plot was dull."]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*words: str | Path, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["llama-peft", "predict", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.run(app)
        out, error = capsys.readouterr()
        assert (stop.value.code or 0) == code, error
        return error if code else out

    return run


def lines() -> list[str]:
    """What is printed of the two texts."""
    found = []
    for text, reply in zip(TEXTS, load_run(CLASSIFIER).predict(TEXTS), strict=True):
        ordered = sorted(reply.probabilities.items(), key=lambda one: -one[1])
        chances = ", ".join(f"{name} {p:.4f}" for name, p in ordered)
        found.append(f"{reply.prediction}  ({chances})  | {text}")
    return found


def test_many_texts_and_one(said) -> None:
    assert said(CLASSIFIER, *TEXTS).splitlines() == lines()
    assert said(CLASSIFIER, TEXTS[0]).strip() == lines()[0].partition("  |")[0]


def test_lines_of_standard_input(said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n".join(TEXTS)))
    assert said(CLASSIFIER, "-").splitlines() == lines()


def test_a_file_of_lines(said, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffA warm film.\r\n\r\nThe plot was dull.", "utf-8")
    found = said(CLASSIFIER, "--file", file).splitlines()
    assert len(found) == 2 and '"id": "mine-2"' in found[1] and '"label": ' in found[0]
    assert "question and passage" in said(SPAN, "--file", file, code=2)


def test_several_questions_on_a_passage(said) -> None:
    passage = "Anna Berg was born in Turin."
    found = said(SPAN, "--context", passage, "--question", "Who?", "--question", "Where?")
    assert [line.partition("| ")[2] for line in found.splitlines()] == ["Who?", "Where?"]
    assert found.count("(no answer 0.") == 2


def test_a_file_name_is_not_a_text(said, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("A warm film.", "utf-8")
    assert f"write --file {file}" in said(CLASSIFIER, file, code=2)
    assert f'write --context "$(cat {file})"' in said(
        SPAN, "--question", "Who?", "--context", file, code=2
    )
