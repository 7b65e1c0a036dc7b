"""Packing keeps every example whole, stores no prefix twice, and fills its rows."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_peft.errors import UserError
from llama_peft.prefix_tree import pack as prefix_tree
from llama_peft.prefix_tree.pack import IGNORE_INDEX, pack, packing
from tests.support.tree_examples import (
    ROOM,
    Example,
    drawn_examples,
    families,
    lists_of_examples,
    paths,
    plain_rows,
)


def test_the_row_drawn_in_the_docstring() -> None:
    [row] = pack(drawn_examples(), 9)
    drawn = [line.split() for line in str(prefix_tree.__doc__).splitlines()]
    table = {words[0]: words[1:] for words in drawn if len(words) == 10}
    assert table["index"] == [str(i) for i in range(9)]
    assert table["token"] == ["iAqarbBsc"[token] for token in row["input_ids"]] == list("iAqarbBsc")
    assert table["position"] == [str(position) for position in row["position_ids"]]
    assert table["end"] == [str(end) for end in row["subtree_end"]]
    labels = ["." if n == IGNORE_INDEX else "iAqarbBsc"[n] for n in row["labels"]]
    assert table["label"] == labels and [n for n in labels if n != "."] == list("abc")


@settings(max_examples=200, deadline=None)
@given(lists_of_examples, st.integers(0, 12))
def test_unpacking_gives_the_examples_back(examples: list[Example], slack: int) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    rows = pack(examples, room)
    assert sorted(name for row in rows for name in row["ids"]) == sorted(e.id for e in examples)
    by_id = {e.id: e for e in examples}
    for row in rows:
        assert len(row["input_ids"]) <= room
        for name, path in paths(row).items():
            unpacked = [row["input_ids"][k] for k in path]
            assert unpacked == list(by_id[name].prompt + by_id[name].completion)
            assert [row["position_ids"][k] for k in path] == list(range(len(path)))


@settings(max_examples=200, deadline=None)
@given(lists_of_examples, st.integers(0, 12))
def test_answers_alone_are_labels_and_no_prefix_is_stored_twice(
    examples: list[Example], slack: int
) -> None:
    room = max(len(e.prompt + e.completion) for e in examples) + slack
    by_id = {e.id: e for e in examples}
    for row in pack(examples, room):
        labelled = [k for k, label in enumerate(row["labels"]) if label != IGNORE_INDEX]
        own = {name: path[len(by_id[name].prompt) - 1 :] for name, path in paths(row).items()}
        assert labelled == [k for branch in own.values() for k in branch[1:]]
        assert all(branch == list(range(branch[0], branch[-1] + 1)) for branch in own.values())
        prompts = [by_id[name].prompt for name in row["ids"]]
        shared = {prompt[:n] for prompt in prompts for n in range(1, len(prompt))}
        assert len(row["input_ids"]) == len(shared) + sum(len(b) for b in own.values())


def test_rows_are_full() -> None:
    """Two rows that fit together are never left apart, whatever they hold."""
    examples = [Example(str(n), (n, n, n), (1,) * (1 + n % 5)) for n in range(3, 40)]
    lengths = sorted(len(row["input_ids"]) for row in pack(examples, 20))
    assert lengths[0] + lengths[1] > 20


def test_an_example_that_fits_no_row_is_named() -> None:
    examples = families(3)
    long = examples[0]._replace(id="the-long-one", completion=(5,) * ROOM)
    with pytest.raises(UserError, match=r"1 of \d+ .*64 tokens: the-long-one; raise train"):
        pack([*examples, long], ROOM)
    with pytest.raises(UserError, match="empty prompt: bare; leave"):
        pack([Example("bare", (), (1,))], ROOM)


def test_packing_counts() -> None:
    examples = families(8)
    counts = packing(pack(examples, ROOM))
    assert counts.examples == len(examples)
    assert counts.plain_tokens == sum(len(e.prompt + e.completion) for e in examples)
    assert packing(plain_rows(examples)).tokens == counts.plain_tokens > counts.tokens
    assert f"{counts.examples} examples in {counts.rows} rows" in str(counts)


def test_rows_do_not_depend_on_how_many_examples_are_sorted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(0)
    examples = [
        Example(str(n), tuple(rng.choices(range(3), k=rng.randint(1, 9))), (n % 5,))
        for n in range(200)
    ]
    whole = [*pack(examples, 24)]
    monkeypatch.setattr("llama_peft.prefix_tree.pack._RUN", 7)
    assert [*pack(examples, 24)] == whole
