"""Cuts are seeded, stratified, and keep groups whole."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_peft.data import splits
from tests.support.tables import make, question, refusal, write


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=4),
    share=st.floats(0.15, 0.8),
    seed=st.integers(0, 99),
)
def test_a_stratified_cut_keeps_every_share_within_one_row(
    counts: list[int], share: float, seed: int
) -> None:
    labels = [str(label) for label, count in enumerate(counts) for _ in range(count)]
    cut = splits.cut(len(labels), share, seed, labels=labels, part="test")
    assert sorted(cut.kept + cut.taken) == list(range(len(labels)))
    assert cut.kept == sorted(cut.kept) and cut.taken == sorted(cut.taken)
    assert len(cut.taken) == -(-share * len(labels) // 1)
    taken = Counter(labels[row] for row in cut.taken)
    for label, count in enumerate(counts):
        assert abs(taken[str(label)] - len(cut.taken) * count / len(labels)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    passages=st.lists(st.integers(0, 12), min_size=30, max_size=60),
    titles=st.lists(st.integers(0, 8), min_size=60, max_size=60),
    seed=st.integers(0, 99),
)
def test_nothing_of_a_group_is_on_both_sides(
    passages: list[int], titles: list[int], seed: int
) -> None:
    """Rows equal in one key or the other, directly or over a chain, stay together."""
    keys = [list(map(str, passages)), list(map(str, titles[: len(passages)]))]
    groups = splits.components(*keys)
    for key in keys:
        homes: dict[str, int] = {}
        assert all(homes.setdefault(k, g) == g for k, g in zip(key, groups, strict=True))
    if len(set(groups)) < 2:
        return
    cut = splits.cut(len(groups), 0.3, seed, groups=groups, part="test")
    assert sorted(cut.kept + cut.taken) == list(range(len(groups)))
    for key in keys:
        assert not {key[row] for row in cut.kept} & {key[row] for row in cut.taken}


def test_groups_are_no_larger_than_they_must_be() -> None:
    groups = splits.components(list("aabbccd"), list("1234567"))
    assert [groups.count(group) for group in groups] == [2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("rows", "dataset", "fragment"),
    [
        (["a,x", "b,y", "c,y"], {}, "test: 1 label(s) have only one row"),
        (["a,x", "b,x", "c,y", "d,y"], {}, "test: 1 rows cannot hold all 2 labels"),
        (["a,x"], {"stratify": False}, "test: cannot cut 0.2 of 1 row"),
        (["a,x,", "b,y,g"], {"group_by": "group"}, "1 row: empty group (first: line 2)"),
    ],
)
def test_cuts_that_cannot_be_made(
    tmp_path: Path, rows: list[str], dataset: dict[str, Any], fragment: str
) -> None:
    header = "text,label,group" if "group_by" in dataset else "text,label"
    file = write(tmp_path / "a.csv", "\n".join([header, *rows]))
    assert fragment in refusal(make(parts={"train": str(file)}, **dataset))


def test_a_passage_under_all_titles_makes_one_group(tmp_path: Path) -> None:
    rows = [question(n, 0 if n % 2 else n, title=n // 2) for n in range(40)]
    file = write(tmp_path / "a.json", rows)
    message = refusal(make("extractive_qa", parts={"train": str(file)}, group_by="title"))
    assert "test: cannot cut 0.2 of 1 group: name a test file (dataset.parts.test)" in message


def test_a_sample_of_groups_holds_whole_ones_and_a_larger_one_holds_it():
    draw = random.Random(5)
    groups = [draw.choice("abcdefgh") for _ in range(60)]
    before: set[int] = set()
    for size in (1, 10, 30, 59, None):
        rows = splits.sample_groups(groups, size, 7, "train")
        assert (
            rows
            == sorted(set(rows))
            == [row for row, group in enumerate(groups) if group in {groups[row] for row in rows}]
        )
        assert before <= set(rows) and (size in (1, None) or len(rows) <= size)
        before = set(rows)
    assert before == set(range(60))
