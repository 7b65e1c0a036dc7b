"""The sizes that keep the house easy to read: files in a folder, lines of a file and of a function, and how often `Any` stands."""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT, RUNS_0_1_0

CODE, TESTS = ("llama_peft", "eval"), ("tests",)
MOST_FILES = 12
MOST_LINES = {"llama_peft": 400, "eval": 400, "tests": 450}
MOST_FUNCTION_LINES = 30
"""Nine of ten functions are not longer."""
MOST_ANY = 6
"""In 1,000 lines, imports included."""


def files(*packages: str, ending: str = "") -> list[Path]:
    """The files of packages, without compiled ones and without the fixtures that version 0.1.0 wrote."""
    found = (path for package in packages for path in sorted((ROOT / package).rglob(f"*{ending}")))
    return [
        path
        for path in found
        if path.is_file() and "__pycache__" not in path.parts and RUNS_0_1_0 not in path.parents
    ]


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def function_lengths(source: str) -> list[int]:
    """Lines of every function of a source text, from `def` to its last line, sorted."""
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)


def ninth_decile(values: list[int]) -> int:
    """The smallest value that nine of ten are not above; `values` are sorted."""
    return values[-(-9 * len(values) // 10) - 1]


def count_any(source: str) -> int:
    """How often the name `Any` stands in a source text; prose is not counted."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.NAME and token.string == "Any" for token in tokens)


def test_no_folder_holds_more_files_than_a_reader_takes_in() -> None:
    counts = Counter(path.parent for path in files(*CODE, *TESTS))
    full = {str(k.relative_to(ROOT)): n for k, n in counts.items() if n > MOST_FILES}
    assert not full, f"split these folders, or move files to another one: {full}"


@pytest.mark.parametrize("package", [*CODE, *TESTS])
def test_no_file_is_too_long(package: str) -> None:
    lengths = {str(path.relative_to(ROOT)): lines(path) for path in files(package, ending=".py")}
    long = {name: n for name, n in lengths.items() if n > MOST_LINES[package]}
    assert not long, f"more than {MOST_LINES[package]} lines, split by job: {long}"


def test_functions_are_short() -> None:
    found = sorted(
        n for path in files(*CODE, ending=".py") for n in function_lengths(path.read_text("utf-8"))
    )
    assert ninth_decile(found) <= MOST_FUNCTION_LINES


def test_any_is_rare() -> None:
    sources = [path.read_text("utf-8") for path in files(*CODE, ending=".py")]
    found = 1000 * sum(map(count_any, sources)) / sum(len(s.splitlines()) for s in sources)
    assert found < MOST_ANY, f"{found:.1f} in 1,000 lines: give what passes between rooms a type"


def test_what_is_counted() -> None:
    source = "def f(\n    a: Any,\n) -> None:\n    # Any\n    return None\n\n\nasync def g(): ...\n"
    assert function_lengths(source) == [1, 5]
    assert count_any(source) == 1
    assert ninth_decile(list(range(1, 11))) == 9 and ninth_decile([7]) == 7


def test_the_map_names_every_file() -> None:
    """llama_peft/README.md has a line for each file of code; what an `__init__` does is told by its folder's heading."""
    named, folder = set(), ""
    for line in (ROOT / "llama_peft/README.md").read_text("utf-8").splitlines():
        if heading := re.match(r"### `(.+/)`", line):
            folder = heading[1]
        elif entry := re.match(r"- `([\w.]+)`: ", line):
            named.add(folder + entry[1])
    code = {
        str(path.relative_to(ROOT))
        for path in files(*CODE)
        if path.suffix in (".py", ".jinja", ".html", ".css", ".js", ".mplstyle", ".cpp")
    }
    faces = {"llama_peft/__init__.py", "eval/__init__.py"}
    code = {name for name in code if not name.endswith("__init__.py") or name in faces}
    assert not (missing := sorted(code - named)), f"files that the map does not name: {missing}"
    assert not (gone := sorted(named - code)), f"lines of the map without a file: {gone}"
