"""The house's own laws: who imports whom, what stands at the top, what the project says of itself."""

import ast
import socket
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

from tests.support.paths import ROOT, tracked

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("llama_peft", "eval")
    for path in (ROOT / package).rglob("*.py")
}
APART = {"training", "export"}
"""Rooms of llama_peft that evaluation never enters."""
BOTTOM = {name for name in MODULES if name.startswith("eval.metrics")}


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= inner | ({module} if not inner <= MODULES.keys() else set())
    return {name for name in found if name in MODULES}


def test_training_never_imports_evaluation() -> None:
    for name, path in MODULES.items():
        if name.startswith("llama_peft"):
            assert not {i for i in imports(path) if i.startswith("eval")}, name


def test_evaluation_imports_only_what_both_sides_share() -> None:
    for name, path in MODULES.items():
        if name.startswith("eval"):
            rooms = {i.split(".")[1] for i in imports(path) if i.startswith("llama_peft.")}
            assert not rooms & APART, name


@pytest.mark.parametrize("name", sorted(BOTTOM))
def test_bottom_rooms_import_nothing_of_ours(name: str) -> None:
    own = {"eval", "eval.metrics"} if name.startswith("eval") else {"llama_peft"}
    beside = {i for i in imports(MODULES[name]) if i.startswith("eval.metrics")}
    assert not imports(MODULES[name]) - own - beside


def test_no_import_cycles() -> None:
    graph = {name: imports(path) - {"llama_peft", "eval"} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' -> '.join([*above, name])}"
        if name not in done:
            for below in graph[name]:
                visit(below, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_metrics_and_recipes_need_no_torch() -> None:
    command = (
        "import sys, llama_peft.recipe, llama_peft.data, eval.metrics.measure, eval.report;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT).returncode == 0


def test_the_top_of_the_house() -> None:
    """Only tracked files count, so a user may put data and recipes of their own beside them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    wanted = {"recipes", "llama_peft", "eval", "tests", "pyproject.toml", "README.md", "Makefile"}
    also = {"LICENSE", "constraints.txt"}
    assert wanted <= top and {name for name in top if not name.startswith(".")} <= wanted | also


def test_no_print_outside_the_command_lines() -> None:
    for name, path in MODULES.items():
        if name.endswith("__main__") or name == "llama_peft.cli":
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], name


def test_nothing_but_the_loopback_can_be_reached() -> None:
    """Law 13: the guard of every other test holds, here and in child processes."""
    with pytest.raises(AssertionError, match="asked for"), socket.socket() as one:
        one.connect(("192.0.2.1", 80))
    code = "import socket; socket.socket().connect(('192.0.2.1', 80))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the network was asked for" in child.stderr
