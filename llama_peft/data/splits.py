"""Cuts one list of examples in two: with a seed, stratified, or with groups kept whole."""

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from llama_peft.errors import UserError


class Cut(NamedTuple):
    """The positions that stay and those that are taken, in the order of the data."""

    kept: list[int]
    taken: list[int]


def cut(
    count: int,
    share: float,
    seed: int,
    *,
    labels: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
    part: str,
) -> Cut:
    """Take a share of `count` rows for a new part: whole groups, or else a share of each label.

    With groups, the share is a share of the groups and not of the rows. Raises UserError if a part
    would be empty or could not hold all labels.
    """
    units = count if groups is None else len(set(groups))
    taken = math.ceil(share * units)
    if units - taken < 1:
        unit = "row" if groups is None else "group"
        raise UserError(
            f"{part}: cannot cut {share:g} of {units} {unit}{'s' if units > 1 else ''}: "
            f"name a {part} file (dataset.parts.{part}), or set dataset.{part}_size: 0"
        )
    if groups is not None:
        return _cut_groups(groups, share, seed)
    if labels is not None:
        _check_labels(labels, min(taken, units - taken), part)
    return _cut_rows(count, share, seed, labels)


def _cut_groups(groups: Sequence[int], share: float, seed: int) -> Cut:
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    kept, taken = next(splitter.split(range(len(groups)), groups=groups))
    return Cut(sorted(map(int, kept)), sorted(map(int, taken)))


def _cut_rows(count: int, share: float, seed: int, labels: Sequence[str] | None) -> Cut:
    from sklearn.model_selection import train_test_split

    kept, taken = train_test_split(
        range(count), test_size=share, random_state=seed, stratify=labels
    )
    return Cut(sorted(kept), sorted(taken))


def _check_labels(labels: Sequence[str], smaller: int, part: str) -> None:
    """Check that each label has two rows and that both sides have room for all labels."""
    counts = Counter(labels)
    rare = sorted(label for label, count in counts.items() if count < 2)
    advice = f"set dataset.stratify: false, or name a {part} file (dataset.parts.{part})"
    if rare:
        listed = ", ".join(map(str, rare[:10]))
        raise UserError(
            f"{part}: {len(rare)} label(s) have only one row, and a stratified cut needs two "
            f"({listed}): {advice}"
        )
    if smaller < len(counts):
        raise UserError(f"{part}: {smaller} rows cannot hold all {len(counts)} labels: {advice}")


def components(*keys: Sequence[Hashable]) -> list[int]:
    """Return a group number for each row. Rows that are equal in any of the keys share one."""
    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for key in keys:
        first: dict[Hashable, int] = {}
        for row, value in enumerate(key):
            parent[root(row)] = root(first.setdefault(value, row))
    return [root(row) for row in range(len(parent))]


def sample(count: int, size: int | None, seed: int, part: str) -> list[int]:
    """Return the positions of a random sample, in order. If size is None or too large, all."""
    if size is None or size >= count:
        return list(range(count))
    # A text seeds the generator by its SHA-512: the same in every process, unlike hash().
    return sorted(random.Random(f"{seed} {part}").sample(range(count), size))


def nested(kinds: Sequence[object], groups: Sequence[int] | None, seed: int) -> list[int]:
    """Return all positions in an order whose every beginning is a sample of the whole.

    Each sample holds all smaller ones, and has about the same shares of the kinds.

    kinds: for each row, the label that it counts for. groups: the group of each row; then whole
    groups follow one another, and the kinds do not count.
    """
    units = kinds if groups is None else groups
    members: dict[object, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    draw = random.Random(f"{seed} nested")
    if groups is not None:
        ordered = list(members.values())
        return [row for own in draw.sample(ordered, len(ordered)) for row in own]
    ranked = [
        ((rank + draw.random()) / len(own), row)
        for own in members.values()
        for rank, row in enumerate(draw.sample(own, len(own)))
    ]
    return [row for _, row in sorted(ranked)]
