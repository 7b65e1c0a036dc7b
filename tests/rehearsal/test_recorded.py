"""Law 19: what is recorded of rehearsals is of this code, and stands where it is claimed."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_peft.system.formatting import memory
from tests.rehearsal import recorded
from tests.rehearsal.__main__ import MADE_BY, PAGE, README
from tests.rehearsal.recorded import RESULTS, code_sum, substance

SOURCE = '''"""A docstring, with a # that is no comment."""
x = ["#", 1]  # ü and a comment
def f(a: int) -> str:
    """One."""
    return f"{a} # {x}"  # two
'''


def found(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{name}.json is not recorded yet: run {MADE_BY[name]}")
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("name", MADE_BY)
def test_what_is_recorded_is_of_this_code(name: str) -> None:
    one = found(name)
    assert one["code"] == code_sum(one["recipes"]), (
        f"{name}.json is older than the code that it measures: run {MADE_BY[name]}"
    )


@pytest.mark.parametrize("name", MADE_BY)
def test_estimates_hold_and_every_step_was_reached(name: str) -> None:
    for row in found(name)["rows"]:
        assert {"fullest step", "prediction"} <= set(row["steps"]), row
        assert 0.98 * row["held"] <= row["estimated"] <= 1.1 * row["held"], row


@pytest.mark.parametrize(("name", "page"), [("rehearsal", README), ("rehearsal_variants", PAGE)])
def test_the_tables_show_what_is_recorded(name: str, page: Path) -> None:
    table = (
        page.read_text("utf-8").split(f"<!-- {MADE_BY[name]} -->\n")[1].split("\n<!-- end -->")[0]
    )
    lines = table.splitlines()[2:]
    rows = found(name)["rows"]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert f" {memory(row['peak'])} |" in line
        # A line is about the step of the highest peak: of a head alone, the pass that computes states.
        assert f" {row['kernels']:,} |" in line or row["steps"][0] == "features"
        assert line.startswith(f"| {row['recipe']} ") and f" {row['dtype']} |" in line


def test_the_sum_is_of_what_runs() -> None:
    """Words and layout need no new rehearsal; anything else does."""
    other = '''"""Another."""\nx = [\n    "#",\n    1,\n]\n\n\ndef f(  a: int) -> str:\n    return f"{a} # {x}"\n'''
    assert substance(SOURCE) == substance(other) != substance(SOURCE.replace("1]", "2]"))
    assert substance(SOURCE) != substance(SOURCE.replace("# {x}", "## {x}"))
    assert all(next(recorded.ROOT.glob(pattern), None) for pattern in recorded.DECIDE)
