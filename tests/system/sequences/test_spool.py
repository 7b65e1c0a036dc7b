"""A Spool is the list of its items, whatever of it lies on disk, and takes no memory for them."""

import random
import tracemalloc

import pytest

from llama_peft.data import Answer, QuestionExample, TextExample
from llama_peft.data.examples import FieldsExample
from llama_peft.errors import UserError
from llama_peft.system.sequences import nameless, spool
from llama_peft.system.sequences.spool import Spool
from llama_peft.system.sequences.views import Chosen, Joined, Mapped


@pytest.fixture(params=[0, 3_000, 4 << 20])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes in memory: none, some, all."""
    monkeypatch.setattr(spool, "_IN_MEMORY", request.param)
    return int(request.param)


def test_a_spool_is_the_list_of_its_items(limit: int) -> None:
    rng = random.Random(limit)
    items = [{"text": "ä" * rng.randint(0, 99), "number": n} for n in range(1_000)]
    held = Spool(items)
    assert [*held] == items and held == items and items == held and len(held) == 1_000
    for order in (range(1_000), range(0, 1_000, 7), rng.sample(range(-1_000, 1_000), 500)):
        assert [held[number] for number in order] == [items[number] for number in order]
    assert held[-3:] == items[-3:] and held[5:2] == [] and held[990:5000:3] == items[990:5000:3]
    held.append({"text": "last", "number": 1_000})
    assert held[-1]["text"] == "last" and [*held][:-1] == items
    one, other = iter(held), iter(held)
    assert next(one) == next(other) == items[0] and next(one) == items[1]
    with pytest.raises(IndexError):
        held[1_001]


def test_an_example_comes_back_as_it_was(limit: int) -> None:
    examples = [
        TextExample(id="a", text="t", label=(1, 2), group="g"),
        TextExample(id="b", text="t", label=0.5),
        FieldsExample.of({"premise": "p", "hypothesis": "h"}, id="c", label=1, group="g"),
        QuestionExample(
            id="d", context="c", question="q", answers=(Answer("a", 1), Answer("b", -1)), title="t"
        ),
    ]
    held = [*Spool(examples)]
    assert held == examples and [*map(type, held)] == [*map(type, examples)]
    assert isinstance(held[3], QuestionExample) and isinstance(held[3].answers[0], Answer)


def test_items_take_no_memory() -> None:
    items = ({"text": f"{n} " * 100} for n in range(20_000))
    tracemalloc.start()
    held = Spool(items)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == 20_000 and size < 6_000_000, "as objects they take 13 MB"


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 10)
    monkeypatch.setattr(nameless, "_RESERVE", 1 << 60)
    with pytest.raises(UserError, match=r"do not fit on the disk of .*: make room, or set TMPDIR"):
        Spool(["a" * 100])


def test_views_are_lists_of_what_they_show() -> None:
    letters = Spool("abcdef")
    twice = Chosen(Chosen(letters, [5, 3, 1]), [2, 0])
    assert twice == ["b", "f"] and [*twice] == ["b", "f"] and twice[-1] == "f"
    joined = Joined([letters, [], twice])
    assert joined == [*"abcdefbf"] and [joined[n] for n in range(8)] == [*"abcdefbf"]
    assert Mapped(str.upper, twice) == ["B", "F"] and Mapped(str.upper, twice)[0] == "B"
    assert twice != ["b"] and twice != "bf"


def test_what_cannot_be_copied_is_one_line_with_its_row() -> None:
    import threading

    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    for value in (threading.Lock(), deep):
        with pytest.raises(UserError, match="row 2 holds a value"):
            Spool([{"text": "a"}, {"text": "b", "other": value}])


def test_a_spool_goes_to_another_process_as_a_copy() -> None:
    import pickle

    kept = Spool([{"ids": (n,)} for n in range(300)])
    kept[7]
    assert list(pickle.loads(pickle.dumps(kept))) == list(kept)
