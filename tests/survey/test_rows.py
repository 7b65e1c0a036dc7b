"""What many rows take before the first step, on paper, against what some take."""

import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pytest

from llama_peft.data import fingerprint
from llama_peft.recipe import Recipe
from llama_peft.survey.rows import rows_cost
from llama_peft.system.sequences import spool
from tests.benchmarks.rows import data as benchmark


@pytest.fixture
def spools(monkeypatch: pytest.MonkeyPatch) -> list[spool.Spool[object]]:
    """All lists that are made; a few hundred bytes of each stay in memory."""
    made, begin = list[spool.Spool[object]](), spool.Spool.__init__

    def init(self: spool.Spool[object], *items: object) -> None:
        made.append(self)
        begin(self, *items)  # type: ignore[arg-type]

    monkeypatch.setattr(spool.Spool, "__init__", init)
    monkeypatch.setattr(spool, "_IN_MEMORY", 1 << 9)
    monkeypatch.setattr(fingerprint, "_TOGETHER", 256)
    return made


class Taken(NamedTuple):
    """What all that comes before the first step takes."""

    tokens: int
    disk: int
    seconds: float


def taken(recipe: Recipe, spools: list[spool.Spool[object]]) -> Taken:
    spools.clear()
    began = time.process_time()
    rows = benchmark._pass(recipe, "train")
    seconds = time.process_time() - began
    tokens = sum(len(row["input_ids"]) for its in rows.values() for row in its)
    return Taken(tokens, sum(len(own._file) for own in spools), seconds)


def memory(recipe: Recipe) -> int:
    """The most that reading and sums take; a tokenizer would take more than all rows here."""
    tracemalloc.start()
    benchmark._pass(recipe, "validate")
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize("kind", ["texts", "questions"])
def test_what_is_said_of_millions_of_rows_holds_for_hundreds(
    kind: str, tmp_path: Path, spools: list[spool.Spool[object]]
) -> None:
    """Never less than what is taken, and at most a few times as much; the time is another machine's."""
    few, many = 300, 1500
    recipes = [benchmark._written(tmp_path, kind, count) for count in (few, many)]
    small, large = (one.with_train({"packing": "none", "max_length": 1000}) for one in recipes)
    taken(small, spools)  # the first time everything takes longer
    first, last = taken(small, spools), taken(large, spools)
    said = rows_cost(small, many - few)
    each = (last.tokens - first.tokens) / (1000 * (many - few))
    disk, seconds, held = (
        last.disk - first.disk,
        last.seconds - first.seconds,
        memory(large) - memory(small),
    )
    assert disk <= said.disk * each <= 3 * disk
    assert held <= said.memory <= 8 * held
    assert 1 / 8 < seconds / (said.seconds * each) < 8
