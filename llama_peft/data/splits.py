"""Cutting one list of examples in two: seeded, stratified, or with groups kept whole."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from llama_peft.errors import UserError


class Cut(NamedTuple):
    """Positions, each list in the order of the data."""

    kept: list[int]
    taken: list[int]


def cut(
    count: int,
    share: float,
    seed: int,
    *,
    labels: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
    what: str,
) -> Cut:
    """Take a share of `count` rows: of whole groups if given, else of every label if given.

    `what` names the new part in messages. With groups the share is one of groups, not of rows.
    """
    units = count if groups is None else len(set(groups))
    taken = math.ceil(share * units)
    if units - taken < 1:
        unit = "row" if groups is None else "group"
        raise UserError(
            f"{what}: cannot cut {share:g} of {units} {unit}{'s' if units > 1 else ''}: "
            f"give a {what} file (dataset.parts.{what}) or set dataset.{what}_size: 0"
        )
    if groups is not None:
        return _cut_groups(groups, share, seed)
    if labels is not None:
        _check_labels(labels, min(taken, units - taken), what)
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


def _check_labels(labels: Sequence[str], smaller: int, what: str) -> None:
    """Stratifying needs two rows of each label, and room for all labels on both sides."""
    counts = Counter(labels)
    rare = sorted(label for label, count in counts.items() if count < 2)
    advice = f"set dataset.stratify: false, or give a {what} file (dataset.parts.{what})"
    if rare:
        listed = ", ".join(map(str, rare[:10]))
        raise UserError(
            f"{what}: {len(rare)} label(s) have one row only, which cannot be on both sides of a "
            f"stratified cut ({listed}): {advice}"
        )
    if smaller < len(counts):
        raise UserError(f"{what}: {smaller} rows cannot hold all {len(counts)} labels: {advice}")


def components(*keys: Sequence[str]) -> list[int]:
    """Group numbers such that rows equal in any of the keys are in one group."""
    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for key in keys:
        first: dict[str, int] = {}
        for row, value in enumerate(key):
            parent[root(row)] = root(first.setdefault(value, row))
    return [root(row) for row in range(len(parent))]


def sample(count: int, size: int | None, seed: int, part: str) -> list[int]:
    """Positions of a random sample, in order; all of them where `size` is None or larger."""
    if size is None or size >= count:
        return list(range(count))
    # A text seeds the generator by its SHA-512: the same in every process, unlike hash().
    return sorted(random.Random(f"{seed} {part}").sample(range(count), size))
