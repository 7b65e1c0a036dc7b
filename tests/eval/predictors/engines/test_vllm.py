"""vLLM is started with the base and the adapter of a run, asked as any server, and ended.

It cannot be installed here. A small program of its name takes the same words, and passes the requests on
to the server of the tests.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval.predictors.kinds import EngineChoice
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from tests.support.completions.server import Completions, serve
from tests.support.eval.jobs import evaluate
from tests.support.paths import ROOT

from .conftest import NAME

VLLM = EngineChoice(name="vllm")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program named vllm on the path, and return the file in which it writes its words and its id."""
    place = tmp_path / "bin" / "vllm"
    place.parent.mkdir()
    place.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(PASSING_ON)!r})\n")
    place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WORDS_OF_VLLM", str(tmp_path / "words"))
    return tmp_path / "words"


PASSING_ON = ROOT / "tests" / "support" / "completions" / "passing_on.py"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_is_served_as_an_adapter_on_its_base(
    tuned_run: tuple[Recipe, Path, Completions],
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, folder, served = tuned_run
    with serve(replace(served, names=("base", "tuned"), asked=[])) as loopback:
        monkeypatch.setenv("PASSES_ON_TO", loopback.url.split(":")[2].removesuffix("/v1"))
        results = evaluate(recipe, folder, tmp_path / "there", engine=VLLM)
    pid, *words = program.read_text().split("\n")
    assert not is_alive(int(pid)), "it is ended with the evaluation"
    assert words[:2] == ["serve", NAME] and "--enable-prefix-caching" in words
    for option, value in (
        ("--lora-modules", f"tuned={folder / 'adapter'}"),
        ("--max-lora-rank", "8"),
        ("--dtype", "float32"),
        ("--generation-config", "vllm"),
        ("--host", "127.0.0.1"),
    ):
        assert words[words.index(option) + 1] == value
    assert {body["model"] for body in loopback.asked} == {"tuned"}
    engine = results.config.engine
    assert engine and (engine.name, engine.base_url) == ("vllm", None) and engine.requests
    assert results.configs["small"].dtype == "float32", "the weights are loaded as the recipe says"


def test_a_start_that_fails_is_one_line(
    asked: Recipe, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PASSES_ON_TO", raising=False)
    with pytest.raises(UserError, match=r"ended with 1: KeyError: 'PASSES_ON_TO'$"):
        evaluate(asked, NAME, tmp_path / "out", engine=VLLM)
    assert not is_alive(int(program.read_text().split("\n")[0]))


def test_without_vllm_there_is_advice(
    asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="the command vllm is not found; install it in"):
        evaluate(asked, NAME, tmp_path / "out", engine=VLLM)


def test_eight_bits_are_refused_before_anything_starts(
    asked: Recipe, program: Path, tmp_path: Path
) -> None:
    recipe = asked.changed(quantization={"load_in_8bit": True})
    with pytest.raises(UserError, match="vLLM has no 8-bit bases"):
        evaluate(recipe, NAME, tmp_path / "out", engine=VLLM)
    assert not program.exists()
