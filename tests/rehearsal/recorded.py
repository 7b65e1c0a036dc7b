"""What rehearsals have found, as JSON, with a sum over the code that decides it.

So a test can say that a recorded table is older than the code. The sum leaves out comments, docstrings and layout: they
need no new rehearsal.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

from llama_peft.recipe import dump_recipe, load_recipe
from llama_peft.rehearsal import Rehearsal
from tests.support.paths import ROOT, SHARED

RESULTS = ROOT / "tests/benchmarks/results"
DECIDE = {
    **dict.fromkeys(
        (
            *("llama_peft/rehearsal/base.py", "llama_peft/rehearsal/steps.py"),
            *("llama_peft/rehearsal/device/*.py", "llama_peft/rehearsal/device/*.cpp"),
            "llama_peft/model/estimate/*.py",
            *(f"llama_peft/model/{name}.py" for name in ("counts", "heads", "lora", "quantize")),
            *(
                f"llama_peft/prefix_tree/{name}.py"
                for name in ("flex", "loss", "mask", "segments", "varlen")
            ),
            *("llama_peft/system/compiling/*.py", "llama_peft/training/trainer.py"),
        )
    ),
    "llama_peft/model/backbone.py": ("load", "fast_dtype", "dtype_name"),
    "llama_peft/training/setup.py": ("trained_module", "training_arguments", "fast_optimizer"),
    "llama_peft/training/tree_trainer.py": ("has_plain_head", "fused_answer_loss"),
}
"""What decides what a step holds and runs, beside the recipes and the libraries: files, or functions of them.

How examples become rows is not among it: laws of their own say that these stay the same.
"""
LIBRARIES = "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate"


class Row(TypedDict):
    """One rehearsal."""

    recipe: str
    card: str
    settings: list[str]
    base: str
    dtype: str
    steps: list[str]
    peak: int
    """The most bytes of tensors that any step held."""
    held: int
    """The same of the training, which is what the estimate is of."""
    estimated: int
    kernels: int
    """Of the fullest training step."""
    attention: list[str]


def row(found: Rehearsal) -> Row:
    """What is recorded of a rehearsal."""
    fullest = found.step("fullest step")
    return Row(
        recipe=found.recipe,
        card=found.card,
        settings=list(found.settings),
        base=found.base,
        dtype=found.dtype,
        steps=[step.name for step in found.steps],
        peak=found.peak,
        held=found.training_peak,
        estimated=sum(found.estimated.values()),
        kernels=sum(fullest.kernels.values()),
        attention=list(fullest.attention),
    )


class Named(Protocol):
    """What was rehearsed."""

    @property
    def recipe(self) -> str: ...
    @property
    def settings(self) -> tuple[str, ...]: ...
    @property
    def card(self) -> str: ...
    @property
    def base(self) -> str | None: ...


def among(name: str, rows: Sequence[Row], asked: Sequence[Named]) -> tuple[list[Row], str]:
    """All rows in the order asked for, new ones and those of an earlier record, and the sum of that.

    Only a record in which every row is new may say that it is of this code.
    """
    earlier = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    known = {_key(row): row for row in (*earlier["rows"], *rows)}
    keys = [(one.recipe, one.settings, one.card, one.base) for one in asked]
    return [known[key] for key in keys if key in known], earlier["code"]


def _key(row: Row) -> tuple[str, tuple[str, ...], str, str]:
    return row["recipe"], tuple(row["settings"]), row["card"], row["base"]


def write(name: str, rows: Sequence[Row], code: str | None = None) -> Path:
    """Write `results/<name>.json`, with the sum of the code that these rows are of, or another one."""
    recipes = sorted({row["recipe"] for row in rows})
    path = RESULTS / f"{name}.json"
    rows = [{**row, "base": row["base"].replace(str(SHARED), "../shared")} for row in rows]
    found = {"name": name, "code": code or code_sum(recipes), "recipes": recipes, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return path


def code_sum(recipes: Sequence[str]) -> str:
    """The sum over what `DECIDE` names, the recipes with every key, and the versions of the libraries."""
    total = hashlib.sha256()
    for pattern, functions in DECIDE.items():
        for path in sorted(ROOT.glob(pattern)):
            total.update(f"{path.relative_to(ROOT).as_posix()}\n{_of(path, functions)}\n".encode())
    for name in recipes:
        total.update(dump_recipe(load_recipe(name)).encode())
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.partition("==")[0] in LIBRARIES:
            total.update(line.encode())
    return total.hexdigest()[:16]


def _of(path: Path, functions: tuple[str, ...] | None) -> str:
    """What counts of a file: all of it, or some of its functions."""
    text = path.read_text("utf-8")
    if functions is None:
        return substance(text) if path.suffix == ".py" else text
    found = {
        node.name: substance(str(ast.get_source_segment(text, node)))
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    return "\n".join(found[name] for name in functions)


def substance(source: str) -> str:
    """A source text without comments, docstrings, layout and the commas that go with it.

    It is the same in every version of Python, which the tree of a source is not.
    """
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for (first, start), (last, end) in sorted(_left_out(source), reverse=True):
        kept = lines[first][:start] + lines[last][end:]
        lines[first : last + 1] = [kept, *[b""] * (last - first)]
    text = re.sub(r"\s", "", b"".join(lines).decode())
    return re.sub(r",(?=[)\]}])", "", text)


Place = tuple[int, int]
"""The line, from 0, and the byte in it."""


def _left_out(source: str) -> Iterator[tuple[Place, Place]]:
    """Yield where comments, docstrings and other texts that stand alone begin and end."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                assert node.end_lineno is not None and node.end_col_offset is not None
                end = node.end_lineno - 1, node.end_col_offset
                yield (node.lineno - 1, node.col_offset), end
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0] - 1
            start, end = (
                len(lines[line][:place].encode()) for place in (token.start[1], token.end[1])
            )
            yield (line, start), (line, end)
