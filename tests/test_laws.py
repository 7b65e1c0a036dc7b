"""The laws of the architecture: which room imports which, what lies at the top, and that no test reaches a network."""

import ast
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import resolve_name
from pathlib import Path

import pytest

from tests.support.paths import ROOT, tracked

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("llama_peft", "eval")
    for path in (ROOT / package).rglob("*.py")
}
ROWS = (
    {"errors", "scores", "tasks"},
    {"system"},
    {"recipe", "prefix_tree", "tiny"},
    {"data", "model"},
    {"tokens"},
    {"run_folder"},
    {"features"},
    {"inference"},
    {"training", "export"},
    {"doctor"},
    {"rehearsal", "ladder", "serving", "survey"},
)
"""The rooms of llama_peft, bottom row first. A room imports itself and the rows below, and nothing of its own row."""
ROOMS = set().union(*ROWS)
FACE = {
    "llama_peft",
    "llama_peft.__init__",
    "llama_peft.__main__",
    "llama_peft.rehearsal.command",
    "llama_peft.ladder.command",
    "llama_peft.serving.command",
}
"""The public face, which imports when it is asked, and the command lines."""
Graph = Mapping[str, set[str]]


def imports(source: str, package: str) -> set[str]:
    """The modules of ours that a source text of a package imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names = {alias.name for alias in node.names}
            if module == "llama_peft":  # the version is data, and every room may write it down
                names -= {"__version__"}
            inner = {f"{module}.{name}" for name in names}
            found |= inner | ({module} if not inner <= MODULES.keys() else set())
    return {name for name in found if name in MODULES}


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


IMPORTS: Graph = {
    name: imports(path.read_text("utf-8"), package_of(path)) for name, path in MODULES.items()
}


def room(module: str) -> str:
    """The folder of llama_peft that a module lies in, or its own name if it lies in none; "eval" for all of eval."""
    first, *rest = module.split(".")
    return rest[0] if first == "llama_peft" and rest else first


def allowed(module: str) -> set[str]:
    """The rooms that a module may import from."""
    if module in FACE or module.startswith("llama_peft.commands."):
        return ROOMS | {"llama_peft", "cli", "__main__", "commands"}
    if room(module) == "cli":
        return {"errors", "system"}
    if room(module) == "eval":
        return (ROOMS | {"eval", "cli"}) - {
            "training",
            "export",
            "doctor",
            "rehearsal",
            "ladder",
            "serving",
            "survey",
        }
    for number, row in enumerate(ROWS):
        if room(module) in row:
            return {room(module)}.union(*ROWS[:number])
    raise AssertionError(f"{module} lies in none of the rows: {ROWS}")


def broken_arrows(graph: Graph) -> list[str]:
    """The imports that go up, or sideways, as "importer -> imported"."""
    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if room(other) not in allowed(name)
    ]


def cycle(graph: Graph) -> list[str]:
    """The modules of a circle of imports, empty if there is none. A package is not counted for its modules' imports."""
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        done.add(name)
        below = graph.get(name, set()) - {"llama_peft", "eval"}
        return next(filter(None, (visit(other, [*above, name]) for other in sorted(below))), [])

    return next(filter(None, (visit(name, []) for name in graph)), [])


def test_arrows_point_down() -> None:
    assert not broken_arrows(IMPORTS)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("llama_peft.system.files", "llama_peft.recipe.load"),
        ("llama_peft.data.sources.files", "llama_peft.model.heads"),
        ("llama_peft.model.backbone", "llama_peft.data"),
        ("llama_peft.tokens.prompts", "llama_peft.run_folder.layout"),
        ("llama_peft.training.fit", "llama_peft.export.push"),
        ("llama_peft.export.stage", "llama_peft.training.fit"),
        ("llama_peft.system.files", "llama_peft.cli"),
        ("llama_peft.tasks", "llama_peft.errors"),
        ("llama_peft.cli", "llama_peft.recipe"),
        ("llama_peft.inference.predict", "llama_peft"),
        ("llama_peft.inference.predict", "eval.harness"),
        ("llama_peft.__main__", "eval.job"),
        ("llama_peft", "eval.harness"),
        ("eval.harness", "llama_peft.training.rows"),
        ("eval.report.page", "llama_peft.export.card"),
        ("llama_peft.training.fit", "llama_peft.rehearsal.base"),
        ("eval.report.page", "llama_peft"),
        ("eval.ladder.read", "llama_peft.ladder.walk"),
        ("llama_peft.ladder.walk", "eval.harness"),
        ("llama_peft.ladder.evaluation", "eval.ladder.steps"),
        ("llama_peft.ladder.walk", "llama_peft.rehearsal.base"),
        ("llama_peft.training.fit", "llama_peft.ladder.walk"),
    ],
)
def test_the_law_of_arrows_bites(importer: str, imported: str) -> None:
    whole = {**IMPORTS, importer: {*IMPORTS.get(importer, ()), imported}}
    assert f"{importer} -> {imported}" in broken_arrows(whole)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("llama_peft.export.stage", "llama_peft.run_folder.layout"),
        ("llama_peft.data.sources.files", "llama_peft.data.examples"),
        ("llama_peft", "llama_peft.training.fit"),
        ("llama_peft.__main__", "llama_peft.export.push"),
        ("eval.harness", "llama_peft.prefix_tree.decode"),
        ("eval.__main__", "llama_peft.cli"),
    ],
)
def test_arrows_that_the_law_allows(importer: str, imported: str) -> None:
    assert not broken_arrows({importer: {imported}})


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("def f():\n    from llama_peft.model import heads", "llama_peft.data", "llama_peft.model.heads"),
        ("import llama_peft.export.push", "eval", "llama_peft.export.push"),
        ("from ..export.push import push", "llama_peft.training", "llama_peft.export.push"),
        ("from . import harness", "eval", "eval.harness"),
        ("from llama_peft import train", "eval", "llama_peft"),
        ("if TYPE_CHECKING:\n    from ..model.heads import Head", "llama_peft.data", "llama_peft.model.heads"),
    ],
)  # fmt: skip
def test_every_way_to_import_is_seen(source: str, package: str, found: str) -> None:
    assert imports(source, package) == {found}
    assert not imports("from llama_peft import __version__", package)


def test_no_import_cycles() -> None:
    assert not cycle(IMPORTS)
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_metrics_import_nothing_else_of_ours_but_where_numbers_are_kept() -> None:
    kept = {"llama_peft.system.sequences.arrays"}
    for name, found in IMPORTS.items():
        if name.startswith("eval.metrics"):
            assert not {other for other in found - kept if not other.startswith("eval.metrics")}, (
                name
            )


def test_imports_inside_eval_are_relative() -> None:
    """A wheel installs eval as llama_peft_eval, where `import eval` would be a stranger's module."""
    for name, path in MODULES.items():
        if name.startswith("eval"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                absolute = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
                absolute += [a.name for a in node.names] if isinstance(node, ast.Import) else []
                assert not [found for found in absolute if found.split(".")[0] == "eval"], name


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


def test_nothing_but_the_loopback_can_be_reached() -> None:
    """Law 13: the guard of every other test holds, here and in child processes."""
    with pytest.raises(AssertionError, match="asked for"), socket.socket() as one:
        one.connect(("192.0.2.1", 80))
    code = "import socket; socket.socket().connect(('192.0.2.1', 80))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the network was asked for" in child.stderr
