"""The README and the pages behind it: commands exist, Python runs as it stands, keys and files are those of the code."""

import json
import os
import re
import shlex
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from typer.main import get_command

from eval.__main__ import app as eval_app
from eval.metrics.catalogue import METRICS
from llama_peft.__main__ import app
from llama_peft.recipe import RECIPES, load_recipe
from tests.benchmarks import table
from tests.support import forked
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path: path.read_text("utf-8") for path in (ROOT / ".docs/pages").glob("*.md")}
EVERYTHING = "\n".join([README, *PAGES.values()])
reference = SourceFileLoader("reference", str(ROOT / ".docs/reference.py")).load_module()
PROGRAMS = {"llama-peft": get_command(app), "llama-eval": get_command(eval_app)}


def blocks(language: str, text: str = EVERYTHING) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.mark.parametrize(
    "line", sorted({line for block in blocks("bash") for line in block.splitlines() if line})
)
def test_commands_parse(line: str) -> None:
    program, command, *words = shlex.split(line, comments=True)
    parser = PROGRAMS[program].commands[command]
    parser.make_context(command, list(words))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"make ([a-z][a-z0-9-]*)", EVERYTHING)) - {"mine"}
    recipes = {path.stem for path in RECIPES.glob("*.yaml")}
    for name in named - {"are"}:
        assert name in recipes or re.search(rf"^{name}:", makefile, re.M), name


def test_the_example_recipe_is_valid(tmp_path: Path) -> None:
    (text,) = set(blocks("yaml"))
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
    (code,) = set(blocks("python"))
    few = '["train.max_steps=2", "dataset.parts={train: 32, validation: 8, test: 16}", '
    code = code.replace('["train.', few + '"train.', 1)

    def run() -> None:
        os.chdir(tmp_path)
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})

    forked.import_libraries()
    assert forked.ended(forked.fork(run, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert "positive" in (tmp_path / "log").read_text().splitlines()[-1]


def test_the_table_of_rows_is_what_was_measured() -> None:
    found = json.loads((ROOT / "tests/benchmarks/results/rows.json").read_text("utf-8"))
    page = table.ROWS_PAGE.read_text("utf-8")
    assert f"<!-- {table.ROWS_MARK} -->\n{table.rows_markdown(found)}\n<!-- end -->" in page


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert README.count("\n") <= 200
    for page, text in {ROOT / "README.md": README, **PAGES}.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (page.parent / target).is_file(), (page, target)


def test_the_messages_are_those_of_the_code() -> None:
    """What the table of troubles quotes is what a user sees."""
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "llama_peft").rglob("*.py"))
    table = README.split("| what is printed |")[1].split("\n\n")[0]
    quoted = [
        one for row in table.splitlines() for one in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(quoted) >= 5
    for words in quoted:
        assert words in source, words


def test_keys_in_the_pages_exist() -> None:
    known = reference.pages()["reference/keys.md"]
    roots = "model|quantization|lora|head|dataset|prompt|train|eval|hub|ladder"
    for key in set(re.findall(rf"`((?:{roots})\.[a-z][a-z_0-9.]*)", EVERYTHING)):
        if not key.endswith((".py", ".yaml")):
            assert f"`{key}`" in known or f"## `{key}`" in known, key


def test_the_reference_has_every_command_and_metric() -> None:
    pages = reference.pages()
    for program, its in PROGRAMS.items():
        for name in its.commands:
            assert f"### `{program} {name}`" in pages["reference/commands.md"]
    for metric in METRICS:
        assert f"| `{metric.name}` |" in pages["reference/metrics.md"]
    assert pages["index.md"].startswith("# llama_peft")
