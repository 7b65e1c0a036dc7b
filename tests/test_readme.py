"""The README's commands exist and its Python runs as it stands."""

import os
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from eval.__main__ import app as eval_app
from llama_peft.__main__ import app
from llama_peft.recipe import RECIPES, load_recipe
from tests.support import forked
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text("utf-8")
PROGRAMS = {"llama-peft": get_command(app), "llama-eval": get_command(eval_app)}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.parametrize(
    "line", [line for block in blocks("bash") for line in block.splitlines() if line]
)
def test_commands_parse(line: str) -> None:
    program, command, *words = shlex.split(line, comments=True)
    parser = PROGRAMS[program].commands[command]
    parser.make_context(command, list(words))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"make ([a-z][a-z0-9-]*)", README)) - {"mine"}
    recipes = {path.stem for path in RECIPES.glob("*.yaml")}
    for name in named - {"are"}:
        assert name in recipes or re.search(rf"^{name}:", makefile, re.M), name


def test_the_example_recipe_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(tmp_path / "mine.yaml").dataset.columns.label == "team"


def test_trained_weights_in_the_table() -> None:
    from llama_peft.model import counts
    from tests.model.test_counts import LLAMA_1B

    for name, text in re.findall(r"^\| `make ([a-z0-9-]+)` \|.*\| ([\d,]+) \|$", README, re.M):
        recipe = load_recipe(name)
        counted = counts.count(LLAMA_1B, recipe.task, 2, recipe.lora)
        assert counted.trainable == int(text.replace(",", "")), name


def test_python_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    few = '["train.max_steps=2", "dataset.parts={train: 32, validation: 8, test: 16}", '
    code = code.replace('["train.', few + '"train.', 1)

    def run() -> None:
        os.chdir(tmp_path)
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})

    forked.import_libraries()
    assert forked.ended(forked.fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert "positive" in (tmp_path / "log").read_text().splitlines()[-1]
